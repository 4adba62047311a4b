"""The examples of a split as a network gets them, with their conditions."""

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..backbones.conditioning import Conditioning, ConditionTable
from ..backbones.conditions import Condition
from ..datasets.base import Dataset, RowStream, Split, Stream

__all__ = ["ConditionedData", "Examples"]


class Examples:
    """Preprocessed examples with conditions: class indices, or what the conditioning of a model makes of the data.

    Stored examples come with keys, from which their conditions are made: rows of the split, or class indices where these
    are all that is known.

    Arguments:
        data: whose `preprocess` applies.
        split: one of its splits.
        model: that may have a `conditioning`; None = class indices.

    Raises:
        ValueError: the data lack what the conditioning needs.
    """

    def __init__(self, data: Dataset, split: Split | Stream, model: Any = None):
        self.data, self.split = data, split
        conditioning: Conditioning | None = getattr(model, "conditioning", None)
        self.table: ConditionTable | None = None
        self.keyed_by_rows = isinstance(split, Split | RowStream)
        if conditioning is not None:
            labels = (
                split.y if self.keyed_by_rows else torch.cat([torch.arange(len(data.class_names)), torch.tensor([-1])])
            )
            self.table = conditioning.tabulate(split.columns, labels)

    @property
    def draws(self) -> int:
        """How many uniform numbers per row training draws for the conditions."""
        return 0 if self.table is None else self.table.draws

    def fetch(self, rows: Tensor, device: torch.device | str = "cpu") -> tuple[Tensor, Condition]:
        """Preprocessed examples [b, ...] and their conditions, on a device."""
        return self.complete(*self.fetch_stored(rows), device)

    def fetch_stored(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Stored examples and their keys, read in this process."""
        if isinstance(self.split, Split):
            return self.split.x[rows], self.keys_of(rows)
        x, found = zip(*(self.split[row] for row in rows.tolist()))
        return torch.stack(x), self.keys_of(torch.tensor(found))

    def keys_of(self, found: Tensor) -> Tensor:
        """The keys of rows of a split, or of what a stream returned beside its images."""
        if self.table is None and self.keyed_by_rows:
            return self.split.y[found.to(self.split.y.device)]
        return found

    def complete(
        self,
        x: Tensor,
        keys: Tensor,
        device: torch.device | str,
        view: Tensor | None = None,
        chance: Tensor | None = None,
    ) -> tuple[Tensor, Condition]:
        """Preprocessed examples and their conditions, of stored examples and their keys.

        Arguments:
            view: [b, 3] uniform numbers for `preprocess`, None = as in evaluations.
            chance: [b, draws] uniform numbers for the conditions, None = the first of several, and nothing is dropped.
        """
        x = self.data.preprocess(x.to(device), view)
        return x, keys.to(device) if self.table is None else self.table(keys, x, chance)


class ConditionedData:
    """A data set with the conditions that a model takes, which are made once for each split.

    The model may change meanwhile: what its conditions are is not trained, and copies of it take the same ones.

    Arguments:
        data: the data set.
        model: that may have a `conditioning`; None = class indices.
    """

    def __init__(self, data: Dataset, model: Any = None):
        self.data, self.model = data, model

    @staticmethod
    def of(data: "Dataset | ConditionedData", model: Any) -> "ConditionedData":
        """Data with their conditions as they are, and a plain data set with those of a model."""
        return data if isinstance(data, ConditionedData) else ConditionedData(data, model)

    @cached_property
    def train(self) -> Examples:
        """The training examples; raises ValueError for data that lack what the conditioning needs."""
        return Examples(self.data, self.data.train, self.model)

    @cached_property
    def held_out(self) -> Examples:
        """The examples of held-out losses; raises ValueError as `train` does."""
        split = self.data.held_out_split[1]
        return self.train if split is self.data.train else Examples(self.data, split, self.model)
