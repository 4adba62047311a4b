"""Restart sampling: noise is added within given intervals of noise levels, and removed again."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..backbones.conditions import Condition
from ..models.protocols import Denoiser, Energy
from .ancestral import transition_variance
from .base import CompositeSampler, Memory, Sampler
from .grids import find_times, karras_levels, snap
from .heun import Heun
from .noise import StepNoise, VisitNoise

__all__ = ["Restart"]

LEVEL_TOLERANCE = 1e-9  # relative: a level that equals one of the grid's up to rounding is that level


class Restart(CompositeSampler):
    """At the lower end of an interval of noise levels, noise is added up to its upper end and removed again, K times.

        x_high = (alpha_high / alpha_low) x_low + sqrt(Var[x_high | x_low]) z, then the inner sampler back to x_low

    Xu, Deng, Cheng, Tian, Liu, Jaakkola, "Restart Sampling for Improving Generative Processes", 2023, arXiv 2306.14878,
    algorithm 1, whose {i: [N, K, t_min, t_max]} is an interval [t_min, t_max, N, K] here. A restart begins and ends at the
    first grid time at or below the lower end; its way down has Karras' levels with exponent 7.

    Arguments:
        inner: the sampler, Heun's method in the paper, with its steps and grid; None = `Heun()`.
        intervals: [low, high, steps, repeats] each: noise levels sigma / alpha with 0 < low < high, and whole numbers of
            at least 1.

    Raises:
        ValueError: an inner Restart; from `times`, an interval outside the grid.
    """

    def __init__(self, inner: Sampler | None = None, intervals: Sequence[Sequence[float]] = ((0.06, 0.3, 2, 3),)):
        inner = Heun() if inner is None else inner
        super().__init__(inner)
        if isinstance(inner, Restart):
            raise ValueError("inner must not be a Restart: list all of its intervals in one")
        for interval in intervals:
            if len(interval) != 4 or not 0 < interval[0] < interval[1]:
                raise ValueError(f"intervals must be [low, high, steps, repeats], 0 < low < high, got {list(interval)}")
            if any(not 1 <= count <= 1000 or count != int(count) for count in interval[2:]):
                raise ValueError(
                    f"intervals must have whole steps and repeats from 1 to 1000, got {list(interval[2:])}"
                )
        if not intervals:
            raise ValueError("intervals is empty: set at least one [low, high, steps, repeats]")
        self.intervals = [(float(low), float(high), int(n), int(k)) for low, high, n, k in intervals]

    @torch.no_grad()
    def times(self, denoiser: Denoiser | Energy) -> Tensor:
        times = super().times(denoiser)
        assert denoiser.schedule is not None
        last, first = denoiser.schedule.noise_level(times[[-1, 0]]).tolist()
        for low, high, _, _ in self.intervals:
            if not last * (1 - LEVEL_TOLERANCE) <= low < high <= first * (1 + LEVEL_TOLERANCE):
                raise ValueError(
                    f"intervals must lie within the grid's noise levels {last:.4g} to {first:.4g}, got {low:g} to {high:g}"
                )
        return times

    def step(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, y: Condition | None, noise: StepNoise, memory: Memory
    ) -> Tensor:
        x = self.inner(denoiser, x, torch.stack([t, s]), y, noise, memory=memory)
        above = denoiser.schedule.noise_level(t)
        here = denoiser.schedule.noise_level(s)
        visit = 0
        for low, high, steps, repeats in self.intervals:
            if here <= low * (1 + LEVEL_TOLERANCE) < above:
                times = self.find_visit_times(denoiser, s, high, steps)
                for number in range(visit, visit + repeats):
                    x = self.visit(denoiser, x, times, y, VisitNoise(noise, number))
                memory.clear()  # values of another path
            visit += repeats
        return x

    def find_visit_times(self, denoiser: Denoiser, s: Tensor, high: float, steps: int) -> Tensor:
        """Times from the noise level `high` down to s itself."""
        schedule = denoiser.schedule
        levels = karras_levels(high, float(schedule.noise_level(s)), steps + 1, 7.0)
        times = find_times(schedule, -2 * levels.log()).clamp(max=1)
        if denoiser.levels is not None:
            legal = denoiser.levels[denoiser.levels >= s]
            top = legal[(legal - times[0]).abs().argmin()]
            times = snap(times, legal[legal <= top])
        return torch.cat([times[:-1], s[None]])

    def visit(self, denoiser: Denoiser, x: Tensor, times: Tensor, y: Condition | None, noise: VisitNoise) -> Tensor:
        """x at times[-1], up to times[0] and back."""
        schedule = denoiser.schedule
        top = times[0]
        s = times[-1]
        ratio = schedule.alpha_sigma(top)[0] / schedule.alpha_sigma(s)[0]
        x = ratio * x + transition_variance(schedule, top, s).sqrt() * noise.normal(top, -1)
        return self.inner(denoiser, x, times, y, noise, memory={})
