"""Samples in batches, each a function of its own seed."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ..backbones.conditions import Condition, RowCondition
from ..models.protocols import Denoiser, Energy
from ..randomness import Noise
from .base import Sampler

__all__ = ["generate", "initial_state"]


def generate(
    denoiser: Denoiser | Energy,
    sampler: Sampler,
    seeds: Sequence[int],
    labels: Sequence[int] | RowCondition | None,
    shape: Sequence[int],
    batch_size: int,
    device: torch.device | str = "cpu",
    on_step: Callable[[int, Tensor], None] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Iterator[Tensor]:
    """Yields batches x [b, *shape] at the end of the sampler's grid, in the denoiser's precision.

    Images lie nominally in [-1, 1] and are not clipped; `diffguide.to_uint8` clips and rounds them as the command does.

    Arguments:
        denoiser: what to sample, guided or not; an energy if the sampler takes one.
        sampler: of the run.
        seeds: one per sample; sample i is a function of (seeds[i], labels[i]), the denoiser and the sampler alone.
        labels: class index per sample, -1 = no condition; or a `RowCondition`, such as an Embedding or texts, one row per
            sample; None = no condition.
        shape: of one sample.
        batch_size: samples at a time.
        device: of the denoiser.
        on_step: called with (step index from 1, x) after every step of every batch.
        dtype: of the noise.

    Raises:
        ValueError: another number of labels than of seeds, or a label that is no class of the denoiser.
    """
    check_labels(labels, len(seeds), denoiser.num_classes)
    times = sampler.times(denoiser)
    for first in range(0, len(seeds), batch_size):
        part = slice(first, first + batch_size)
        batch_labels = None if labels is None else labels[part]
        x, y, noise = initial_state(denoiser, sampler, times, seeds[part], batch_labels, shape, device, dtype)
        yield sampler(denoiser, x, times, y, noise, on_step)


def check_labels(labels: Sequence[int] | RowCondition | None, count: int, num_classes: int) -> None:
    """Raises ValueError unless there is a label per sample, each a class or -1."""
    if labels is not None and len(labels) != count:
        raise ValueError(f"labels must have one entry per seed, got {len(labels)} labels and {count} seeds")
    if labels is not None and not isinstance(labels, RowCondition):
        wrong = [label for label in labels if not -1 <= label < max(num_classes, 1)]
        if wrong:
            raise ValueError(f"labels must be from -1 (no condition) to {num_classes - 1}, got {wrong[0]}")


def initial_state(
    denoiser: Denoiser | Energy,
    sampler: Sampler,
    times: Tensor,
    seeds: Sequence[int],
    labels: Sequence[int] | RowCondition | None,
    shape: Sequence[int],
    device: torch.device | str,
    dtype: torch.dtype,
) -> tuple[Tensor, Condition | None, Noise]:
    """The start of a batch: x [b, *shape] at times[0], the condition on the device, the noise of its steps."""
    noise = Noise(seeds, shape, denoiser.schedule, device, dtype)
    y: Condition | None
    if isinstance(labels, RowCondition):
        y = labels.to(device)
        if denoiser.conditioning is not None:
            y = denoiser.conditioning.draw(y, noise)
        if isinstance(denoiser, Denoiser) and denoiser.embeds:
            with torch.no_grad():
                y = denoiser.embed(y)  # once for all noise levels
    else:
        y = None if labels is None else torch.tensor(labels, device=device)
    return sampler.begin(denoiser, times, noise), y, noise
