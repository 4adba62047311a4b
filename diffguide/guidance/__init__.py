"""Guidance: a Denoiser made of a Denoiser."""

from .contrast import ClassifierFree, Contrast, Unguided
from .nested import Nested
from .weak import Auto, Compose, Negative

__all__ = ["Auto", "ClassifierFree", "Compose", "Contrast", "Negative", "Nested", "Unguided"]
