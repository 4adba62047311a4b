"""Forward passes of a copy of an objective, for measurements before a training."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from ..datasets import Dataset
from ..datasets.base import fetch_examples
from ..objectives import Objective

__all__ = ["make_probe"]


def make_probe(objective: Objective, data: Dataset, device: torch.device, seed: int) -> Callable[[int], Tensor]:
    """number of examples -> mean loss of a copy of the objective on the first training examples; the data repeat if fewer."""
    objective = copy.deepcopy(objective).to(device).train()
    rng = torch.Generator(device).manual_seed(seed)

    def forward(rows: int) -> Tensor:
        x, y = fetch_examples(data.train, torch.arange(rows) % len(data.train.y))
        return objective(data.preprocess(x).to(device), y.to(device), rng).per_example.mean()

    return forward
