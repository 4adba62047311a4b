"""Heun's method on the probability-flow ODE, with EDM's churn."""

import math

import torch
from torch import Tensor

from ..models.protocols import Denoiser
from ..randomness import Noise
from .ancestral import noise_factor
from .base import Sampler
from .grids import Grid
from .trust import WIDEST

__all__ = ["CHURN", "Heun"]

CHURN = 1  # the draw of churn at its level; 0 is the noise that a run starts from


class Heun(Sampler):
    """The trapezoidal rule for d(x / alpha) = eps d(sigma / alpha), predicted by an Euler step.

    Karras et al. 2022, arXiv 2206.00364, algorithm 1; with churn algorithm 2: a step first adds noise, from level n up
    to n (1 + min(churn / steps, sqrt(2) - 1)) or the schedule's end, where that is less. Two evaluations per step; one
    where the step ends at sigma = 0, as in the paper, or starts at alpha = 0, where sigma / alpha is infinite.

    Arguments:
        steps, grid: as for every sampler.
        churn: S_churn, the amount of noise added over all steps, at least 0; 0 is deterministic.
        churn_min, churn_max: S_tmin and S_tmax, the noise levels sigma / alpha between which noise is added.
        s_noise: S_noise, factor of the noise that is added, at least 0.

    Raises:
        ValueError: a number out of range, or no noise level between churn_min and churn_max.
    """

    order = 2
    corrects = True
    widest = WIDEST

    def __init__(
        self, steps: int, grid: Grid, churn: float = 0.0, churn_min: float = 0.0, churn_max: float = math.inf,
        s_noise: float = 1.0,
    ):  # fmt: skip
        super().__init__(steps, grid)
        if not 0 <= churn < math.inf:
            raise ValueError(f"churn must be finite and at least 0, got {churn}")
        if not 0 <= churn_min < churn_max:
            raise ValueError(
                f"churn_min and churn_max must be noise levels with 0 <= churn_min < churn_max, got {churn_min} and "
                f"{churn_max}: an empty interval"
            )
        self.churn, self.churn_min, self.churn_max = float(churn), float(churn_min), float(churn_max)
        self.s_noise, self.stochastic, self.off_grid = noise_factor(s_noise), churn > 0, churn > 0

    def step(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, y: Tensor | None, noise: Noise | None, memory: dict
    ) -> Tensor:
        schedule = denoiser.schedule
        if self.stochastic:
            x, t = self.churned(schedule, x, t, noise)
        alpha, sigma = schedule.alpha_sigma(s)
        prediction = denoiser(x, t, y)
        euler = alpha * prediction.x_0 + sigma * prediction.eps
        change = schedule.noise_level(s) - schedule.noise_level(t)
        if sigma == 0 or torch.isinf(change):
            return euler
        corrected = denoiser(euler, s, y)
        return euler + (alpha * change / 2) * (corrected.eps - prediction.eps)

    def churned(self, schedule, x: Tensor, t: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """x and its time after noise was added; as they were outside the interval and at the schedule's end."""
        level, end = schedule.noise_level(t), schedule.noise_level(1.0)
        if not self.churn_min <= level <= self.churn_max or level >= end:
            return x, t
        higher = torch.minimum(level * (1 + min(self.churn / self.steps, math.sqrt(2) - 1)), end)
        time = torch.ones_like(t) if higher == end else schedule.t_of(-2 * higher.log())
        alpha = schedule.alpha_sigma(time)[0]
        added = self.s_noise * (higher**2 - level**2).sqrt() * noise.normal(t, CHURN)
        return (alpha / schedule.alpha_sigma(t)[0]) * x + alpha * added, time
