"""Noise-level distributions: which times an objective trains on.

levels(schedule, n, rng) -> (t [n], density [n]), both float64 on the device of rng. The density is that of log_snr(t) with
respect to log-SNR; importance weights and the likelihood weight divide by it. Draws beyond the schedule are clamped to its
ends, where their density is infinite.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..randomness import Share, normal, uniform
from ..runtime.ranges import check_range
from ..schedules import Schedule

__all__ = ["UNIFORM_TIME", "LogNormal", "LogitNormal", "NoiseLevels", "UniformLogSNR", "UniformTime", "draw_uniform"]


class NoiseLevels:
    """Base of the noise-level distributions.

    Attributes:
        in_time: whether t is drawn, and not log_snr.
    """

    in_time = True

    def check(self, schedule: Schedule) -> None:
        """Raises ValueError for a schedule that the distribution cannot be used with."""

    def __call__(self, schedule: Schedule, n: int, rng: torch.Generator | Share) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def importance(self, t: Tensor) -> Tensor:
        """Factors of the losses, [n]: 1, unless times are drawn from another density than the returned one."""
        return torch.ones_like(t)

    def observe(self, t: Tensor, loss: Tensor, rng: torch.Generator | Share) -> None:
        """Records the losses [n] of times in a training step, before `importance`."""

    def finish_step(self, gather: Callable[[Tensor], Tensor]) -> None:
        """Updates the distribution from the recorded losses; `gather` stacks a tensor over the devices."""


def draw_uniform(n: int, rng: torch.Generator | Share, stratified: bool) -> Tensor:
    """n numbers uniform on [0, 1), float64; stratified: (u + i / n) mod 1 with one u for the whole batch."""
    if not stratified:
        return uniform((n,), rng, torch.float64)
    first, total = (rng.first, rng.total) if isinstance(rng, Share) else (0, n)
    place = torch.arange(first, first + n, device=rng.device, dtype=torch.float64)
    return (uniform((), rng, torch.float64) + place / total) % 1


class UniformTime(NoiseLevels):
    """t uniform on [0, 1], density 1 / |d log_snr / dt|.

    Arguments:
        stratified: whether the n times share one offset, t_i = (u + i / n) mod 1: each is uniform, and they are evenly
            spread (Kingma et al. 2021, arXiv 2107.00630, appendix I.1).
    """

    def __init__(self, stratified: bool = True):
        self.stratified = bool(stratified)

    def __call__(self, schedule: Schedule, n: int, rng: torch.Generator | Share) -> tuple[Tensor, Tensor]:
        t = draw_uniform(n, rng, self.stratified)
        return t, 1 / schedule.rate(t).abs()


UNIFORM_TIME = UniformTime()


class UniformLogSNR(NoiseLevels):
    """log_snr uniform between the ends of the schedule, independent of its curve.

    Kingma & Gao 2023, arXiv 2303.00848, section 2.

    Arguments:
        stratified: as for `UniformTime`.
    """

    in_time = False

    def __init__(self, stratified: bool = True):
        self.stratified = bool(stratified)

    def check(self, schedule: Schedule) -> None:
        high, low = schedule.log_snr_max, schedule.log_snr_min
        if math.isinf(high) or math.isinf(low):
            raise ValueError(
                f"levels=uniform_log_snr needs a schedule with finite ends, got log_snr {low:g} to {high:g}"
            )

    def __call__(self, schedule: Schedule, n: int, rng: torch.Generator | Share) -> tuple[Tensor, Tensor]:
        high, low = schedule.log_snr_max, schedule.log_snr_min
        log_snr = high + (low - high) * draw_uniform(n, rng, self.stratified)
        return schedule.t_of(log_snr).clamp(0, 1), torch.full_like(log_snr, 1 / (high - low))


class LogNormal(NoiseLevels):
    """log(sigma / alpha) normal, so log_snr ~ N(-2 mean, (2 std)^2), clamped to the ends of the schedule.

    Karras et al. 2022, arXiv 2206.00364, table 1.

    Arguments:
        mean, std: of the natural logarithm of the noise level sigma / alpha; the paper has -1.2 and 1.2.
    """

    in_time = False

    def __init__(self, mean: float = -1.2, std: float = 1.2):
        self.mean = float(mean)
        self.std = check_range("std", std, "(0, inf)")

    def __call__(self, schedule: Schedule, n: int, rng: torch.Generator | Share) -> tuple[Tensor, Tensor]:
        z = normal((n,), rng, torch.float64)
        log_snr = -2 * (self.mean + self.std * z)
        density = torch.exp(-(z**2) / 2) / (2 * self.std * math.sqrt(2 * math.pi))
        inside = (log_snr < schedule.log_snr_max) & (log_snr > schedule.log_snr_min)
        t = schedule.t_of(log_snr.clamp(schedule.log_snr_min, schedule.log_snr_max)).clamp(0, 1)
        return t, torch.where(inside, density, math.inf)


class LogitNormal(NoiseLevels):
    """log(t / (1 - t)) normal: the times of Stable Diffusion 3, most in the middle; suits schedule=flow.

    Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", 2024, arXiv 2403.03206, eq. 19.

    Arguments:
        mean, std: of the logit of t; 0 and 1 in the paper, a positive mean for more noise.
    """

    def __init__(self, mean: float = 0.0, std: float = 1.0):
        self.mean = float(mean)
        self.std = check_range("std", std, "(0, inf)")

    def __call__(self, schedule: Schedule, n: int, rng: torch.Generator | Share) -> tuple[Tensor, Tensor]:
        z = normal((n,), rng, torch.float64)
        t = torch.sigmoid(self.mean + self.std * z)
        of_time = torch.exp(-(z**2) / 2) / (self.std * math.sqrt(2 * math.pi) * t * (1 - t))
        density = of_time / schedule.rate(t).abs()
        return t, torch.where((t == 0) | (t == 1), math.inf, density)  # rounded to an end, as a clamped level is
