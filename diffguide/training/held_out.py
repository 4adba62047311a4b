"""The loss on held-out examples."""

from collections.abc import Iterable

import torch
from torch import Tensor

from ..conditions.examples import Examples
from ..datasets import Stream
from ..objectives import Loss, Objective
from ..randomness import fold
from .batches import make_loader

__all__ = ["held_out_loss"]

VALIDATION_NOISE = 3  # purpose of a folded seed, besides those of `batches` and `state`
MAX_TRAINING_EXAMPLES = 2000  # used if there is no validation split


@torch.no_grad()
def held_out_loss(objective: Objective, examples: Examples, seed: int, device: torch.device, batch_size: int) -> Loss:
    """The loss of each held-out example, with the same noise in every call.

    Without validation examples these are at most 2000 evenly spaced training examples.

    Arguments:
        examples: `held_out` of the data with their conditions.
    """
    rng = torch.Generator(device).manual_seed(fold(seed, VALIDATION_NOISE))
    losses = [
        objective(*examples.complete(x, keys, device), rng)
        for x, keys in held_out_batches(examples, device, batch_size)
    ]
    terms = {name: torch.cat([loss.terms[name] for loss in losses]) for name in losses[0].terms}
    log_snr = None if losses[0].log_snr is None else torch.cat([loss.log_snr for loss in losses])
    return Loss(torch.cat([loss.per_example for loss in losses]), terms, log_snr)


def held_out_batches(examples: Examples, device: torch.device, batch_size: int) -> Iterable[tuple[Tensor, Tensor]]:
    """Stored examples and their keys."""
    name, split = examples.data.held_out_split
    count = len(split.y)
    rows = torch.arange(0, count, 1 if name == "validation" else -(-count // MAX_TRAINING_EXAMPLES))
    if isinstance(split, Stream):
        parts = [part.tolist() for part in rows.split(batch_size)]
        loader = make_loader(split, examples.data.workers, parts, torch.device(device))
        return ((x, examples.keys_of(found)) for x, found in loader)
    return (examples.fetch_stored(part) for part in rows.split(batch_size))
