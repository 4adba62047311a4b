"""Randomness as an argument: noise that is a function of (seed, level) per sample, whatever the batch or the device."""

from .counters import create_states, fold
from .noise import Noise
from .shares import Share, normal, uniform

__all__ = ["Noise", "Share", "create_states", "fold", "normal", "uniform"]
