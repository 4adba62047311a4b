"""Contrast guidance: weak + scale (strong - weak), where scale 1 is off and scale 0 is the weak side alone."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..backbones.conditions import Condition, joined, without
from ..denoisers import Denoiser, DenoiserWrapper, Prediction

__all__ = ["ClassifierFree", "Unguided"]


class Unguided(DenoiserWrapper):
    """The conditional denoiser as it is."""

    transparent = True

    def __call__(self, x_t: Tensor, t: Tensor, y: Condition | None = None) -> Prediction:
        return self.denoiser(x_t, t, y)


class ClassifierFree(DenoiserWrapper):
    """D(x_t, null) + scale (D(x_t, y) - D(x_t, null)): the weak side is the same network without its condition.

    Ho & Salimans, "Classifier-Free Diffusion Guidance", 2022, arXiv 2207.12598, eq. 6, with scale = 1 + their w. The
    interval is that of Kynkaanniemi et al., 2024, arXiv 2404.07724, eq. 5. Both sides of the network are one batched
    call; where scale is 1, and outside the interval, the weak side is not evaluated.

    Arguments:
        denoiser: conditional denoiser that was trained with the null condition.
        scale: 1 = off (conditional), 0 = unconditional, above 1 = guided.
        interval: (lo, hi) in noise level sigma / alpha: guidance acts where lo < sigma / alpha <= hi.

    Raises:
        ValueError: a denoiser without condition or without a null condition, an interval with lo >= hi.
    """

    needs_null = True

    def __init__(self, denoiser: Denoiser, scale: float, interval: Sequence[float]):
        super().__init__(denoiser)
        if not denoiser.conditional:
            raise ValueError("guidance=cfg needs a conditional model, and this one has no classes; take guidance=none")
        if not denoiser.has_null:
            raise ValueError(
                "guidance=cfg needs a model that also learned to work without its condition, and this one never dropped "
                "its label; train with guidance=cfg (p_uncond=0.1), or take guidance=none"
            )
        if not math.isfinite(scale):
            raise ValueError(f"scale must be a finite number, got {scale}")
        if len(interval) != 2 or not 0 <= interval[0] < interval[1]:
            raise ValueError(f"interval must be a pair 0 <= lo < hi of noise levels sigma/alpha, got {list(interval)}")
        self.scale, self.interval = float(scale), (float(interval[0]), float(interval[1]))

    def scale_at(self, t: Tensor) -> Tensor:
        """The scale inside the interval, 1 outside; float64 in the shape of t."""
        low, high = self.interval
        level = self.schedule.noise_level(t)
        return torch.where(
            (low < level) & (level <= high), level.new_tensor(self.scale), 1.0
        )  # float64, unlike 2 numbers

    def __call__(self, x_t: Tensor, t: Tensor, y: Condition | None = None) -> Prediction:
        scale = self.scale_at(t)
        if y is None or (scale.ndim == 0 and scale == 1):
            return self.denoiser(x_t, t, y)
        null = without(y)
        if scale.ndim == 0 and scale == 0:
            return self.denoiser(x_t, t, null)
        both = self.denoiser(torch.cat([x_t, x_t]), torch.cat([t, t]) if t.ndim else t, joined([y, null]))
        sides = [field.chunk(2) for field in both]
        if scale.ndim == 0:
            return Prediction(*(weak + scale * (strong - weak) for strong, weak in sides))
        scale = scale.to(x_t).reshape(-1, *[1] * (x_t.ndim - 1))
        mixed = (torch.where(scale == 1, strong, weak + scale * (strong - weak)) for strong, weak in sides)
        return Prediction(*mixed)
