"""What every sampler shares: one loop over a decreasing grid of times."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..models.evaluation_counters import as_protocol
from ..models.protocols import Denoiser, DenoiserWrapper, Energy, ExactDenoiser, LogDensity, Prediction, SamplingError
from ..randomness import Noise
from ..schedules import Schedule
from .grids import Grid
from .trust import NARROW, FirstPrediction, OneIncrement, fall, trusted

__all__ = ["Sampler", "SamplingError"]

WORDS = {
    Denoiser: "a denoiser",
    ExactDenoiser: "the exact covariance of x_0 given x_t (an oracle, unguided)",
    LogDensity: "a log-density (objective=jem, energy, cdm, nce or tre, an oracle; unguided)",
}
MOST = 10**5  # steps: grids and frames are lists of them


class Sampler:
    """sampler(denoiser, x, times, y, noise, on_step) -> x at times[-1].

    A step starts from alpha_t pred.x_0 + sigma_t pred.eps, never from x_t: the two are equal unless a guidance method
    re-noises with another eps, which only so reaches every solver.

    Arguments:
        steps: number of steps, 1 to 10^5.
        grid: where the times lie.

    Attributes:
        order: of convergence, of the deterministic solution.
        stochastic: whether steps draw noise.
        off_grid: whether the denoiser is evaluated at times that are not on the grid.
        at_data: whether x lives at the data's own level all the way, so that the times only count steps.
        needs: the protocol that a model must have.
        corrects: whether a step is one of first order and a correction, which is left out where it is too long (`trust`).
        widest: factor by which the noise level may fall in a step that is not of first order.
    """

    order: int
    stochastic = False
    off_grid = False
    at_data = False
    needs = Denoiser
    corrects = False
    widest = math.inf

    def __init__(self, steps: int, grid: Grid):
        if not isinstance(steps, int) or not 1 <= steps <= MOST:
            raise ValueError(f"steps must be a whole number from 1 to 10^5, got {steps!r}")
        self.steps, self.grid = steps, grid

    def times(self, denoiser: Denoiser) -> Tensor:
        """The grid for a denoiser, decreasing, float64 [steps + 1] on the CPU.

        Raises:
            ValueError: a grid that the schedule or the model's legal levels do not allow, or a model that lacks what the
                sampler needs.
        """
        self.check(denoiser)
        if denoiser.levels is not None and len(denoiser.levels) < 2:
            raise ValueError(
                f"{type(self).__name__} needs noise levels, and this model knows the data's own alone (objective=nce): take "
                "sampler=sgld"
            )
        if self.off_grid and denoiser.levels is not None:
            raise ValueError(
                f"{type(self).__name__} evaluates between the grid's times, this model only at its levels: take sampler=ddim, "
                "heun without churn, or another one that stays on its grid"
            )
        return self.grid(denoiser.schedule, self.steps, denoiser.levels)

    def check(self, denoiser: Denoiser | Energy) -> None:
        """
        Raises:
            ValueError: a model that lacks what the sampler needs.
        """
        if as_protocol(denoiser, self.needs) is None:
            lacks = "which this model does not have"
            if isinstance(denoiser, Energy):
                lacks = "and this model is an energy without noise levels: take sampler=sgld"
            elif isinstance(innermost(denoiser), self.needs):
                lacks = "which this model has and its guidance hides: take guidance=none"
            raise ValueError(f"{type(self).__name__} needs {WORDS[self.needs]}, {lacks}")

    def begin(self, denoiser: Denoiser, times: Tensor, noise: Noise) -> Tensor:
        """The noise [B, ...] at times[0] that samples are made of."""
        return denoiser.schedule.alpha_sigma(times[0])[1] * noise.normal(times[0], 0)

    @torch.no_grad()
    def __call__(
        self, denoiser: Denoiser, x: Tensor, times: Tensor, y: Tensor | None = None, noise: Noise | None = None,
        on_step: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:  # fmt: skip
        """Walks x [B, ...], which lives at times[0], to times[-1].

        Arguments:
            times: decreasing float64 CPU tensor of at least two.
            y: class indices [B], -1 = no condition, an Embedding, or None.
            noise: needed where `stochastic`.
            on_step: called with (step index from 1, x) after every step.

        Raises:
            ValueError: times that are not float64 on the CPU or do not decrease strictly; a stochastic sampler without
                noise.
        """
        if times.dtype != torch.float64 or times.device.type != "cpu":
            raise ValueError(f"times must be float64 on the CPU, got {times.dtype} on {times.device}")
        if times.ndim != 1 or len(times) < 2 or not bool((times[1:] < times[:-1]).all()):
            raise ValueError(f"times must decrease strictly, got {times.tolist()}")
        if self.stochastic and noise is None:
            raise ValueError(f"{type(self).__name__} draws noise: pass noise=Noise(seeds, shape, schedule)")
        denoiser = denoiser.start(noise, times)
        memory, resting = {}, not isinstance(denoiser, Energy)
        for index, (t, s) in enumerate(zip(times[:-1], times[1:]), start=1):
            if resting and not denoiser.skips_step(t):
                denoiser, resting = denoiser.without_skipped_steps(), False
            if not resting:
                x = self.advance(denoiser, x, t, s, y, noise, memory)
            if on_step is not None:
                on_step(index, x)
        return x

    def advance(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, y: Tensor | None, noise: Noise | None, memory: dict
    ) -> Tensor:
        """The step of a run: `step`, but of first order where the noise falls too far or a row's correction is too long."""
        schedule = denoiser.schedule
        ratio = fall(schedule, t, s) if self.widest < math.inf else 1.0
        if ratio > self.widest:
            memory.clear()  # values from before a wide step say nothing about the next one
            return self.first_order(denoiser(x, t, y), schedule, t, s, noise)
        if not self.corrects or ratio <= NARROW:
            return self.step(denoiser, x, t, s, y, noise, memory)
        first, noise = FirstPrediction(denoiser), None if noise is None else OneIncrement(noise)
        x = self.step(first, x, t, s, y, noise, memory)
        plain = self.first_order(first.prediction, schedule, t, s, noise)
        x = trusted(x, plain, first.prediction, schedule, t, s)
        if "arrived" in memory:  # what the next step corrects
            memory["arrived"] = x
        return x

    def first_order(
        self, prediction: Prediction, schedule: Schedule, t: Tensor, s: Tensor, noise: Noise | None
    ) -> Tensor:
        """The method's own step of first order from the prediction at t; DDIM's for methods of the ODE."""
        alpha, sigma = schedule.alpha_sigma(s)
        return alpha * prediction.x_0 + sigma * prediction.eps

    def step(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, y: Tensor | None, noise: Noise | None, memory: dict
    ) -> Tensor:
        """The method as published: x at time s from x at time t > s; `memory` belongs to this run."""
        raise NotImplementedError


def innermost(denoiser: Denoiser | Energy) -> Denoiser | Energy:
    """The model that guidance is wrapped around; itself where there is none."""
    while isinstance(denoiser, DenoiserWrapper):
        denoiser = denoiser.denoiser
    return denoiser
