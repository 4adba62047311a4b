"""The base of all samplers: one loop over a decreasing grid of times."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..backbones.conditions import Condition
from ..models.evaluation_counters import as_protocol, unwrap
from ..models.jumps import JumpModel
from ..models.protocols import Denoiser, Energy, ExactDenoiser, LogDensity, Prediction, SamplingError
from ..randomness import Noise
from ..runtime.ranges import check_whole
from ..schedules import Schedule
from .grids import Grid
from .noise import SharedIncrement, StepNoise
from .step_limits import MAX_UNCHECKED_FALL, limit_corrections

__all__ = ["MAX_STEPS", "CompositeSampler", "LawSampler", "Memory", "Sampler", "SamplingError", "check_decreasing"]

PROTOCOL_NAMES: dict[type, str] = {
    Denoiser: "a denoiser",
    ExactDenoiser: "the exact covariance of x_0 given x_t (an oracle, unguided)",
    JumpModel: "a network that jumps (objective=flow_map; unguided, or guidance=distilled)",
    LogDensity: "a log-density (objective=jem, energy, cdm, nce or tre, an oracle; unguided)",
}
MAX_STEPS = 10**5
Memory = dict[str, Any]  # what the steps of a run remember


class Sampler:
    """sampler(denoiser, x, times, y, noise, on_step) -> x at times[-1].

    A step starts from alpha_t pred.x_0 + sigma_t pred.eps, never from x_t. The two are equal unless guidance changes eps
    (CFG++); solvers that start from x_t would ignore such guidance.

    Arguments (of all samplers):
        steps: number of steps, 1 to 10^5.
        grid: of the times.

    Attributes:
        order: of convergence of the deterministic solution.
        stochastic: whether steps draw noise.
        off_grid: whether the denoiser is evaluated at times that are not on the grid.
        at_data: whether x stays at the data's noise level, so that the times only count steps.
        needs: the protocol that a model must implement.
        corrects: whether a step is a first-order step plus a correction, which is dropped where it is too long (`step_limits`).
        gaussian_steps: whether a step is one evaluation at its start and one Gaussian increment, whose deviation does not
            depend on the prediction.
        max_fall: the largest factor by which the noise level falls in a step of the method; wider steps are of first order.
    """

    order: int
    stochastic = False
    off_grid = False
    at_data = False
    needs: type = Denoiser
    corrects = False
    gaussian_steps = False
    max_fall = math.inf

    def __init__(self, steps: int, grid: Grid):
        self.steps = check_whole("steps", steps, 1, MAX_STEPS)
        self.grid = grid

    def times(self, denoiser: Denoiser | Energy) -> Tensor:
        """The grid for a denoiser, decreasing, float64 [steps + 1] on the CPU.

        Raises:
            ValueError: the schedule or the model's levels do not allow the grid, or the model lacks what the sampler needs.
        """
        self.check(denoiser)
        assert isinstance(denoiser, Denoiser)
        if denoiser.levels is not None and len(denoiser.levels) < 2:
            raise ValueError(
                f"{type(self).__name__} needs noise levels, and this model has only the level of the data (objective=nce): "
                "take sampler=sgld"
            )
        if self.off_grid and denoiser.levels is not None:
            raise ValueError(
                f"{type(self).__name__} evaluates the model between its noise levels: take a sampler that stays on the grid, "
                "such as sampler=ddim, or heun without churn"
            )
        return self.grid(denoiser.schedule, self.steps, denoiser.levels)

    def check(self, denoiser: Denoiser | Energy) -> None:
        """Raises ValueError for a model that lacks what the sampler needs."""
        if as_protocol(denoiser, self.needs) is None:
            reason = "which this model does not have"
            if isinstance(denoiser, Energy):
                reason = "and this model is an energy without noise levels: take sampler=sgld, or descent"
            elif isinstance(unwrap(denoiser), self.needs):
                reason = "which guidance does not have: take guidance=none"
            raise ValueError(f"{type(self).__name__} needs {PROTOCOL_NAMES[self.needs]}, {reason}")

    def begin(self, denoiser: Denoiser | Energy, times: Tensor, noise: Noise) -> Tensor:
        """The noise [B, ...] at times[0] where sampling starts."""
        assert denoiser.schedule is not None
        return denoiser.schedule.alpha_sigma(times[0])[1] * noise.normal(times[0], 0)

    @torch.no_grad()
    def __call__(
        self,
        denoiser: Denoiser | Energy,
        x: Tensor,
        times: Tensor,
        y: Condition | None = None,
        noise: StepNoise | None = None,
        on_step: Callable[[int, Tensor], None] | None = None,
        memory: Memory | None = None,
    ) -> Tensor:
        """Steps x [B, ...] from times[0] to times[-1].

        Arguments:
            times: decreasing float64 CPU tensor of at least two.
            y: class indices [B], -1 = no condition, an Embedding, or None.
            noise: needed where `stochastic`.
            on_step: called with (step index from 1, x) after every step.
            memory: of a run that this call continues, where the denoiser was started; None = this call is the run.

        Raises:
            ValueError: times that are not float64 on the CPU or do not decrease strictly; no noise where it is needed.
        """
        if times.dtype != torch.float64 or times.device.type != "cpu":
            raise ValueError(f"times must be float64 on the CPU, got {times.dtype} on {times.device}")
        check_decreasing(times)
        if self.stochastic and noise is None:
            raise ValueError(f"{type(self).__name__} draws noise: pass noise=Noise(seeds, shape, schedule)")
        source: Any = noise  # None where no step draws any
        run: Any = denoiser if memory is not None else denoiser.start(noise, times)
        skipping = memory is None and isinstance(denoiser, Denoiser)
        memory = {} if memory is None else memory
        for index, (t, s) in enumerate(pairwise(times), start=1):
            if skipping and not run.skips_step(t):
                run = run.without_skipped_steps()
                skipping = False
            fall = run.schedule.noise_fall(t, s) if self.max_fall < math.inf else 1.0
            if not skipping and fall > self.max_fall:
                memory.clear()  # earlier values do not fit a polynomial across a wide step
                x = self.first_order(run(x, t, y), run.schedule, t, s, source)
            elif not skipping:
                shared = SharedIncrement(source) if self.corrects and source is not None else source
                x = self.step(run, x, t, s, y, shared, memory)
                first, plain = memory.pop("first", None), memory.pop("first order", None)
                if self.corrects and fall > MAX_UNCHECKED_FALL:
                    plain = self.first_order(first, run.schedule, t, s, shared) if plain is None else plain
                    x = limit_corrections(x, plain, first, run.schedule, t, s)
                    if "arrived" in memory:  # what the next step corrects
                        memory["arrived"] = x
            if on_step is not None:
                on_step(index, x)
        return x

    def first_order(self, prediction: Prediction, schedule: Schedule, t: Tensor, s: Tensor, noise: StepNoise) -> Tensor:
        """The method's step of first order from the prediction at t; DDIM for methods of the ODE."""
        alpha, sigma = schedule.alpha_sigma(s)
        return alpha * prediction.x_0 + sigma * prediction.eps

    def step(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, y: Condition | None, noise: StepNoise, memory: Memory
    ) -> Tensor:
        """The method as published: x at time s from x at time t > s.

        Where max_fall is finite, so is the log-SNR at both times: other steps are of first order.

        Arguments:
            memory: of this run; a sampler that `corrects` stores its prediction at t there, as "first", and may store its
                step of first order, as "first order".
        """
        raise NotImplementedError


