"""Grids: grid(schedule, steps, levels) -> times, decreasing float64 [steps + 1] on the CPU, from noise to data."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..runtime.ranges import check_range
from ..schedules import Schedule

__all__ = [
    "KARRAS",
    "UNIFORM_LOG_SNR",
    "UNIFORM_T",
    "CustomGrid",
    "Grid",
    "Karras",
    "ModelLevels",
    "Quadratic",
    "UniformLogSNR",
    "UniformT",
    "find_times",
    "karras_levels",
    "snap",
]


def snap(times: Tensor, levels: Tensor | None) -> Tensor:
    """Moves times to the nearest distinct legal levels; None = every time is legal.

    Raises:
        ValueError: more times than levels.
    """
    if levels is None:
        return times
    levels = levels.sort(descending=True).values
    if len(times) > len(levels):
        raise ValueError(
            f"{len(times) - 1} steps need {len(times)} distinct noise levels, this model has {len(levels)}: "
            f"take sampler.steps={len(levels) - 1} at most"
        )
    index = (times[:, None] - levels[None, :]).abs().argmin(dim=1).tolist()
    for k in range(1, len(index)):
        index[k] = max(index[k], index[k - 1] + 1)
    for k in range(len(index)):
        index[k] = min(index[k], len(levels) - len(index) + k)
    return levels[index]


def check_grid(times: Tensor) -> Tensor:
    """The times; raises ValueError if they do not decrease strictly within [0, 1]."""
    if not bool((times[1:] < times[:-1]).all()):
        k = int((~(times[1:] < times[:-1])).nonzero()[0])
        raise ValueError(f"a grid must decrease strictly, this one goes from {times[k]:.6g} to {times[k + 1]:.6g}")
    if not 0 <= times[-1] < times[0] <= 1:
        raise ValueError(f"a grid must lie within t = 1 to 0, this one goes from {times[0]:.6g} to {times[-1]:.6g}")
    return times


def karras_levels(high: float, low: float, count: int, rho: float) -> Tensor:
    """`count` noise levels from high to low with equal steps in their (1 / rho)-th power, float64."""
    ramp = torch.linspace(0, 1, count, dtype=torch.float64)
    return (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho


class Grid:
    """Base of the grids; a subclass defines the continuous times.

    Raises:
        ValueError: from a call: times that do not decrease strictly or leave [0, 1], or a number of steps that the grid
            or the model's levels do not have.
    """

    def __call__(self, schedule: Schedule, steps: int, levels: Tensor | None = None) -> Tensor:
        return snap(check_grid(self.continuous(schedule, steps)), levels)

    def continuous(self, schedule: Schedule, steps: int) -> Tensor:
        """Times for a model without levels of its own, decreasing, float64 [steps + 1]."""
        raise NotImplementedError


def find_times(schedule: Schedule, log_snr: Tensor) -> Tensor:
    """The times of log-SNRs; the ends of the schedule are hit exactly."""
    times = schedule.t_of(log_snr)
    times = torch.where(log_snr == schedule.log_snr_max, 0.0, times)
    return torch.where(log_snr == schedule.log_snr_min, 1.0, times)


class UniformT(Grid):
    """t = 1 - k / steps: what DDPM and DDIM call trailing or linspace spacing, and flow matching's default."""

    def continuous(self, schedule: Schedule, steps: int) -> Tensor:
        return torch.linspace(1, 0, steps + 1, dtype=torch.float64)


UNIFORM_T = UniformT()


class Quadratic(Grid):
    """t = (1 - k / steps)^2. Song, Meng, Ermon 2021, arXiv 2010.02502, appendix D.2 (there from t = 0.8)."""

    def continuous(self, schedule: Schedule, steps: int) -> Tensor:
        return torch.linspace(1, 0, steps + 1, dtype=torch.float64) ** 2


class UniformLogSNR(Grid):
    """Equal steps in log-SNR. Lu et al., "DPM-Solver", 2022, arXiv 2206.00927, section 3.4.

    On discrete betas that end at exact data, the last step jumps from the first level to t = 0.
    """

    def continuous(self, schedule: Schedule, steps: int) -> Tensor:
        low, high = schedule.log_snr_min, schedule.finest_log_snr
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError(
                f"grid=uniform_log_snr needs finite ends, the schedule has log-SNR {low:g} to {high:g}: take another grid, "
                "as sampler/grid=uniform_t, or a finite schedule.log_snr_min and log_snr_max"
            )
        jump = high < schedule.log_snr_max
        times = find_times(schedule, torch.linspace(low, high, steps + (not jump), dtype=torch.float64))
        return torch.cat([times, times.new_zeros(1)]) if jump else times


UNIFORM_LOG_SNR = UniformLogSNR()


