"""Guidance: a Denoiser made of a Denoiser."""

from . import potentials
from .autoguidance import Autoguidance
from .cads import CADS
from .classifier import ClassifierGuidance
from .clean_classifier import CleanClassifierGuidance, ExportedProgram, ImageNetwork, TorchScript, Torchvision
from .composition import ClassComposition, NegativeCondition
from .contrast import ClassifierFree, Contrast, Unguided
from .independent import ICG
from .nested import Nested
from .parts import PartScales
from .perturbed import PAG, SEG, SLG, SoftPAG
from .projections import APG, FDG, TCFG
from .ramps import Constant, CosineRamp, LinearRamp, PowerRamp, Ramp, TableRamp
from .randomly_perturbed import S2, TPG, TSG
from .rules import CFGPlusPlus, CFGZero, Linear, Mambo, Rescale, Rule, Threshold

__all__ = [
    "APG", "CADS", "FDG", "ICG", "PAG", "S2", "SEG", "SLG", "TCFG", "TPG", "TSG", "Autoguidance", "CFGPlusPlus",
    "CFGZero", "ClassComposition", "ClassifierFree", "ClassifierGuidance", "CleanClassifierGuidance", "Constant",
    "Contrast", "CosineRamp", "ExportedProgram", "ImageNetwork", "Linear", "LinearRamp", "Mambo", "NegativeCondition",
    "Nested", "PartScales", "PowerRamp", "Ramp", "Rescale", "Rule", "SoftPAG", "TableRamp", "Threshold", "TorchScript",
    "Torchvision", "Unguided", "potentials",
]  # fmt: skip