class CompositeSampler(Sampler):
    """The steps of an inner sampler, followed by noise and further steps."""

    stochastic = True

    def __init__(self, inner: Sampler):
        super().__init__(inner.steps, inner.grid)
        self.inner = inner
        self.order, self.off_grid, self.needs = inner.order, inner.off_grid, inner.needs

    def times(self, denoiser: Denoiser | Energy) -> Tensor:
        return self.inner.times(denoiser)


class LawSampler(CompositeSampler):
    """A sampler of the law that guidance names, which begins with noise of that law."""

    def begin(self, denoiser: Denoiser | Energy, times: Tensor, noise: Noise) -> Tensor:
        """Noise of the variance sigma^2 / sum_i w_i, that of a product of powers of noise."""
        tilt = denoiser.tilt() if isinstance(denoiser, Denoiser) else None
        total = 1.0 if tilt is None else sum(power.exponent for power in tilt.powers)
        return super().begin(denoiser, times, noise) / (total if total > 0 else 1.0) ** 0.5


def check_decreasing(times: Tensor) -> None:
    """Raises ValueError for fewer than two times, or times that do not decrease strictly."""
    if times.ndim != 1 or len(times) < 2 or not bool((times[1:] < times[:-1]).all()):
        raise ValueError(f"times must decrease strictly, got {times.tolist()}")
