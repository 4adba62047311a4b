"""Langevin chains on a log-density itself, from uniform noise, without noise levels."""

import math

import torch
from torch import Tensor

from ..models.evaluation_counters import as_protocol
from ..models.level_classifier import langevin_step
from ..models.protocols import Denoiser, Energy, LogDensity
from ..randomness import Noise
from .base import MOST, Sampler

__all__ = ["SGLD"]


class SGLD(Sampler):
    """x <- x + step_size grad log p(x) + noise_scale z, `steps` times, from x uniform in [-1, 1].

    Welling & Teh, "Bayesian Learning via Stochastic Gradient Langevin Dynamics", 2011, eq. 4; with step_size 1 and
    noise_scale 0.01 as Grathwohl et al. 2020, arXiv 1912.03263, train and sample JEM: a chain far colder than its density,
    short enough to be one of training. Of a model with noise levels its log-density at the data, t = 0, is walked. The times
    are no noise levels here, but the share of the chain that is left.

    Arguments:
        steps: 1 to 10^5; as many as a chain of training has, or more where those go on from a replay buffer.
        step_size: of the gradient, above 0.
        noise_scale: standard deviation of the noise of a step, at least 0; None = sqrt(2 step_size), whose chain has the
            law of the density in the limit of small steps.

    Raises:
        ValueError: a number out of range.
    """

    order, stochastic, at_data, needs = 1, True, True, LogDensity

    def __init__(self, steps: int, step_size: float, noise_scale: float | None):
        if not isinstance(steps, int) or not 1 <= steps <= MOST:
            raise ValueError(f"steps must be a whole number from 1 to 10^5, got {steps!r}")
        if not 0 < step_size < math.inf:
            raise ValueError(f"step_size must be a number above 0, got {step_size}")
        if noise_scale is not None and not 0 <= noise_scale < math.inf:
            raise ValueError(f"noise_scale must be at least 0, or null for sqrt(2 step_size), got {noise_scale}")
        self.steps, self.step_size = steps, float(step_size)
        self.noise_scale = math.sqrt(2 * step_size) if noise_scale is None else float(noise_scale)

    def times(self, denoiser: Denoiser | Energy) -> Tensor:
        self.check(denoiser)
        return torch.linspace(1, 0, self.steps + 1, dtype=torch.float64)

    def begin(self, denoiser: Denoiser | Energy, times: Tensor, noise: Noise) -> Tensor:
        return (2 * torch.special.ndtr(noise.normal(times[0], 0).double()) - 1).to(noise.dtype)

    def step(
        self, denoiser: Denoiser | Energy, x: Tensor, t: Tensor, s: Tensor, y: Tensor | None, noise: Noise, memory: dict
    ) -> Tensor:
        model, level = as_protocol(denoiser, LogDensity), None if denoiser.schedule is None else torch.zeros_like(t)
        denoiser.count_evaluations(len(x))
        z = noise.normal(t, 1)
        return langevin_step(lambda x: model.log_density(x, level, y), x, self.step_size, self.noise_scale, z)
