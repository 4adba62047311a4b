"""Guidance: a Denoiser made of a Denoiser."""

from .cads import CADS
from .contrast import ClassifierFree, Contrast, Unguided
from .nested import Nested
from .weak import Auto, Compose, Negative

__all__ = ["CADS", "Auto", "ClassifierFree", "Compose", "Contrast", "Negative", "Nested", "Unguided"]
