"""Grids: grid(schedule, steps, levels) -> times, decreasing float64 [steps + 1] on the CPU, from noise to data."""

import math

import torch
from torch import Tensor

from ..schedules import Schedule

__all__ = ["Grid", "UniformT", "UniformLogSNR", "Karras", "snap"]


def snap(times: Tensor, levels: Tensor | None) -> Tensor:
    """The times moved to the nearest distinct legal levels; as they are where every time is legal (None).

    Raises:
        ValueError: more times than levels.
    """
    if levels is None:
        return times
    levels = levels.sort(descending=True).values
    if len(times) > len(levels):
        raise ValueError(
            f"{len(times) - 1} steps need {len(times)} distinct noise levels, this model has {len(levels)}"
        )
    index = (times[:, None] - levels[None, :]).abs().argmin(dim=1).tolist()
    for k in range(1, len(index)):
        index[k] = max(index[k], index[k - 1] + 1)
    for k in range(len(index)):
        index[k] = min(index[k], len(levels) - len(index) + k)
    return levels[index]


class Grid:
    """Base of the grids; a subclass says where continuous times lie."""

    def __call__(self, schedule: Schedule, steps: int, levels: Tensor | None = None) -> Tensor:
        return snap(self.continuous(schedule, steps), levels)

    def continuous(self, schedule: Schedule, steps: int) -> Tensor:
        raise NotImplementedError


def along_log_snr(schedule: Schedule, log_snr: Tensor) -> Tensor:
    """The times of log-SNRs from noise to data, the two ends exactly where they are the schedule's own."""
    times = schedule.t_of(log_snr)
    times = torch.where(log_snr == schedule.log_snr_max, 0.0, times)
    return torch.where(log_snr == schedule.log_snr_min, 1.0, times)


class UniformT(Grid):
    """t = 1 - k / steps: what DDPM and DDIM call trailing or linspace spacing, and flow matching's default."""

    def continuous(self, schedule: Schedule, steps: int) -> Tensor:
        return torch.linspace(1, 0, steps + 1, dtype=torch.float64)


class UniformLogSNR(Grid):
    """Equal steps in log-SNR. Lu et al., "DPM-Solver", 2022, arXiv 2206.00927, section 3.4.

    Raises:
        ValueError: a schedule with an infinite end.
    """

    def continuous(self, schedule: Schedule, steps: int) -> Tensor:
        low, high = schedule.log_snr_min, schedule.log_snr_max
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError(f"grid=uniform_log_snr needs finite ends, the schedule has log-SNR {low:g} to {high:g}")
        log_snr = torch.linspace(low, high, steps + 1, dtype=torch.float64)
        return along_log_snr(schedule, log_snr)


class Karras(Grid):
    """Noise levels sigma / alpha with equal steps in their (1 / rho)-th power.

    Karras et al. 2022, arXiv 2206.00364, eq. 5. With `noise_level_min`, the last step jumps from there to t = 0, as in
    the paper, whose schedule ends at sigma = 0; without, the levels reach the schedule's own end.

    Arguments:
        rho: exponent; 7 in the paper.
        noise_level_min: last noise level before t = 0 (0.002 in the paper); None = the grid ends at t = 0 itself.
        noise_level_max: first noise level; None = the schedule's at t = 1.

    Raises:
        ValueError: levels that do not lie within the schedule, or an infinite end without a level in its place.
    """

    def __init__(self, rho: float, noise_level_min: float | None, noise_level_max: float | None):
        if not rho > 0:
            raise ValueError(f"rho must be positive, got {rho}")
        self.rho, self.noise_level_min, self.noise_level_max = float(rho), noise_level_min, noise_level_max

    def continuous(self, schedule: Schedule, steps: int) -> Tensor:
        ends = math.exp(-schedule.log_snr_max / 2), math.exp(-schedule.log_snr_min / 2)
        low = ends[0] if self.noise_level_min is None else float(self.noise_level_min)
        high = ends[1] if self.noise_level_max is None else float(self.noise_level_max)
        # a level that is an end up to rounding is that end
        low, high = (end if math.isclose(level, end) else level for level, end in zip((low, high), ends))
        if not ends[0] <= low < high <= ends[1] or not 0 < low or not math.isfinite(high):
            raise ValueError(
                f"grid=karras needs finite positive noise levels within the schedule's {ends[0]:.4g} to {ends[1]:.4g}, "
                f"got {low:.4g} to {high:.4g}; set noise_level_min and noise_level_max"
            )
        jump = low > ends[0]
        ramp = torch.linspace(0, 1, steps if jump else steps + 1, dtype=torch.float64)
        levels = (high ** (1 / self.rho) + ramp * (low ** (1 / self.rho) - high ** (1 / self.rho))) ** self.rho
        log_snr = -2 * levels.log()
        if high == ends[1]:
            log_snr[0] = schedule.log_snr_min
        if not jump:
            log_snr[-1] = schedule.log_snr_max
        times = along_log_snr(schedule, log_snr)
        return torch.cat([times, times.new_zeros(1)]) if jump else times
