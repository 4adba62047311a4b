"""Guidance: a Denoiser made of a Denoiser."""

from . import potentials
from .autoguidance import Autoguidance
from .cads import CADS
from .classifier import ClassifierGuidance
from .clean_classifier import CleanClassifierGuidance, ExportedProgram, ImageNetwork, TorchScript, Torchvision
from .composition import ClassComposition, NegativeCondition
from .contrast import ClassifierFree, Contrast, Unguided
from .nested import Nested
from .parts import PartScales
from .perturbed import PAG, SEG, SLG
from .power import PowerGuidance
from .projections import APG, FDG, TCFG
from .ramps import Constant, CosineRamp, LinearRamp, PowerRamp, Ramp, TableRamp
from .rules import CFGPlusPlus, CFGZero, Linear, Mambo, Rescale, Rule, Threshold

__all__ = [
    "APG", "CADS", "FDG", "PAG", "SEG", "SLG", "TCFG", "Autoguidance", "CFGPlusPlus", "CFGZero", "ClassifierFree",
    "ClassifierGuidance", "CleanClassifierGuidance", "ClassComposition", "Constant", "Contrast", "CosineRamp",
    "ExportedProgram", "ImageNetwork", "Linear", "LinearRamp", "Mambo", "NegativeCondition", "Nested", "PartScales",
    "PowerGuidance", "PowerRamp", "Ramp", "Rescale", "Rule", "TableRamp", "Threshold", "TorchScript", "Torchvision",
    "Unguided", "potentials",
]  # fmt: skip
