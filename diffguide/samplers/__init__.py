"""Samplers: sampler(denoiser, x, times, y, noise, on_step) -> x, and the grids of times they walk."""

from .ancestral import DDIM, DDPM, Euler, EulerAncestral, ExactDDPM
from .base import Sampler
from .dpmpp import DPMpp2M
from .dpmpp_sde import DPMpp2MSDE, DPMpp3MSDE, SASolver
from .generate import generate
from .heun import Heun
from .langevin import AnnealedLangevin, LangevinPC
from .maruyama import EulerMaruyama
from .restart import Restart

__all__ = [
    "AnnealedLangevin",
    "DDIM",
    "DDPM",
    "DPMpp2M",
    "DPMpp2MSDE",
    "DPMpp3MSDE",
    "Euler",
    "EulerAncestral",
    "EulerMaruyama",
    "ExactDDPM",
    "Heun",
    "LangevinPC",
    "Restart",
    "SASolver",
    "Sampler",
    "generate",
]
