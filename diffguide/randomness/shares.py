"""A share of a batch's random numbers: the division of a batch changes no number."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Share", "normal", "uniform"]


class Share(NamedTuple):
    """The rows first, first + 1, ... of a batch of `total`, for an objective on one of several devices or micro-steps.

    Every share draws the numbers of the whole batch from a generator in the same state and takes its rows, so that the
    numbers do not depend on the division of the batch, and no two rows get the same numbers.
    """

    generator: torch.Generator
    first: int
    total: int

    @property
    def device(self) -> torch.device:
        return self.generator.device


def normal(shape: Sequence[int], rng: torch.Generator | Share, dtype: torch.dtype) -> Tensor:
    """Standard normals [B, ...], a row per example; for a `Share` those of its rows."""
    return draw_rows(torch.randn, shape, rng, dtype)


def uniform(shape: Sequence[int], rng: torch.Generator | Share, dtype: torch.dtype) -> Tensor:
    """Uniform numbers in [0, 1), [B, ...] a row per example; shape () is one number for the whole batch."""
    return draw_rows(torch.rand, shape, rng, dtype)


def draw_rows(sample, shape: Sequence[int], rng: torch.Generator | Share, dtype: torch.dtype) -> Tensor:
    """sample(shape) from rng, on its device; for a `Share` its rows of the draw of the whole batch."""
    if not isinstance(rng, Share) or not len(shape):
        generator = rng.generator if isinstance(rng, Share) else rng
        return sample(shape, generator=generator, device=rng.device, dtype=dtype)
    whole = sample((rng.total, *shape[1:]), generator=rng.generator, device=rng.device, dtype=dtype)
    return whole[rng.first : rng.first + shape[0]]
