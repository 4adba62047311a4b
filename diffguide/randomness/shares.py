"""A share of a batch's random numbers: how a batch is divided changes nothing."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Share", "normal", "uniform"]


class Share(NamedTuple):
    """The rows first, first + 1, ... of a batch of `total`, for an objective on one of several devices or micro-steps.

    Every share draws the numbers of the whole batch from a generator in the same state and keeps its own rows: how a
    batch is divided then changes nothing, and no two rows get the same numbers.
    """

    generator: torch.Generator
    first: int
    total: int

    @property
    def device(self) -> torch.device:
        return self.generator.device


def normal(shape: Sequence[int], rng: torch.Generator | Share, dtype: torch.dtype) -> Tensor:
    """Standard normals [B, ...], a row per example; of this share's rows where rng is a `Share`."""
    return draw_rows(torch.randn, shape, rng, dtype)


def uniform(shape: Sequence[int], rng: torch.Generator | Share, dtype: torch.dtype) -> Tensor:
    """Uniform numbers in [0, 1), [B, ...] a row per example; shape () is one number for the whole batch."""
    return draw_rows(torch.rand, shape, rng, dtype)


def draw_rows(sample, shape: Sequence[int], rng: torch.Generator | Share, dtype: torch.dtype) -> Tensor:
    """sample(shape) from rng, on its device; rows of the whole batch's draw where rng is a `Share`."""
    if not isinstance(rng, Share) or not len(shape):
        generator = rng.generator if isinstance(rng, Share) else rng
        return sample(shape, generator=generator, device=rng.device, dtype=dtype)
    whole = sample((rng.total, *shape[1:]), generator=rng.generator, device=rng.device, dtype=dtype)
    return whole[rng.first : rng.first + shape[0]]
