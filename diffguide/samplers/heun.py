"""Heun's method on the probability-flow ODE, with EDM's churn."""

import math

import torch
from torch import Tensor

from ..backbones.conditions import Condition
from ..models.protocols import Denoiser
from ..runtime.ranges import check_range
from ..schedules import Interval, Schedule
from .base import Memory, Sampler
from .grids import KARRAS, Grid
from .noise import StepNoise
from .step_limits import MAX_FALL

__all__ = ["CHURN_DRAW", "Heun"]

CHURN_DRAW = 1  # of the noise at a level; 0 is where a run starts


class Heun(Sampler):
    """The trapezoidal rule for d(x / alpha) = eps d(sigma / alpha), predicted by an Euler step.

    Karras et al. 2022, arXiv 2206.00364, algorithm 1; with churn algorithm 2: a step first adds noise, from level n up
    to n (1 + min(churn / steps, sqrt(2) - 1)) or the schedule's end, where that is less. Two evaluations per step; one
    where the step ends at sigma = 0, as in the paper, or starts at alpha = 0, where sigma / alpha is infinite.

    Arguments:
        churn: S_churn, the amount of noise added over all steps, at least 0; 0 is deterministic.
        churn_min, churn_max: S_tmin and S_tmax, the noise levels sigma / alpha between which noise is added.
        s_noise: S_noise, factor of the noise that is added, at least 0.
    """

    order = 2
    corrects = True
    max_fall = MAX_FALL

    def __init__(
        self,
        steps: int = 18,
        grid: Grid = KARRAS,
        churn: float = 0.0,
        churn_min: float = 0.0,
        churn_max: float = math.inf,
        s_noise: float = 1.0,
    ):
        super().__init__(steps, grid)
        self.churn, self.s_noise = check_range("churn", churn, "[0, inf)"), check_range("s_noise", s_noise, "[0, inf)")
        self.interval = Interval.of([churn_min, churn_max], "churn_min and churn_max")
        self.stochastic = self.off_grid = churn > 0

    def step(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, y: Condition | None, noise: StepNoise, memory: Memory
    ) -> Tensor:
        schedule = denoiser.schedule
        if self.stochastic:
            x, t = self.add_churn(schedule, x, t, noise)
        here, there = schedule.levels(t), schedule.levels(s)
        prediction = memory["first"] = denoiser(x, t, y)
        euler = memory["first order"] = (there.alpha * prediction.x_0).add_(there.sigma * prediction.eps)
        change = float(there.noise_level) - float(here.noise_level)
        if float(there.sigma) == 0 or math.isinf(change):
            return euler
        corrected = denoiser(euler, s, y)
        return (float(there.alpha) * change / 2 * (corrected.eps - prediction.eps)).add_(euler)

    def add_churn(self, schedule: Schedule, x: Tensor, t: Tensor, noise: StepNoise) -> tuple[Tensor, Tensor]:
        """x and its time with noise added; unchanged outside the interval and at the schedule's end."""
        level, end = schedule.noise_level(t), schedule.noise_level(1.0)
        if not self.interval.low <= level <= self.interval.high or level >= end:
            return x, t
        higher = torch.minimum(level * (1 + min(self.churn / self.steps, math.sqrt(2) - 1)), end)
        time = torch.ones_like(t) if higher == end else schedule.t_of(-2 * higher.log())
        alpha = schedule.alpha_sigma(time)[0]
        added = self.s_noise * (higher**2 - level**2).sqrt() * noise.normal(t, CHURN_DRAW)
        return (alpha / schedule.alpha_sigma(t)[0]) * x + alpha * added, time
