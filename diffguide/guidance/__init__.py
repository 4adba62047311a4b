"""Guidance: a Denoiser made of a Denoiser."""

from . import potentials
from .cads import CADS
from .classifier import ClassifierGuidance
from .contrast import ClassifierFree, Contrast, Unguided
from .nested import Nested
from .perturbed import PAG, SEG, SLG
from .weak import Auto, Compose, Negative

__all__ = [
    "CADS", "PAG", "SEG", "SLG", "Auto", "ClassifierFree", "ClassifierGuidance", "Compose", "Contrast", "Negative", "Nested",
    "Unguided", "potentials",
]  # fmt: skip
