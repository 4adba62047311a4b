"""Temperature of a model: sharper or wider modes by scaling its noise prediction."""

from collections.abc import Sequence

from torch import Tensor

from ..backbones.conditions import Condition
from ..models.protocols import Denoiser, Prediction, keep_variance
from ..runtime.ranges import check_range
from ..schedules import EVERYWHERE
from .base import ScaledGuidance, per_row

__all__ = ["TemporalScoreRescaling"]


class TemporalScoreRescaling(ScaledGuidance):
    """eps' = r eps, r = (snr std^2 + 1) / (snr std^2 / scale + 1), snr = alpha^2 / sigma^2, and x_0 with it.

    Xu, Wu, Park, Zhou, Tulsiani, "Temporal Score Rescaling for Temperature Sampling in Diffusion and Flow Models", 2025, arXiv
    2510.01184. For data N(m, std^2 I) it is exact: samples have the variance std^2 / scale. For well separated modes of this
    width each mode has, and their weights stay. It needs no condition and no other evaluation.

    Arguments:
        denoiser: any, guided or not.
        scale: k, inverse temperature of each mode, positive: 1 = off, above 1 = sharper, below 1 = wider.
        interval: (lo, hi] in noise level sigma / alpha.
        std: standard deviation of a mode, in the units of the data, positive; larger = it acts at higher noise levels.

    Raises:
        ValueError: a scale or a std that is not positive.
    """

    def __init__(
        self, denoiser: Denoiser, scale: float = 2.0, interval: Sequence[float] = EVERYWHERE, std: float = 1.0
    ):
        super().__init__(denoiser, check_range("scale", scale, "(0, inf)"), interval)
        self.std = check_range("std", std, "(0, inf)")

    def __call__(self, x_t: Tensor, t: Tensor, y: Condition | None = None) -> Prediction:
        side = self.denoiser(x_t, t, y)
        acts = self.acts(t)
        if self.scale == 1 or not bool(acts.any()):
            return side
        # sigma / alpha (r - 1), finite in pure noise
        level, variance = self.schedule.noise_level(t), self.std**2
        change = variance * (1 - 1 / self.scale) / (variance / (self.scale * level) + level) * acts
        snr = self.schedule.log_snr(t).exp()
        more = (variance * snr + 1) / (variance * snr / self.scale + 1) - 1
        eps = side.eps + per_row(more * acts, x_t) * side.eps
        return keep_variance(Prediction(side.x_0 - per_row(change, x_t) * side.eps, eps), side)
