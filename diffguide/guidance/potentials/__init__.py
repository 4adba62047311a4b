"""Potential guidance: the gradient of any log-potential f(x, y) -> [B], of x_t or of x0_hat, guides a denoiser."""

from .base import (
    Brightness,
    NoisyPotentialGuidance,
    Potential,
    PotentialGuidance,
    PotentialGuidanceBase,
)
from .clip import ClipPotential, PretrainedClip
from .covariances import JFPS, MMPS, TMPD
from .densities import PotentialDensity, PotentialEnergy
from .inverse import Deblur, Inpaint, LinearProblem, SuperResolution
from .pictures import Box, FileMask, FilePicture, RandomMask, TestPicture
from .posteriors import DPS, PiGDM, RePaint
from .steps import DecreasingSteps, EvenSteps, IncreasingSteps
from .training_free import LGD, MPGD, TFG, FreeDoM, UniversalGuidance

__all__ = [
    "DPS", "JFPS", "LGD", "MMPS", "MPGD", "TFG", "TMPD", "Box", "Brightness", "ClipPotential", "Deblur",
    "DecreasingSteps", "EvenSteps", "FileMask", "FilePicture", "FreeDoM", "IncreasingSteps", "Inpaint", "LinearProblem",
    "NoisyPotentialGuidance", "PiGDM", "Potential", "PotentialDensity", "PotentialEnergy", "PotentialGuidance",
    "PotentialGuidanceBase", "PretrainedClip", "RandomMask", "RePaint", "SuperResolution", "TestPicture", "UniversalGuidance",
]  # fmt: skip
