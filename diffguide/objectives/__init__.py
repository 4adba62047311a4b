"""Objectives: how a backbone becomes something trained. objective(x_0, y, rng) -> Loss; `objective.model` survives."""

from .base import Diverged, Loss, Objective
from .cdm import CDM
from .classifier import Classifying
from .denoising import Denoising
from .density_ratio import DensityRatio
from .energy import EnergyDenoising
from .jem import JEM
from .sliced import Sliced
from .variational import Variational

__all__ = [
    "CDM", "Classifying", "Denoising", "DensityRatio", "Diverged", "EnergyDenoising", "JEM", "Loss", "Objective",
    "Sliced", "Variational",
]  # fmt: skip
