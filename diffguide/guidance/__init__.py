"""Guidance: a Denoiser made of a Denoiser."""

from .contrast import ClassifierFree, Contrast, Unguided

__all__ = ["ClassifierFree", "Contrast", "Unguided"]
