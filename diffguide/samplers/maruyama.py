"""Euler-Maruyama on the reverse stochastic differential equation, with a choice of diffusion coefficient."""

import math

import torch
from torch import Tensor

from ..backbones.conditions import Condition
from ..models.protocols import Denoiser
from ..runtime.ranges import check_range
from ..schedules import Schedule
from .ancestral import transition_variance
from .base import Memory, Sampler
from .grids import UNIFORM_T, Grid
from .noise import StepNoise
from .step_limits import MAX_FALL

__all__ = ["Diffusion", "EulerMaruyama", "ForwardDiffusion", "SigmaDiffusion", "SineDiffusion"]


class Diffusion:
    """The squared diffusion coefficient w(t) of the reverse equation; every w >= 0 has the same marginals.

    Arguments:
        scale: factor of w, at least 0; 0 is the probability-flow ODE.
    """

    def __init__(self, scale: float = 1.0):
        self.scale = check_range("scale", scale, "[0, inf)")

    def variance(self, schedule: Schedule, t: Tensor, s: Tensor) -> Tensor:
        """w(t) (t - s), or what equals it to first order: the variance of the noise of one step."""
        raise NotImplementedError


class SigmaDiffusion(Diffusion):
    """w(t) = scale sigma_t, which vanishes with the noise. SiT, arXiv 2401.08740, section 2.4."""

    def variance(self, schedule: Schedule, t: Tensor, s: Tensor) -> Tensor:
        return self.scale * schedule.alpha_sigma(t)[1] * (t - s)


SIGMA_DIFFUSION = SigmaDiffusion()


class SineDiffusion(Diffusion):
    """w(t) = scale sin^2(pi t), which vanishes at both ends. SiT, arXiv 2401.08740, section 2.4."""

    def variance(self, schedule: Schedule, t: Tensor, s: Tensor) -> Tensor:
        return self.scale * torch.sin(math.pi * t) ** 2 * (t - s)


class ForwardDiffusion(Diffusion):
    """w = scale g^2 with g of the forward process: at scale 1 the reverse SDE of Song et al., arXiv 2011.13456, eq. 6.

    g(t)^2 (t - s) is taken as Var[x_t | x_s], finite also where the log-SNR is not.
    """

    def variance(self, schedule: Schedule, t: Tensor, s: Tensor) -> Tensor:
        return self.scale * transition_variance(schedule, t, s)


class EulerMaruyama(Sampler):
    """x_s = alpha_s x_0 + (sigma_s - v / (2 sigma_t)) eps + sqrt(v) z,  v = w(t) (t - s).

    Euler-Maruyama for dx = (alpha' x_0 + sigma' eps) dt - (w / 2) score dt + sqrt(w) dW run from t to s, with
    alpha' (t - s) and sigma' (t - s) taken as exact differences, which for schedule=flow they are.
    Ma et al., "SiT", 2024, arXiv 2401.08740, eq. 5. The step to t = 0 takes v = 0: nothing removes noise after it.

    Arguments:
        diffusion: w(t).
    """

    order = 1
    stochastic = gaussian_steps = True
    max_fall = MAX_FALL

    def __init__(self, steps: int = 250, grid: Grid = UNIFORM_T, diffusion: Diffusion = SIGMA_DIFFUSION):
        super().__init__(steps, grid)
        self.diffusion = diffusion

    def step(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, y: Condition | None, noise: StepNoise, memory: Memory
    ) -> Tensor:
        alpha, sigma = denoiser.schedule.alpha_sigma(s)
        prediction = denoiser(x, t, y)
        v = self.diffusion.variance(denoiser.schedule, t, s)
        if s == 0 or v == 0:
            return alpha * prediction.x_0 + sigma * prediction.eps
        kept = sigma - v / (2 * denoiser.schedule.alpha_sigma(t)[1])
        return alpha * prediction.x_0 + kept * prediction.eps + v.sqrt() * noise.increment(t, s)
