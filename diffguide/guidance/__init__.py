"""Guidance: a Denoiser made of a Denoiser."""

from . import potentials
from .autoguidance import Autoguidance
from .cads import CADS
from .class_bounds import BoundPosterior
from .classifier import ClassifierGuidance
from .clean_classifier import CleanClassifierGuidance, ExportedProgram, ImageNetwork, TorchScript, Torchvision
from .composition import ClassComposition, NegativeCondition
from .contrast import ClassifierFree, Contrast, Unguided
from .distilled import Distilled
from .feedback import Feedback
from .flow_rules import SMC, VAGS, AdaMaG
from .history import HiGS, HistoryGuidance, MomentumGuidance
from .implicit_classifier import DensityPosterior, ImplicitClassifierGuidance, Posterior
from .independent import ICG
from .nested import Nested
from .norms import NormLimit, PosteriorMeanCap, RectifiedRatio
from .parts import PartScales
from .perturbed import PAG, SEG, SLG, SoftPAG
from .power import PowerGuidance
from .predictor import RectifiedCFGPlusPlus
from .projections import APG, FDG, TCFG
from .ramps import Constant, CosineRamp, ExponentialRamp, LinearRamp, PowerRamp, Ramp, TableRamp, TriangleRamp
from .randomly_perturbed import S2, TPG, TSG
from .rectified_table import RectifiedTable
from .reference import DatasetReferences, FileReferences, ReferenceGuidance, References
from .rules import CFGPlusPlus, CFGZero, Linear, Mambo, Rescale, Rule, Threshold
from .summed import SummedContrasts
from .temperature import TemporalScoreRescaling

__all__ = [
    "APG", "CADS", "FDG", "ICG", "PAG", "S2", "SEG", "SLG", "SMC", "TCFG", "TPG", "TSG", "VAGS", "AdaMaG", "Autoguidance",
    "BoundPosterior", "CFGPlusPlus", "CFGZero", "ClassComposition", "ClassifierFree", "ClassifierGuidance",
    "CleanClassifierGuidance", "Constant", "Contrast", "CosineRamp", "DatasetReferences", "DensityPosterior", "Distilled",
    "ExponentialRamp", "ExportedProgram", "Feedback", "FileReferences", "HiGS", "HistoryGuidance", "ImageNetwork",
    "ImplicitClassifierGuidance", "Linear", "LinearRamp", "Mambo", "MomentumGuidance", "NegativeCondition", "Nested",
    "NormLimit", "PartScales", "Posterior", "PosteriorMeanCap", "PowerGuidance", "PowerRamp", "Ramp", "RectifiedCFGPlusPlus",
    "RectifiedRatio", "RectifiedTable", "ReferenceGuidance", "References", "Rescale", "Rule", "SoftPAG", "SummedContrasts",
    "TableRamp", "TemporalScoreRescaling", "Threshold", "TorchScript", "Torchvision", "TriangleRamp", "Unguided",
    "potentials",
]  # fmt: skip
