"""Schedules that transform another schedule."""

import math

import torch
from torch import Tensor

from ..runtime.ranges import check_range
from .base import Schedule, as_time, variance_preserving
from .curves import Cosine
from .discrete import Linear

__all__ = ["ResolutionShift", "ZeroTerminalSNR"]


class ResolutionShift(Schedule):
    """log_snr(t) + 2 log(reference / resolution): more noise for larger images. The ends shift too.

    Hoogeboom, Heek, Salimans, "simple diffusion", 2023, arXiv 2301.11093, section 3.1. On the exact `Flow` it is the
    timestep shift of Stable Diffusion 3, t' = s t / (1 + (s - 1) t), s = resolution / reference (Esser et al., 2024,
    arXiv 2403.03206, eq. 23).

    Arguments:
        schedule: the fixed schedule to shift, whose normalisation stays; None = Cosine().
        resolution: side of the images, pixels, positive.
        reference: side of the images that the schedule was made for, pixels, positive; 64 in the paper.
    """

    def __init__(self, schedule: Schedule | None = None, resolution: float = 64, reference: float = 64):
        schedule = Cosine() if schedule is None else schedule
        ratio = check_range("reference", reference, "(0, inf)") / check_range("resolution", resolution, "(0, inf)")
        shift = 2 * math.log(ratio)
        schedule.check_fixed("ResolutionShift")
        super().__init__(schedule.log_snr_max + shift, schedule.log_snr_min + shift)
        self.schedule, self.shift, self.normalisation = schedule, shift, schedule.normalisation

    @property
    def finest_log_snr(self) -> float:
        return self.schedule.finest_log_snr + self.shift

    def log_snr(self, t) -> Tensor:
        return self.schedule.log_snr(t) + self.shift

    def t_of(self, log_snr) -> Tensor:
        return self.schedule.t_of(as_time(log_snr) - self.shift)

    def rate(self, t) -> Tensor:
        return self.schedule.rate(t)


class ZeroTerminalSNR(Schedule):
    """sqrt(abar'(t)) = (a(t) - a(1)) a(f) / (a(f) - a(1)), a = sqrt(abar): no signal at t = 1, unchanged at t = f.

    Lin, Liu, Li, Yang, "Common Diffusion Noise Schedules and Sample Steps are Flawed", 2023, arXiv 2305.08891,
    algorithm 1. Networks that predict eps or the score cannot be used at t = 1.

    Arguments:
        schedule: the fixed, variance-preserving schedule to rescale; None = Linear().
        first: the time f in [0, 1) whose level stays: 1 / T is the first of the paper's T steps, 0 the data end.
    """

    def __init__(self, schedule: Schedule | None = None, first: float = 0.001):
        schedule = Linear() if schedule is None else schedule
        schedule.check_fixed("ZeroTerminalSNR")
        if schedule.normalisation is not variance_preserving:
            raise ValueError(f"schedule must be variance preserving, got {type(schedule).__name__}")
        self.first = check_range("first", first, "[0, 1)")
        kept, lost = signal_and_rest(schedule.log_snr(self.first))
        last, _ = signal_and_rest(schedule.log_snr(1.0))
        self.last = float(last)
        self.factor = float(kept / (kept - last))
        self.excess = float(last * lost / kept)  # 1 - a' = factor (1 - a - excess)
        if not signal_and_rest(schedule.log_snr(0.0))[1] >= self.excess:
            highest = 2 * math.log1p(-self.excess) - math.log(self.excess * (2 - self.excess))
            raise ValueError(
                f"log_snr_max of the schedule must be at most {highest:.4g} with first={first:g}, got "
                f"{schedule.log_snr_max:g}: the rescaled signal would exceed 1"
            )
        super().__init__(float(self.rescale(schedule.log_snr(0.0))), -math.inf)
        self.schedule = schedule

    @property
    def finest_log_snr(self) -> float:
        return float(self.rescale(torch.tensor(self.schedule.finest_log_snr, dtype=torch.float64)))

    def rescale(self, log_snr: Tensor) -> Tensor:
        """The log-SNR of this schedule at a log-SNR of the inner one."""
        alpha, lost = signal_and_rest(log_snr)
        alpha, lost = self.factor * (alpha - self.last), self.factor * (lost - self.excess)
        return 2 * torch.log(alpha) - torch.log(lost) - torch.log1p(alpha)

    def log_snr(self, t) -> Tensor:
        t = as_time(t)
        return self.pin_ends(t, self.rescale(self.schedule.log_snr(t)))

    def t_of(self, log_snr) -> Tensor:
        alpha, lost = signal_and_rest(as_time(log_snr))
        alpha, lost = alpha / self.factor + self.last, lost / self.factor + self.excess
        return self.schedule.t_of(2 * torch.log(alpha) - torch.log(lost) - torch.log1p(alpha))

    def rate(self, t) -> Tensor:
        """By the chain rule through a = sqrt(sigmoid(log_snr)), da = a (1 - a^2) / 2 dlog_snr."""
        before, before_rest = signal_and_rest(self.schedule.log_snr(t))
        after, after_rest = signal_and_rest(self.log_snr(t))
        gain = self.factor * before * before_rest * (1 + before) / (after * after_rest * (1 + after))
        return gain * self.schedule.rate(t)


def signal_and_rest(log_snr: Tensor) -> tuple[Tensor, Tensor]:
    """(a, 1 - a) for a = sqrt(abar), each without cancellation."""
    alpha, sigma = variance_preserving(log_snr)
    return alpha, sigma**2 / (1 + alpha)
