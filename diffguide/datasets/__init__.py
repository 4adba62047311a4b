"""Data sets: three splits in memory, class names, facts."""

from .base import InMemory, Split
from .digits import Digits
from .gmm2d import GMM2D

__all__ = ["Digits", "GMM2D", "InMemory", "Split"]
