"""Time travel: a step, the noise it removed put back, and the step once more."""

from collections.abc import Sequence

from torch import Tensor

from ..models.protocols import Denoiser
from ..randomness import Noise
from .ancestral import transition_variance
from .base import Sampler
from .restart import Visit

__all__ = ["TimeTravel"]


class TimeTravel(Sampler):
    """Every step from t to s in an interval of noise levels is undone by noise and repeated, `repeats` times.

        x_t = (alpha_t / alpha_s) x_s + sqrt(Var[x_t | x_s]) z, then the inner sampler's step from t to s

    Lugmayr et al., "RePaint", 2022, arXiv 2201.09865, algorithm 1 (with jumps of one step); the time travel of Yu et al.,
    "FreeDoM", 2023, arXiv 2303.09833, algorithm 2; the self-recurrence of universal guidance, arXiv 2302.07121, and of TFG,
    arXiv 2409.15761. With exact steps it keeps the law: it gives guidance time to act. The step to sigma = 0 is not
    repeated (RePaint's t > 1). A multistep sampler forgets at every repetition what it remembered of the other path.

    Arguments:
        inner: the sampler; brings steps and grid.
        repeats: how often each such step is repeated, 1 to 1000; their r or k is 1 more.
        interval: (lo, hi) in noise level sigma / alpha: a step from t is repeated where lo < sigma_t / alpha_t <= hi.

    Raises:
        ValueError: repeats out of range, an empty interval, an inner TimeTravel; from `times`, an interval that holds no step
            of the grid.
    """

    stochastic = True

    def __init__(self, inner: Sampler, repeats: int, interval: Sequence[float]):
        super().__init__(inner.steps, inner.grid)
        if isinstance(inner, TimeTravel):
            raise ValueError("inner must not be a TimeTravel: raise its repeats instead")
        if not 1 <= repeats <= 1000:
            raise ValueError(f"repeats must be 1 to 1000, got {repeats}")
        if len(interval) != 2 or not 0 <= interval[0] < interval[1]:
            raise ValueError(f"interval must be a pair 0 <= lo < hi of noise levels sigma/alpha, got {list(interval)}")
        self.inner, self.repeats = inner, repeats
        self.interval = (float(interval[0]), float(interval[1]))
        self.order, self.off_grid, self.needs = inner.order, inner.off_grid, inner.needs

    def times(self, denoiser: Denoiser) -> Tensor:
        times = self.inner.times(denoiser)
        levels = denoiser.schedule.noise_level(times[:-1])
        if not any(map(self.travels, levels)):
            raise ValueError(
                f"interval must hold a step of the grid, whose noise levels are {float(levels[-1]):.4g} to "
                f"{float(levels[0]):.4g}, got {list(self.interval)}"
            )
        return times

    def travels(self, level: Tensor) -> bool:
        """Whether a step from this noise level is repeated."""
        return bool(self.interval[0] < level <= self.interval[1])

    def step(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, y: Tensor | None, noise: Noise | None, memory: dict
    ) -> Tensor:
        x = self.inner.advance(denoiser, x, t, s, y, noise, memory)
        schedule = denoiser.schedule
        alpha, sigma = schedule.alpha_sigma(s)
        if self.travels(schedule.noise_level(t)) and sigma > 0:
            ratio = schedule.alpha_sigma(t)[0] / alpha
            spread = transition_variance(schedule, t, s).sqrt()
            for number in range(self.repeats):
                again = Visit(noise, number)
                memory.clear()
                x = self.inner.advance(denoiser, ratio * x + spread * again.normal(t, -1), t, s, y, again, memory)
            memory.clear()
        return x
