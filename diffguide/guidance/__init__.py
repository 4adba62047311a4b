"""Guidance: a Denoiser made of a Denoiser."""

from .classifier import ClassifierGuidance
from .contrast import ClassifierFree, Unguided

__all__ = ["ClassifierFree", "ClassifierGuidance", "Unguided"]
