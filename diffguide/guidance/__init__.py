"""Guidance: a Denoiser made of a Denoiser."""

from . import potentials
from .autoguidance import Autoguidance
from .cads import CADS
from .classifier import ClassifierGuidance
from .clean_classifier import CleanClassifierGuidance, ExportedProgram, ImageNetwork, TorchScript, Torchvision
from .composition import Composition, NegativeCondition
from .contrast import ClassifierFree, Contrast, Unguided
from .nested import Nested
from .perturbed import PAG, SEG, SLG

__all__ = [
    "CADS",
    "PAG",
    "SEG",
    "SLG",
    "Autoguidance",
    "ClassifierFree",
    "ClassifierGuidance",
    "CleanClassifierGuidance",
    "Composition",
    "Contrast",
    "ExportedProgram",
    "ImageNetwork",
    "NegativeCondition",
    "Nested",
    "TorchScript",
    "Torchvision",
    "Unguided",
    "potentials",
]
