"""The base of guidance with a scale and an interval, and helpers for batches and rows."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..backbones.conditions import Condition, concatenate_conditions
from ..models.protocols import (
    Denoiser,
    DenoiserWrapper,
    Prediction,
    SamplingError,
    StackedPrediction,
    VariancePrediction,
)
from ..runtime.ranges import check_finite
from ..schedules import Interval, broadcast_rows

__all__ = [
    "ScaledGuidance",
    "check_uncompiled",
    "per_row",
    "per_row_float",
    "repeat_noise",
    "split_prediction",
    "stack_conditions",
    "stack_rows",
]


class ScaledGuidance(DenoiserWrapper):
    """Guidance with a scale that acts in an interval of noise levels.

    Arguments:
        denoiser: what is guided.
        scale: how strong, any finite number.
        interval: (lo, hi] in noise level sigma / alpha.
    """

    def __init__(self, denoiser: Denoiser, scale: float, interval: Sequence[float]):
        super().__init__(denoiser)
        self.scale = check_finite("scale", scale)
        self.interval = Interval.of(interval)

    def acts(self, t: Tensor) -> Tensor:
        """Whether the noise level at t lies in the interval, in the shape of t."""
        return self.interval.contains(self.schedule.noise_level(t))

    def acts_at(self, times: Tensor, labelled: bool) -> bool:
        return bool(self.acts(times).any())


def check_uncompiled(denoiser: Denoiser) -> None:
    """Raises SamplingError for a network that torch.compile compiled, which has no gradients of gradients."""
    if denoiser.is_compiled:
        raise SamplingError(
            "this guidance differentiates the network, and a compiled network has no gradients of gradients: set "
            "compile=false, or take guidance that does not differentiate the network, such as mpgd"
        )


def stack_conditions(x_t: Tensor, t: Tensor, conditions: Sequence[Condition]) -> tuple[Tensor, Tensor, Condition]:
    """The arguments of one call that predicts x_t under each condition."""
    return *stack_rows(x_t, t, len(conditions)), concatenate_conditions(conditions)


def stack_rows(x_t: Tensor, t: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """x_t and its times `count` times over."""
    return torch.cat([x_t] * count), torch.cat([t] * count) if t.ndim else t


def split_prediction(whole: Prediction, count: int) -> list[Prediction]:
    """The predictions under each condition, of a call with `stack_conditions`."""
    if isinstance(whole, StackedPrediction):
        return list(map(StackedPrediction, whole.stack.chunk(count, dim=1)))
    if isinstance(whole, VariancePrediction):
        return list(map(VariancePrediction, whole.x_0.chunk(count), whole.eps.chunk(count), whole.v.chunk(count)))
    return list(map(Prediction, whole.x_0.chunk(count), whole.eps.chunk(count)))


def per_row(value: Tensor, x: Tensor) -> Tensor:
    """A number per level: [B] cast to x and shaped to multiply x [B, ...]; 0-d unchanged."""
    return broadcast_rows(value.to(x), x.ndim) if value.ndim else value


def per_row_float(value: Tensor, x: Tensor) -> Tensor:
    """A number per level, 0-d or [B], in float32 at least, shaped to multiply x [B, ...]."""
    return broadcast_rows(value.to(torch.promote_types(x.dtype, torch.float32)).to(x.device), x.ndim)


def repeat_noise(z: Tensor, x: Tensor, guidance: str) -> Tensor:
    """The noise z [n, ...] of n samples, repeated for x [k n, ...]: k conditions of the samples, stacked.

    Raises:
        SamplingError: x has another shape, or a number of rows that is no multiple of n.
    """
    if z.ndim == x.ndim and z.shape[1:] != x.shape[1:] or len(x) % len(z):
        raise SamplingError(
            f"{guidance} has noise for samples {list(z.shape)}, and x {list(x.shape)} is no multiple of them"
        )
    return z.to(x).repeat(len(x) // len(z), *[1] * (z.ndim - 1))
