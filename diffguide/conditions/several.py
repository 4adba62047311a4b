"""Conditions of several kinds at once, each of which training drops alone, and all together."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ..backbones.conditioning import Conditioning, ConditionTable, Context
from ..backbones.conditions import Condition, Several, remove_condition
from ..runtime.ranges import check_range

__all__ = ["SeveralConditions"]

NO_SHARES: Mapping[str, float] = MappingProxyType({})


class SeveralTable(ConditionTable):
    """The tables of the parts, with the numbers that each draws, and one more per part that is dropped alone."""

    def __init__(self, tables: Mapping[str, ConditionTable], drop: Mapping[str, float]):
        self.tables, self.drop = dict(tables), {name: share for name, share in drop.items() if share}
        self.draws = sum(table.draws for table in self.tables.values()) + len(self.drop)

    def __call__(self, rows: Tensor, x: Tensor, chance: Tensor | None = None) -> Several:
        widths = [table.draws for table in self.tables.values()]
        chances: Sequence[Tensor | None] = [None] * len(widths)
        if chance is not None:
            chances = chance[:, : sum(widths)].split(widths, dim=1)
        parts = {name: table(rows, x, part) for (name, table), part in zip(self.tables.items(), chances)}
        if chance is not None:
            for column, (name, share) in zip(chance[:, sum(widths) :].T, self.drop.items()):
                parts[name] = remove_condition(parts[name], column < share)
        return Several(parts)


class SeveralConditions(Conditioning):
    """The vectors and channels of all parts side by side, their tokens one after the other.

    Tokens of other lengths than `features` pass a linear layer. Brooks et al., "InstructPix2Pix", 2023, arXiv 2211.09800,
    section 3.2: each condition is dropped alone, and both together.

    Arguments:
        parts: name -> conditioning; guidance names them.
        drop: name -> probability with which training drops this part alone, in [0, 1]; parts that are not named: 0.05.
            All parts together are dropped by p_uncond.
        features: length of the tokens; 0 = the longest of the parts.

    Raises:
        ValueError: no part, or a probability for an unknown part.
    """

    def __init__(self, parts: Mapping[str, Conditioning], drop: Mapping[str, float] = NO_SHARES, features: int = 0):
        super().__init__()
        if not parts:
            raise ValueError("condition.parts must name at least one condition, got none")
        self.parts = nn.ModuleDict(parts)
        given = dict(drop)
        if unknown := [name for name in given if name not in parts]:
            raise ValueError(f"condition.drop names {unknown[0]}, but the parts are {', '.join(parts)}")
        self.drop = {name: check_range(f"condition.drop.{name}", given.get(name, 0.05), "[0, 1]") for name in parts}
        lengths = {name: part.token_features for name, part in parts.items()}
        self.token_features = features or max(lengths.values()) if any(lengths.values()) else 0
        self.vector_features = sum(part.vector_features for part in parts.values())
        self.channels = sum(part.channels for part in parts.values())
        self.reads_text = sum(part.reads_text for part in parts.values()) == 1
        self.projections = nn.ModuleDict(
            {
                name: nn.Linear(length, self.token_features)
                for name, length in lengths.items()
                if length not in (0, self.token_features)
            }
        )

    def forward(self, y: Condition | None, x: Tensor) -> Context:
        if y is not None and not isinstance(y, Several):
            raise ValueError(f"y must be Several conditions ({', '.join(self.parts)}), got {type(y).__name__}")
        contexts = {name: part(None if y is None else y.parts[name], x) for name, part in self.parts.items()}
        tokens = {name: context.tokens for name, context in contexts.items() if context.tokens is not None}
        tokens = {
            name: self.projections[name](part) if name in self.projections else part for name, part in tokens.items()
        }
        masks = [context.mask for context in contexts.values() if context.mask is not None]
        return Context(
            join([context.vector for context in contexts.values() if context.vector is not None]),
            join(list(tokens.values())),
            join(masks),
            join([context.channels for context in contexts.values() if context.channels is not None]),
        )

    def embed(self, y: Condition) -> Several:
        assert isinstance(y, Several)
        return Several({name: self.part(name).embed(part) for name, part in y.parts.items()})

    def part(self, name: str) -> Conditioning:
        """One of the conditions; raises ValueError for an unknown name."""
        if name not in self.parts:
            raise ValueError(f"this model has the conditions {', '.join(self.parts)}, not {name}")
        part = self.parts[name]
        assert isinstance(part, Conditioning)
        return part

    def tabulate(self, columns: Mapping[str, Any], labels: Tensor) -> ConditionTable:
        return SeveralTable({name: self.part(name).tabulate(columns, labels) for name in self.parts}, self.drop)

    def read(self, values: Sequence[Any]) -> Several:
        """Each value {name: value of the part}, parts that are not named = none; a text alone is that of the part of texts."""
        rows = [self.read_row(value) for value in values]
        return Several({name: self.part(name).read([row.get(name, "") for row in rows]) for name in self.parts})

    def read_row(self, value: Any) -> Mapping[str, Any]:
        if isinstance(value, Mapping):
            for name in value:
                self.part(name)
            return value
        texts = [name for name in self.parts if self.part(name).reads_text]
        if value != "" and len(texts) != 1:
            raise ValueError(
                f"{value} must name its part, as in {{{', '.join(f'{name}: ...' for name in self.parts)}}}"
            )
        return {} if value == "" else {texts[0]: value}


def join(parts: Sequence[Tensor]) -> Tensor | None:
    """Tensors one after the other along axis 1; None for none."""
    return torch.cat(list(parts), dim=1) if parts else None
