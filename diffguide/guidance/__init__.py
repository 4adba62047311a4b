"""Guidance: a Denoiser made of a Denoiser."""

from . import potentials
from .contrast import ClassifierFree, Unguided

__all__ = ["ClassifierFree", "Unguided", "potentials"]
