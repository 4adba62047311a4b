"""Heun's method on the probability-flow ODE."""

import torch
from torch import Tensor

from ..denoisers import Denoiser
from ..randomness import Noise
from .base import Sampler

__all__ = ["Heun"]


class Heun(Sampler):
    """The trapezoidal rule for d(x / alpha) = eps d(sigma / alpha), predicted by an Euler step.

    Karras et al. 2022, arXiv 2206.00364, algorithm 1. Two evaluations per step; one where the step ends at sigma = 0,
    as in the paper, or starts at alpha = 0, where sigma / alpha is infinite.
    """

    order = 2

    def step(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, y: Tensor | None, noise: Noise | None, memory: dict
    ) -> Tensor:
        schedule = denoiser.schedule
        alpha, sigma = schedule.alpha_sigma(s)
        prediction = denoiser(x, t, y)
        euler = alpha * prediction.x_0 + sigma * prediction.eps
        change = schedule.noise_level(s) - schedule.noise_level(t)
        if sigma == 0 or torch.isinf(change):
            return euler
        corrected = denoiser(euler, s, y)
        return euler + (alpha * change / 2) * (corrected.eps - prediction.eps)
