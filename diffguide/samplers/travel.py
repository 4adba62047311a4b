"""Time travel: after a step its noise is added again, and the step repeated."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..backbones.conditions import Condition
from ..models.protocols import Denoiser, Energy
from ..runtime.ranges import check_whole
from ..schedules import EVERYWHERE, Interval
from .ancestral import DDPM, transition_variance
from .base import CompositeSampler, Memory, Sampler
from .noise import StepNoise, VisitNoise

__all__ = ["TimeTravel"]


class TimeTravel(CompositeSampler):
    """After a step from t to s in an interval of noise levels, noise is added up to t and the step repeated, `repeats` times.

        x_t = (alpha_t / alpha_s) x_s + sqrt(Var[x_t | x_s]) z, then the inner sampler's step from t to s

    Lugmayr et al., "RePaint", 2022, arXiv 2201.09865, algorithm 1 (with jumps of one step); the time travel of Yu et al.,
    "FreeDoM", 2023, arXiv 2303.09833, algorithm 2; the self-recurrence of universal guidance, arXiv 2302.07121, and of TFG,
    arXiv 2409.15761. Exact steps keep the distribution, and guidance acts more often. The step to sigma = 0 is not
    repeated (RePaint's t > 1). A multistep sampler clears its history at every repetition.

    Arguments:
        inner: the sampler, with its steps and grid; None = `DDPM()`.
        repeats: repetitions of a step, 1 to 1000; r or k of the papers is repeats + 1.
        interval: (lo, hi] in noise level sigma / alpha of the steps that are repeated.

    Raises:
        ValueError: an inner TimeTravel; from `times`, an interval that contains no step of the grid.
    """

    def __init__(self, inner: Sampler | None = None, repeats: int = 1, interval: Sequence[float] = EVERYWHERE):
        inner = DDPM() if inner is None else inner
        super().__init__(inner)
        if isinstance(inner, TimeTravel):
            raise ValueError("inner must not be a TimeTravel: raise its repeats instead")
        self.repeats = check_whole("repeats", repeats, 1, 1000)
        self.interval = Interval.of(interval)

    def times(self, denoiser: Denoiser | Energy) -> Tensor:
        times = super().times(denoiser)
        assert denoiser.schedule is not None
        levels = denoiser.schedule.noise_level(times[:-1])
        if not self.interval.contains(levels).any():
            raise ValueError(
                f"interval must hold a step of the grid, whose noise levels are {float(levels[-1]):.4g} to "
                f"{float(levels[0]):.4g}, got {list(self.interval)}"
            )
        return times

    def step(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, y: Condition | None, noise: StepNoise, memory: Memory
    ) -> Tensor:
        schedule = denoiser.schedule
        times = torch.stack([t, s])
        x = self.inner(denoiser, x, times, y, noise, memory=memory)
        alpha, sigma = schedule.alpha_sigma(s)
        if self.interval.contains(schedule.noise_level(t)) and sigma > 0:
            ratio = schedule.alpha_sigma(t)[0] / alpha
            spread = transition_variance(schedule, t, s).sqrt()
            for number in range(self.repeats):
                again = VisitNoise(noise, number)
                memory.clear()
                x = self.inner(denoiser, ratio * x + spread * again.normal(t, -1), times, y, again, memory=memory)
            memory.clear()
        return x
