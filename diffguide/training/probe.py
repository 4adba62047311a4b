"""Forward passes of a copy of an objective, for measurements before a training."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from ..conditions.examples import Examples
from ..objectives import Objective

__all__ = ["make_probe"]


def make_probe(objective: Objective, examples: Examples, device: torch.device, seed: int) -> Callable[[int], Tensor]:
    """number of examples -> mean loss of a copy of the objective on the first of the examples, which repeat if fewer."""
    objective = copy.deepcopy(objective).to(device).train()
    rng = torch.Generator(device).manual_seed(seed)

    def forward(rows: int) -> Tensor:
        x, y = examples.fetch(torch.arange(rows) % len(examples.split.y), device)
        return objective(x, y, rng).per_example.mean()

    return forward
