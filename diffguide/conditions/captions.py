"""The texts of a data set as a table of conditions: one of the texts of an example is drawn each time that it is seen."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..backbones.conditioning import ConditionTable
from ..backbones.conditions import Condition, RowCondition

__all__ = ["CaptionTable"]

READ_AT_ONCE = 4096  # texts


class CaptionTable(ConditionTable):
    """The texts of a split, read once.

    Arguments:
        captions: the texts of each example, "" = without a text; an example may have none.
        read: texts -> condition, one row per text.
    """

    def __init__(self, captions: Sequence[Sequence[str]], read: Callable[[Sequence[str]], RowCondition]):
        texts = [list(given) or [""] for given in captions]
        self.counts = torch.tensor([len(given) for given in texts])
        self.firsts = self.counts.cumsum(0) - self.counts
        index: dict[str, int] = {}
        self.texts = torch.tensor([index.setdefault(text, len(index)) for given in texts for text in given])
        distinct = list(index)
        parts = [read(distinct[first : first + READ_AT_ONCE]) for first in range(0, len(distinct), READ_AT_ONCE)]
        self.conditions = parts[0].join(parts[1:]) if parts else None
        self.draws = int(len(self.counts) > 0 and int(self.counts.max()) > 1)

    def __call__(self, rows: Tensor, x: Tensor, chance: Tensor | None = None) -> Condition:
        assert self.conditions is not None
        rows = rows.cpu()
        choice = torch.zeros_like(rows)
        if chance is not None and self.draws:
            choice = (chance[:, 0].cpu() * self.counts[rows]).long()
        return self.conditions[self.texts[self.firsts[rows] + choice]].to(x.device)
