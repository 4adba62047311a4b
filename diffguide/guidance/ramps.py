"""Ramps: the strength of guidance at each noise level.

    scale at a level = 1 + (scale - 1) r(level),    r = 1 full guidance, r = 0 the strong prediction alone

(for CFG++ scale r, the unconditional model at r = 0). The argument is the log noise level log(sigma / alpha), minus half
the log-SNR.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..runtime.ranges import check_finite, check_range

__all__ = [
    "Constant",
    "CosineRamp",
    "ExponentialRamp",
    "LinearRamp",
    "PowerRamp",
    "Ramp",
    "TableRamp",
    "TriangleRamp",
]


class Ramp:
    """ramp(log_level) -> factor r, float64, in the shape of log_level.

    Attributes:
        always_full: whether r is 1 at every level.
        of_whole_scale: whether the scale is multiplied, scale r, in place of scale - 1.
    """

    always_full = of_whole_scale = False

    def __call__(self, log_level: Tensor) -> Tensor:
        raise NotImplementedError

    def check(self, low: float, high: float) -> None:
        """Raises ValueError if the ramp is undefined at a noise level from low to high."""


class Constant(Ramp):
    """r = 1: the same scale everywhere."""

    always_full = True

    def __call__(self, log_level: Tensor) -> Tensor:
        return torch.ones_like(log_level)


class LinearRamp(Ramp):
    """r = u: u rises from 0 to 1 linearly in the log-SNR between two noise levels, and is constant beyond them.

    Wang, Dufour et al., "Analysis of Classifier-Free Guidance Weight Schedulers", 2024, arXiv 2404.13040, whose
    schedules are in time; in log-SNR they mean the same on every noise schedule.

    Arguments:
        start: noise level sigma / alpha where guidance starts, positive.
        full: noise level of full guidance, positive; below or above `start`.
    """

    def __init__(self, start: float = 80.0, full: float = 0.5):
        if not (0 < start < math.inf and 0 < full < math.inf and start != full):
            raise ValueError(
                f"start and full must be two different positive noise levels sigma/alpha, got {start} and {full}"
            )
        self.start, self.full = math.log(start), math.log(full)

    def progress(self, log_level: Tensor) -> Tensor:
        """u in [0, 1]."""
        return ((log_level - self.start) / (self.full - self.start)).clamp(0, 1)

    def __call__(self, log_level: Tensor) -> Tensor:
        return self.progress(log_level)


class CosineRamp(LinearRamp):
    """r = (1 - cos(pi u)) / 2, u as in `LinearRamp`; arXiv 2404.13040."""

    def __call__(self, log_level: Tensor) -> Tensor:
        return (1 - torch.cos(math.pi * self.progress(log_level))) / 2


class PowerRamp(LinearRamp):
    """r = u^exponent, u as in `LinearRamp`; arXiv 2404.13040.

    Arguments:
        start, full: as in `LinearRamp`.
        exponent: positive; 1 = linear.
    """

    def __init__(self, start: float = 80.0, full: float = 0.5, exponent: float = 2.0):
        super().__init__(start, full)
        self.exponent = check_range("exponent", exponent, "(0, inf)")

    def __call__(self, log_level: Tensor) -> Tensor:
        return self.progress(log_level) ** self.exponent


class TriangleRamp(Ramp):
    """r = 2 u / (1 - peak) up to u = 1 - peak, 2 (1 - u) / peak from there on: 0 at both ends, 2 at the peak, 1 on average.

    u = 1 - sigma / (alpha + sigma) is the way of a flow from noise to data, the same on every schedule at equal log-SNR. Jin,
    Shi, Gu, "Stage-wise Dynamics of Classifier-Free Guidance in Diffusion Models", ICLR 2026, arXiv 2509.22007, TV-CFG: the
    scale is 1 at both ends and 2 scale - 1 at the peak, and its mean over the time of the flow is the scale.

    Arguments:
        peak: time of the flow (1 = noise) at the peak, in (0, 1); 0.5 in the paper, where sigma = alpha.
    """

    def __init__(self, peak: float = 0.5):
        self.peak = check_range("peak", peak, "(0, 1)")

    def __call__(self, log_level: Tensor) -> Tensor:
        time = torch.sigmoid(log_level)
        return 2 * torch.minimum((1 - time) / (1 - self.peak), time / self.peak)


class ExponentialRamp(Ramp):
    """scale exp(rate (1 - time)), time = sigma / (alpha + sigma): the whole scale grows from pure noise to the data.

    Gao et al., "C2FG: Control Classifier-Free Guidance via Score Discrepancy Analysis", CVPR 2026, arXiv 2603.08155, where time
    is that of the model, over its largest; that of a flow means the same on every schedule.

    Arguments:
        rate: lambda; 0 = the same scale everywhere, log 2 doubles it at the data (DiT), 1 for SiT, 0.2 for Stable Diffusion.
    """

    of_whole_scale = True

    def __init__(self, rate: float = 0.6931):
        self.rate = check_finite("rate", rate)

    def __call__(self, log_level: Tensor) -> Tensor:
        return torch.exp(self.rate * torch.sigmoid(-log_level))


class TableRamp(Ramp):
    """r from pairs (noise level, factor), linear in the log noise level between them.

    Arguments:
        pairs: [noise level sigma / alpha, factor] each, at least two, levels positive and strictly increasing.

    Raises:
        ValueError: from `check`, noise levels outside the table.
    """

    def __init__(self, pairs: Sequence[Sequence[float]] = ((0.0001, 1.0), (1.0, 1.0), (1000.0, 0.0))):
        if len(pairs) < 2 or any(len(pair) != 2 for pair in pairs):
            raise ValueError(f"pairs must be at least two [noise level, factor], got {[list(pair) for pair in pairs]}")
        levels, factors = zip(*pairs)
        increasing = all(low < high for low, high in zip(levels, levels[1:]))
        if not (0 < levels[0] and levels[-1] < math.inf and increasing and all(map(math.isfinite, factors))):
            raise ValueError(
                "pairs must have positive noise levels that increase strictly, and finite factors, got "
                f"{[list(pair) for pair in pairs]}"
            )
        self.levels = torch.tensor(levels, dtype=torch.float64)
        self.factors = torch.tensor(factors, dtype=torch.float64)

    def check(self, low: float, high: float) -> None:
        first, last = float(self.levels[0]), float(self.levels[-1])
        if not first * (1 - 1e-9) <= low < high <= last * (1 + 1e-9):
            raise ValueError(
                f"the ramp's pairs cover noise levels {first:.6g} to {last:.6g}, guidance acts from {low:.6g} to {high:.6g}: "
                "extend pairs, or narrow guidance.interval"
            )

    def __call__(self, log_level: Tensor) -> Tensor:
        levels = self.levels.log().to(log_level.device)
        factors = self.factors.to(log_level.device)
        above = torch.searchsorted(levels, log_level).clamp(1, len(levels) - 1)
        low, high = levels[above - 1], levels[above]
        u = ((log_level - low) / (high - low)).clamp(0, 1)
        return torch.lerp(factors[above - 1], factors[above], u)
