"""What all guidance shares: its scale, the interval where it acts, and numbers per row."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..backbones.conditions import Condition, Embedding
from ..models.protocols import Denoiser, DenoiserWrapper, SamplingError
from ..schedules import Interval, broadcast_rows

__all__ = [
    "ScaledGuidance",
    "check_scale",
    "check_uncompiled",
    "has_condition",
    "per_row",
    "per_row_float",
    "repeat_noise",
]


class ScaledGuidance(DenoiserWrapper):
    """Guidance with a scale that acts in an interval of noise levels.

    Arguments:
        denoiser: what is guided.
        scale: how strong, any finite number.
        interval: (lo, hi] in noise level sigma / alpha.

    Raises:
        ValueError: a scale that is not finite, an interval with lo >= hi.
    """

    def __init__(self, denoiser: Denoiser, scale: float, interval: Sequence[float]):
        super().__init__(denoiser)
        self.scale, self.interval = check_scale(scale), Interval.of(interval)

    def acts(self, t: Tensor) -> Tensor:
        """Whether the noise level at t lies in the interval, in the shape of t."""
        return self.interval.contains(self.schedule.noise_level(t))

    def acts_at(self, times: Tensor, labelled: bool) -> bool:
        return bool(self.acts(times).any())


def check_scale(scale: float) -> float:
    """The scale; raises ValueError unless it is finite."""
    if not math.isfinite(scale):
        raise ValueError(f"scale must be a finite number, got {scale}")
    return float(scale)


def check_uncompiled(denoiser: Denoiser) -> None:
    """Raises SamplingError for a network that torch.compile compiled, which has no gradients of gradients."""
    if denoiser.is_compiled:
        raise SamplingError(
            "this guidance differentiates the network, which torch.compile compiled: sample it uncompiled "
            "(diffguide.load, compile=false), or take guidance that needs no gradient of it, such as mpgd"
        )


def has_condition(y: Condition) -> Tensor:
    """Which rows have a condition, [B]."""
    return y.keep if isinstance(y, Embedding) else y >= 0


def per_row(value: Tensor, x: Tensor) -> Tensor:
    """A number per level: [B] cast to x and shaped to multiply x [B, ...]; 0-d unchanged."""
    return broadcast_rows(value.to(x), x.ndim) if value.ndim else value


def per_row_float(value: Tensor, x: Tensor) -> Tensor:
    """A number per level, 0-d or [B], in float32 at least, shaped to multiply x [B, ...]."""
    return broadcast_rows(value.to(torch.promote_types(x.dtype, torch.float32)).to(x.device), x.ndim)


def repeat_noise(z: Tensor, x: Tensor, guidance: str) -> Tensor:
    """The noise z [n, ...] of each sample for x [k n, ...], k batches of the samples one after the other.

    Guidance around this one may evaluate several conditions as one batch.

    Raises:
        SamplingError: x is no such batch, or has another shape.
    """
    if z.ndim == x.ndim and z.shape[1:] != x.shape[1:] or len(x) % len(z):
        raise SamplingError(
            f"{guidance} has noise for samples {list(z.shape)}, and got x {list(x.shape)}, which is not a multiple of them"
        )
    return z.to(x).repeat(len(x) // len(z), *[1] * (z.ndim - 1))
