"""Conditions of several kinds at once, each of which training drops alone, and all together."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ..backbones.conditioning import Conditioning, ConditionTable, Context
from ..backbones.conditions import Condition, Several, remove_condition
from ..randomness import Noise
from ..runtime.ranges import check_range

__all__ = ["SeveralConditions"]

NO_SHARES: Mapping[str, float] = MappingProxyType({})


class SeveralTable(ConditionTable):
    """The tables of the parts, with the numbers that each draws, and one more per part that is dropped alone.

    Arguments:
        tables: name of a part -> its table.
        drop: name of a part -> probability.
        shared: name of a part -> another one before it, whose numbers it takes, so that both read the same text.
    """

    def __init__(
        self, tables: Mapping[str, ConditionTable], drop: Mapping[str, float], shared: Mapping[str, str] | None = None
    ):
        self.tables, self.drop = dict(tables), {name: share for name, share in drop.items() if share}
        self.shared = dict(shared or {})
        self.widths = {name: table.draws for name, table in self.tables.items() if name not in self.shared}
        self.draws = sum(self.widths.values()) + len(self.drop)

    def __call__(self, rows: Tensor, x: Tensor, chance: Tensor | None = None) -> Several:
        widths = list(self.widths.values())
        chances: dict[str, Tensor | None] = dict.fromkeys(self.widths)
        if chance is not None:
            chances = dict(zip(self.widths, chance[:, : sum(widths)].split(widths, dim=1)))
        parts = {name: table(rows, x, chances[self.shared.get(name, name)]) for name, table in self.tables.items()}
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
        self.reads_text = any(part.reads_text for part in parts.values())
        self.gives_vectors = any(part.gives_vectors for part in parts.values())
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
        masks = [mask_of(context) for context in contexts.values() if context.tokens is not None]
        return Context(
            join([context.vector for context in contexts.values() if context.vector is not None]),
            join(list(tokens.values())),
            None if all(context.mask is None for context in contexts.values()) else join(masks),
            join([context.channels for context in contexts.values() if context.channels is not None]),
        )

    def embed(self, y: Condition) -> Several:
        assert isinstance(y, Several)
        return Several({name: self.part(name).embed(part) for name, part in y.parts.items()})

    def draw(self, y: Condition, noise: Noise) -> Several:
        assert isinstance(y, Several)
        return Several({name: self.part(name).draw(part, noise) for name, part in y.parts.items()})

    def settle(self, node: Mapping[str, Any]) -> dict[str, Any]:
        return {**node, "parts": {name: self.part(name).settle(part) for name, part in node["parts"].items()}}

    def part(self, name: str) -> Conditioning:
        """One of the conditions; raises ValueError for an unknown name."""
        if name not in self.parts:
            raise ValueError(f"this model has the conditions {', '.join(self.parts)}, not {name}")
        part = self.parts[name]
        assert isinstance(part, Conditioning)
        return part

    def tabulate(self, columns: Mapping[str, Any], labels: Tensor) -> ConditionTable:
        tables = {name: self.part(name).tabulate(columns, labels) for name in self.parts}
        readers: dict[str, list[str]] = {}  # of texts, by the column that they read
        for name in self.texts:
            readers.setdefault(self.part(name).column, []).append(name)
        shared = {name: first for first, *others in readers.values() for name in others}
        return SeveralTable(tables, self.drop, shared)

    @property
    def texts(self) -> list[str]:
        """The parts that read texts."""
        return [name for name in self.parts if self.part(name).reads_text]

    def read(self, values: Sequence[Any]) -> Several:
        """Each value {name: value of the part}, parts that are not named = none; a text alone is for all that read texts."""
        rows = [self.read_row(value) for value in values]
        return Several({name: self.part(name).read([row.get(name, "") for row in rows]) for name in self.parts})

    def read_row(self, value: Any) -> Mapping[str, Any]:
        if isinstance(value, Mapping):
            for name in value:
                self.part(name)
            return {name: "" if part is None else part for name, part in value.items()}
        if value != "" and not self.reads_text:
            raise ValueError(
                f"{value} must name its part, as in {{{', '.join(f'{name}: ...' for name in self.parts)}}}"
            )
        return dict.fromkeys(self.texts, value)


def join(parts: Sequence[Tensor]) -> Tensor | None:
    """Tensors one after the other along axis 1; None for none."""
    return torch.cat(list(parts), dim=1) if parts else None


def mask_of(context: Context) -> Tensor:
    """The mask of the tokens of a context; True where it has none."""
    assert context.tokens is not None
    if context.mask is not None:
        return context.mask
    return torch.ones(context.tokens.shape[:2], dtype=torch.bool, device=context.tokens.device)
