"""Objectives: how a backbone becomes something trained. objective(x_0, y, rng) -> Loss; `objective.model` survives."""

from .base import Diverged, Loss, Objective
from .cdm import CDM
from .classifier import ClassifierObjective
from .denoising import Denoising
from .density_ratio import DensityRatio
from .energy import EnergyObjective
from .jem import JEM
from .sliced import Sliced
from .variational import Variational

__all__ = [
    "CDM", "ClassifierObjective", "Denoising", "DensityRatio", "Diverged", "EnergyObjective", "JEM", "Loss", "Objective",
    "Sliced", "Variational",
]  # fmt: skip
