"""Samplers: sampler(denoiser, x, times, y, noise, on_step) -> x, and the grids of times they walk."""

from .ancestral import DDIM, DDPM, Euler
from .base import Sampler
from .dpmpp import DPMpp2M
from .generate import generate
from .heun import Heun

__all__ = ["DDIM", "DDPM", "DPMpp2M", "Euler", "Heun", "Sampler", "generate"]