class Karras(Grid):
    """Noise levels sigma / alpha with equal steps in their (1 / rho)-th power.

    Karras et al. 2022, arXiv 2206.00364, eq. 5. With `noise_level_min`, the last step jumps from there to t = 0, as in
    the paper, whose schedule ends at sigma = 0; without, the levels reach the schedule's own end.

    Arguments:
        rho: exponent, at least 0.1; 7 in the paper.
        noise_level_min: last noise level before t = 0 (0.002 in the paper); None = the grid ends at t = 0 itself, or on
            discrete betas that end at exact data that of the first level.
        noise_level_max: first noise level; None = the schedule's at t = 1.

    Raises:
        ValueError: from a call: levels outside the schedule, or an infinite end without a level in its place.
    """

    def __init__(self, rho: float = 7.0, noise_level_min: float | None = None, noise_level_max: float | None = None):
        self.rho = check_range("rho", rho, "[0.1, inf)")  # levels to the power 10 are still finite
        self.noise_level_min, self.noise_level_max = noise_level_min, noise_level_max

    def continuous(self, schedule: Schedule, steps: int) -> Tensor:
        ends = schedule.noise_level_range
        finest = math.exp(-schedule.finest_log_snr / 2)
        low = finest if self.noise_level_min is None else float(self.noise_level_min)
        high = ends[1] if self.noise_level_max is None else float(self.noise_level_max)
        if math.isinf(high):
            raise ValueError(
                "grid=karras needs a highest noise level: the schedule ends in noise alone: take sampler/grid=uniform_t, or "
                "set noise_level_max of the grid, and noise_level_min if it also ends in exact data"
            )
        # a level that equals an end up to rounding is that end
        low, high = (end if math.isclose(level, end) else level for level, end in zip((low, high), ends))
        if not ends[0] <= low < high <= ends[1] or not 0 < low or not math.isfinite(high):
            raise ValueError(
                f"grid=karras needs finite positive noise levels within the schedule's {ends[0]:.4g} to {ends[1]:.4g}, "
                f"got {low:.4g} to {high:.4g}; set noise_level_min and noise_level_max, or take sampler/grid=uniform_t"
            )
        jump = low > ends[0]
        log_snr = -2 * karras_levels(high, low, steps if jump else steps + 1, self.rho).log()
        if high == ends[1]:
            log_snr[0] = schedule.log_snr_min
        if not jump:
            log_snr[-1] = schedule.log_snr_max
        times = find_times(schedule, log_snr)
        return torch.cat([times, times.new_zeros(1)]) if jump else times


KARRAS = Karras()


class CustomGrid(Grid):
    """A given list of times or of noise levels sigma / alpha, first to last.

    Arguments:
        times: strictly decreasing within 1 to 0, one more than the sampler has steps; None = use noise_levels.
        noise_levels: strictly decreasing within the schedule's range; None = use times.

    Raises:
        ValueError: both lists or none; from a call: a list of another length, or one with a level that the schedule or the
            model does not have.
    """

    def __init__(self, times: Sequence[float] | None = None, noise_levels: Sequence[float] | None = None):
        if (times is None) == (noise_levels is None):
            raise ValueError("set exactly one of times and noise_levels to a decreasing list")
        self.times, self.noise_levels = times, noise_levels

    def __call__(self, schedule: Schedule, steps: int, levels: Tensor | None = None) -> Tensor:
        times = check_grid(self.continuous(schedule, steps))
        snapped = snap(times, levels)
        if not torch.allclose(snapped, times, rtol=0, atol=1e-9):
            k = int((snapped - times).abs().argmax())
            raise ValueError(
                f"t = {times[k]:.6g} is not a level of this model; the nearest free one is {snapped[k]:.6g}"
            )
        return snapped

    def continuous(self, schedule: Schedule, steps: int) -> Tensor:
        given = torch.tensor(self.noise_levels if self.times is None else self.times, dtype=torch.float64)
        if len(given) != steps + 1:
            raise ValueError(
                f"a list of {len(given)} makes {len(given) - 1} steps: set sampler.steps={len(given) - 1}, got {steps}"
            )
        if self.times is not None:
            return given
        log_snr = -2 * given.log()
        for end in (schedule.log_snr_max, schedule.log_snr_min):  # a level that is an end up to rounding is that end
            near = torch.isclose(log_snr, torch.tensor(end, dtype=torch.float64), rtol=0, atol=1e-9)
            log_snr = torch.where(near, end, log_snr)
        outside = (log_snr.isnan() | (log_snr > schedule.log_snr_max) | (log_snr < schedule.log_snr_min)).nonzero()
        if len(outside):
            low, high = schedule.noise_level_range
            raise ValueError(
                f"noise level {given[outside[0, 0]]:.6g} is outside the schedule's {low:.4g} to {high:.4g}"
            )
        return find_times(schedule, log_snr)


class ModelLevels(Grid):
    """The model's own noise levels: all, or as many as there are steps, evenly spaced in their order.

    Raises:
        ValueError: from a call: a model without levels of its own, or with fewer than the steps need.
    """

    def __call__(self, schedule: Schedule, steps: int, levels: Tensor | None = None) -> Tensor:
        if levels is None:
            raise ValueError("grid=levels needs a model with noise levels of its own, this one is continuous")
        levels = levels.sort(descending=True).values
        index = torch.linspace(0, len(levels) - 1, steps + 1, dtype=torch.float64).round().long()
        return snap(levels[index], levels)
