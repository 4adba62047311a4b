"""The texts of a data set as a table of conditions: one of the texts of an example is drawn each time that it is seen."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ..backbones.conditioning import ConditionTable
from ..backbones.conditions import Condition, RowCondition

__all__ = ["CaptionTable", "read_text"]


class Rows(Protocol):
    """The conditions of texts, of which some rows are taken at a time."""

    def __getitem__(self, rows: Tensor) -> RowCondition: ...

    def to(self, device: torch.device) -> "Rows":
        """The same on a device, as far as they are in memory."""
        ...


def read_text(value: Any) -> str:
    """A text as a person wrote it, where YAML may have read a number or a truth value; None and "" = no condition.

    Raises:
        ValueError: a list or a mapping.
    """
    if isinstance(value, bool):
        return str(value).lower()
    if value is not None and not isinstance(value, str | int | float):
        raise ValueError(f"{value} must be one text; a text with commas or colons needs quotes")
    return "" if value is None else str(value)


class CaptionTable(ConditionTable):
    """The texts of a split, read once.

    Arguments:
        captions: the texts of each example, "" = without a text; an example may have none.
        read: texts -> conditions, one row per text.
    """

    def __init__(self, captions: Sequence[Sequence[str]], read: Callable[[Sequence[str]], Rows]):
        texts = [list(given) or [""] for given in captions]
        self.counts = torch.tensor([len(given) for given in texts])
        self.firsts = self.counts.cumsum(0) - self.counts
        index: dict[str, int] = {}
        self.texts = torch.tensor([index.setdefault(text, len(index)) for given in texts for text in given])
        self.conditions: Rows = read(list(index))
        self.draws = int(len(self.counts) > 0 and int(self.counts.max()) > 1)

    def __call__(self, rows: Tensor, x: Tensor, chance: Tensor | None = None) -> Condition:
        self.move(x.device)
        rows = rows.to(x.device)
        choice = torch.zeros_like(rows)
        if chance is not None and self.draws:
            choice = (chance[:, 0] * self.counts[rows]).long()
        return self.conditions[self.texts[self.firsts[rows] + choice]].to(x.device)

    def move(self, device: torch.device) -> None:
        """Moves the table to a device; nothing happens where it is there."""
        self.counts, self.firsts, self.texts = (part.to(device) for part in (self.counts, self.firsts, self.texts))
        self.conditions = self.conditions.to(device)
