"""Langevin chains on a log-density, from uniform noise, without noise levels."""

from functools import partial

import torch
from torch import Tensor

from ..backbones.conditions import Condition
from ..models.level_classifier import check_langevin_step, langevin_step
from ..models.protocols import Denoiser, Energy, LogDensity
from ..randomness import Noise
from ..runtime.ranges import check_whole
from .base import MAX_STEPS, Memory, Sampler
from .noise import StepNoise

__all__ = ["SGLD"]


class SGLD(Sampler):
    """x <- x + step_size grad log p(x) + noise_scale z, `steps` times, from x uniform in [-1, 1].

    Welling & Teh, "Bayesian Learning via Stochastic Gradient Langevin Dynamics", 2011, eq. 4; with step_size 1 and
    noise_scale 0.01 as Grathwohl et al. 2020, arXiv 1912.03263, train and sample JEM: a chain of much lower
    temperature than its density, as short as in training. A model with noise levels is sampled by its log-density at t = 0.
    Guidance with a law and log-densities is sampled too: classes by contrasts, potentials, classifiers.
    The times of this sampler are the remaining share of the chain, not noise levels.

    Arguments:
        steps: 1 to 10^5; as many as a training chain, or more if training used a replay buffer.
        step_size: of the gradient, above 0.
        noise_scale: standard deviation of the noise of a step, at least 0; None = sqrt(2 step_size), whose chain
            samples the density in the limit of small steps.
    """

    order = 1
    stochastic = at_data = True
    needs = LogDensity

    def __init__(self, steps: int = 40, step_size: float = 1.0, noise_scale: float | None = 0.01):
        self.steps = check_whole("steps", steps, 1, MAX_STEPS)
        self.step_size, self.noise_scale = check_langevin_step(step_size, noise_scale)

    def check(self, denoiser: Denoiser | Energy) -> None:
        if isinstance(denoiser, Denoiser) and (reason := denoiser.explain_no_density()) is not None:
            raise ValueError(
                f"SGLD needs a log-density (objective=jem, energy, cdm, nce or tre, an oracle), and {reason}: take another "
                "sampler, or guidance=none where the model has one"
            )

    def times(self, denoiser: Denoiser | Energy) -> Tensor:
        self.check(denoiser)
        return torch.linspace(1, 0, self.steps + 1, dtype=torch.float64)

    def begin(self, denoiser: Denoiser | Energy, times: Tensor, noise: Noise) -> Tensor:
        return (2 * torch.special.ndtr(noise.normal(times[0], 0).double()) - 1).to(noise.dtype)

    def step(
        self,
        denoiser: Denoiser | Energy,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        y: Condition | None,
        noise: StepNoise,
        memory: Memory,
    ) -> Tensor:
        if isinstance(denoiser, Denoiser):
            log_density = partial(denoiser.guided_log_density, t=torch.zeros_like(t), y=y)
        else:
            log_density = partial(denoiser.log_density, t=None, y=y)
            if denoiser.tally is not None:
                denoiser.tally.evaluations += len(x)
        z = noise.normal(t, 1)
        return langevin_step(log_density, x, self.step_size, self.noise_scale, z)
