"""Oracles: laws whose every conditional expectation is known, so that guidance and samplers are seen without training error."""

from .base import Oracle
from .empirical import Empirical
from .laws import AutoguidanceTree, GMM2DLaw, HighDimensional
from .mixture import GaussianMixture, ReverseKernel

__all__ = ["AutoguidanceTree", "Empirical", "GMM2DLaw", "GaussianMixture", "HighDimensional", "Oracle", "ReverseKernel"]
