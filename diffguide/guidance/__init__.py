"""Guidance: a Denoiser made of a Denoiser."""

from .contrast import ClassifierFree, Unguided

__all__ = ["ClassifierFree", "Unguided"]
