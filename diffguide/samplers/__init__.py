"""Samplers: sampler(denoiser, x, times, y, noise, on_step) -> x, and the grids of times they walk."""

from .adaptive import Dopri5
from .ancestral import DDIM, DDPM, Euler
from .base import Sampler
from .deis import DEIS, LogRhoDEIS
from .dpmpp import DPMpp2M, DPMpp3M
from .generate import generate
from .heun import Heun
from .inversion import DDIMInversion
from .multistep import IPNDM, LMS
from .singlestep import DPM2, PNDM, DPMpp2S
from .unipc import UniPC

__all__ = [
    "DDIM", "DDPM", "DEIS", "DPM2", "DPMpp2M", "DPMpp2S", "DPMpp3M", "DDIMInversion", "Dopri5", "Euler", "Heun", "IPNDM",
    "LMS", "LogRhoDEIS", "PNDM", "Sampler", "UniPC", "generate",
]  # fmt: skip
