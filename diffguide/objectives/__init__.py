"""Objectives: how a backbone is trained. objective(x_0, y, rng) -> Loss; `objective.model` is what training yields."""

from .autoencoder import AutoencoderObjective
from .base import Diverged, Loss, Objective
from .cdm import CDM
from .classifier import ClassifierObjective
from .denoising import Denoising
from .density_ratio import DensityRatio
from .energy import EnergyObjective
from .equilibrium import EquilibriumMatching
from .flow_map import FlowMap
from .jem import JEM
from .jump_targets import Consistency, MeanFlow, Shortcut
from .level_energy import DiffusiveClassification, DualScore
from .levels import LogitNormal, LogNormal, NoiseLevels, UniformLogSNR, UniformTime
from .paths import PathDistillation
from .resampling import LossSecondMoment
from .sliced import Sliced
from .time_score import ConditionalTimeScore
from .variational import Variational
from .weights import EDM, P2, LearnedUncertainty, Likelihood, MinSNR, SoftMinSNR, Uniform, UniformEps, Weight

__all__ = [
    "CDM", "EDM", "JEM", "P2", "AutoencoderObjective", "ClassifierObjective", "ConditionalTimeScore", "Consistency",
    "Denoising", "DensityRatio", "DiffusiveClassification", "Diverged", "DualScore", "EnergyObjective",
    "EquilibriumMatching", "FlowMap", "LearnedUncertainty", "Likelihood", "LogNormal", "LogitNormal", "Loss",
    "LossSecondMoment", "MeanFlow", "MinSNR", "NoiseLevels", "Objective", "PathDistillation", "Shortcut", "Sliced",
    "SoftMinSNR", "Uniform", "UniformEps", "UniformLogSNR", "UniformTime", "Variational", "Weight",
]  # fmt: skip
