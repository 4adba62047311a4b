"""Guidance away from what the same run predicted before: without a second evaluation, a condition, or a null condition.

A level at which the network is evaluated counts as a step of the history, see `LevelMemory`. Where t rises (churn, restarts,
time travel) the history begins anew. It is kept outside the interval too, where nothing is guided.
"""

import math
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from ..backbones.conditions import Condition
from ..models.protocols import Denoiser, Prediction, keep_variance
from ..randomness import Noise
from ..runtime.ranges import check_finite, check_range
from ..schedules import EVERYWHERE
from .base import ScaledGuidance
from .flow_rules import compute_flow, flow_time, shift_flow
from .memories import LevelMemory
from .rules import damp_along, norm, replace_x_0

__all__ = ["HiGS", "HistoryGuidance", "MomentumGuidance"]


class HistoryGuidance(ScaledGuidance):
    """A contrast whose weak side is an average of the run's own predictions at earlier noise levels.

    Outside a run, and at its first level, the prediction is that of the denoiser. A subclass says what is remembered.

    Arguments:
        denoiser: any, guided or not; it needs no condition.
        scale: 1 = off.
        interval: (lo, hi] in noise level sigma / alpha.
    """

    stateful = True

    def __init__(self, denoiser: Denoiser, scale: float, interval: Sequence[float]):
        super().__init__(denoiser, scale, interval)
        self.memory: LevelMemory | None = None

    def start(self, noise: Noise | None, times: Tensor) -> Self:
        fresh = super().start(noise, times)
        fresh.memory = LevelMemory()
        return fresh

    def read(self, side: Prediction) -> Tensor:
        """What is averaged over the levels."""
        raise NotImplementedError

    def average(self, now: Tensor, before: Tensor | None) -> Tensor:
        """The average with `now` in it; None = there are no earlier levels."""
        raise NotImplementedError

    def guide(self, side: Prediction, now: Tensor, past: Tensor, t: Tensor) -> Prediction:
        """The prediction led away from the average of the past."""
        raise NotImplementedError

    def __call__(self, x_t: Tensor, t: Tensor, y: Condition | None = None) -> Prediction:
        side = self.denoiser(x_t, t, y)
        if self.scale == 1 or self.memory is None:
            return side
        if t.ndim:
            raise ValueError(
                f"{type(self).__name__} depends on earlier noise levels, so all samples must have the same one: take a sampler "
                "with one grid for all samples"
            )
        now, before = self.read(side), self.memory.recall(t, len(x_t))
        past = None if before is None else before[0]
        self.memory.store(self.average(now, past))
        if past is None or not self.acts(t):
            return side
        return keep_variance(self.guide(side, now, past, t), side)


class MomentumGuidance(HistoryGuidance):
    """u + (scale - 1) (u - m), m <- (1 - decay) u + decay m, of the velocity u = eps - x_0 of the flow; m = u at first.

    Liao, Yu, Su, Zhang, Chen, Liu, "Momentum Guidance: Plug-and-Play Guidance for Flow Models", 2026, arXiv 2602.20360,
    algorithm 1, eq. 12 and 13, with scale = 1 + their alpha. A flow at equal log-SNR has the same u, so it is the same
    guidance on every schedule.

    Arguments:
        denoiser: any, guided or not; it needs no condition.
        scale: 1 = off, 1 + alpha of the paper.
        interval: (lo, hi] in noise level sigma / alpha where it acts.
        decay: beta, in [0, 1): 0 = the previous level alone.
        normalised: whether m is scaled to |u| (section 8.2 of the paper, for large models).
    """

    def __init__(
        self,
        denoiser: Denoiser,
        scale: float = 1.5,
        interval: Sequence[float] = EVERYWHERE,
        decay: float = 0.6,
        normalised: bool = False,
    ):
        super().__init__(denoiser, scale, interval)
        self.decay, self.normalised = check_range("decay", decay, "[0, 1)"), normalised

    def read(self, side: Prediction) -> Tensor:
        return compute_flow(side)

    def average(self, now: Tensor, before: Tensor | None) -> Tensor:
        return now if before is None else (1 - self.decay) * now + self.decay * before

    def guide(self, side: Prediction, now: Tensor, past: Tensor, t: Tensor) -> Prediction:
        if self.normalised:
            past = norm(now) / norm(past).clamp(min=torch.finfo(past.dtype).tiny) * past
        return shift_flow(side, (self.scale - 1) * (now - past), flow_time(t, self.schedule, now))


