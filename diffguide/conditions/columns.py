"""A column of the data as a table of conditions, each of whose values training forgets with a probability."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..backbones.conditioning import ConditionTable
from ..backbones.conditions import Condition

__all__ = ["ColumnTable"]


class ColumnTable(ConditionTable):
    """kind(the values of some rows), where training forgets each value independently.

    Arguments:
        values: [N, K].
        drop: probability of forgetting a value.
        unknown: what stands for a value that is not said.
        kind: makes the condition of rows [B, K].
    """

    def __init__(self, values: Tensor, drop: float, unknown: float, kind: Callable[[Tensor], Condition]):
        self.values, self.drop, self.unknown, self.kind = values, drop, unknown, kind
        self.draws = values.shape[1] if drop else 0

    def __call__(self, rows: Tensor, x: Tensor, chance: Tensor | None = None) -> Condition:
        self.values = self.values.to(x.device)
        values = self.values[rows.to(x.device)]
        if chance is not None and self.draws:
            values = torch.where(chance < self.drop, self.unknown, values)
        return self.kind(values)
