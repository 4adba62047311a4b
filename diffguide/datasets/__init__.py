"""Data sets: three splits, in memory or read by workers, class names, facts."""

from .base import Dataset, Split, Stream
from .digits import Digits
from .gmm2d import GMM2D

__all__ = ["Dataset", "Digits", "GMM2D", "Split", "Stream"]