HIGS_INTERVAL = (2 / 3, 19.0)  # 0.4 and 0.95 of a flow's time


class HiGS(HistoryGuidance):
    """x_0 + w H(across + eta along), of d = x_0 - g along and across x_0, g <- share x_0 + (1 - share) g, g = 0 at first.

        w = (scale - 1) sqrt((time - t_0) / (t_1 - t_0)),    time = sigma / (alpha + sigma), t_0 and t_1 those of the interval

    H keeps high spatial frequencies: the discrete cosine transform of d is multiplied by sigmoid(50 (R - cutoff)), R =
    sqrt(u^2 + v^2) for the frequencies u, v in [0, 1) of rows and columns. Data that are no images are not filtered. Sadat,
    Salehi, Weber, "HiGS: History-Guided Sampling for Plug-and-Play Enhancement of Diffusion Models", ICLR 2026, arXiv
    2509.22300, eq. 6 and 8, algorithms 2 and 3.

    Arguments:
        denoiser: any, guided or not; it needs no condition.
        scale: 1 = off, 1 + w of the paper.
        interval: (lo, hi] in noise level sigma / alpha where it acts; 2/3 to 19 is 0.4 to 0.95 of a flow's time.
        share: alpha, of the present in the average, in (0, 1].
        eta: share that remains of the part of d along x_0; 1 = all of it.
        cutoff: R_c, frequency below which nothing is guided; None = no filter.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        scale: float = 3.0,
        interval: Sequence[float] = HIGS_INTERVAL,
        share: float = 0.75,
        eta: float = 1.0,
        cutoff: float | None = 0.05,
    ):
        super().__init__(denoiser, scale, interval)
        self.share, self.eta = check_range("share", share, "(0, 1]"), check_finite("eta", eta)
        self.cutoff = None if cutoff is None else check_finite("cutoff", cutoff)

    def read(self, side: Prediction) -> Tensor:
        return side.x_0

    def average(self, now: Tensor, before: Tensor | None) -> Tensor:
        return self.share * now + (0 if before is None else (1 - self.share) * before)

    def guide(self, side: Prediction, now: Tensor, past: Tensor, t: Tensor) -> Prediction:
        d = damp_along(now - past, now, self.eta)
        if self.cutoff is not None and d.ndim == 4:
            d = keep_high_frequencies(d, self.cutoff)
        low, high = (1.0 if math.isinf(level) else level / (1 + level) for level in self.interval)
        share = (flow_time(t, self.schedule, d) - low) / (high - low)
        return replace_x_0(side, now + (self.scale - 1) * share.clamp(0, 1).sqrt() * d, t, self.schedule)


SHARPNESS = 50.0  # of the edge of the filter of HiGS


def keep_high_frequencies(x: Tensor, cutoff: float) -> Tensor:
    """Images [B, C, H, W] whose cosine transform is multiplied by sigmoid(50 (R - cutoff)), R = sqrt(u^2 + v^2)."""
    rows, columns = (cosine_basis(side, x) for side in x.shape[2:])
    u, v = (torch.arange(side, device=x.device, dtype=x.dtype) / side for side in x.shape[2:])
    kept = torch.sigmoid(SHARPNESS * (torch.hypot(u[:, None], v) - cutoff))
    return rows.mT @ (kept * (rows @ x @ columns.mT)) @ columns


def cosine_basis(side: int, like: Tensor) -> Tensor:
    """The orthonormal matrix of the cosine transform (DCT-II), [side, side], in the precision of `like`."""
    index = torch.arange(side, dtype=torch.float64)
    basis = torch.cos(math.pi / side * (index + 0.5) * index[:, None]) * math.sqrt(2 / side)
    basis[0] /= math.sqrt(2)
    return basis.to(like)
