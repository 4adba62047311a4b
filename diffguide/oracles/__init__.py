"""Oracles: distributions with exact denoisers. Errors in their samples come from the sampler or the guidance alone."""

from .base import Oracle
from .empirical import Empirical
from .flow_maps import flow_map
from .laws import AutoguidanceTree, GMM2DLaw, HighDimensional
from .mixture import GaussianMixture, ReverseKernel
from .tilted import TiltedLaw

__all__ = [
    "AutoguidanceTree",
    "Empirical",
    "GMM2DLaw",
    "GaussianMixture",
    "HighDimensional",
    "Oracle",
    "ReverseKernel",
    "TiltedLaw",
    "flow_map",
]
