"""The loss on examples that choices are made on."""

import torch

from ..datasets import Dataset, Split, Stream
from ..datasets.base import fetch_examples
from ..objectives import Loss, Objective
from ..randomness import fold
from .batches import make_loader

__all__ = ["held_out_loss"]

VALIDATION_NOISE = 3  # purpose of a folded seed, beside those of `batches` and `training`
MAX_TRAINING_EXAMPLES = 2000  # where nothing validates


@torch.no_grad()
def held_out_loss(objective: Objective, data: Dataset, seed: int, device: torch.device, batch_size: int) -> Loss:
    """The loss of each example of the validation split, with noise that is the same every time.

    Where nothing validates, of training examples, evenly spread and 2000 at most.
    """
    rng, losses = torch.Generator(device).manual_seed(fold(seed, VALIDATION_NOISE)), []
    name, split = data.held_out
    count = len(split.y)
    rows = torch.arange(0, count, 1 if name == "validation" else -(-count // MAX_TRAINING_EXAMPLES))
    if isinstance(split, Stream):
        parts = [part.tolist() for part in rows.split(batch_size)]
        batches = make_loader(split, data.workers, parts, torch.device(device))
    else:
        kept = Split(*split) if len(rows) == count else fetch_examples(split, rows)
        batches = zip(*(field.split(batch_size) for field in kept))
    for x, y in batches:
        losses.append(objective(data.preprocess(x.to(device)), y.to(device), rng))
    per_example, terms, log_snr = zip(*losses)
    terms = {name: torch.cat([part[name] for part in terms]) for name in terms[0]}
    return Loss(torch.cat(per_example), terms, None if log_snr[0] is None else torch.cat(log_snr))
