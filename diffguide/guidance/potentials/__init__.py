"""Potential guidance: the gradient of any log-potential f(x, y) -> [B] steers a denoiser, of x_t or of x0_hat."""

from .base import Brightness, NoisyPotentialGuidance, Potential, PotentialDensity, PotentialGuidance
from .inverse import Deblur, Inpaint, LinearProblem, SuperResolution
from .posteriors import DPS, PiGDM, RePaint
from .training_free import LGD, MPGD, TFG, FreeDoM, UniversalGuidance

__all__ = [
    "Brightness", "DPS", "Deblur", "FreeDoM", "Inpaint", "LGD", "LinearProblem", "MPGD", "NoisyPotentialGuidance",
    "PiGDM", "Potential", "PotentialDensity", "PotentialGuidance", "RePaint", "SuperResolution", "TFG",
    "UniversalGuidance",
]  # fmt: skip
