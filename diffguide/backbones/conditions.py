"""Conditions: class indices, vectors, texts, attributes, numbers, pictures or several of them, for a batch of rows.

A condition y is None (no condition in any row), class indices [B] with -1 for "no condition in this row", or a
`RowCondition`, which has a mask of the rows with a condition.
"""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

__all__ = [
    "Attributes",
    "ClassEmbedding",
    "Condition",
    "Embedding",
    "Numbers",
    "Picture",
    "RowCondition",
    "Several",
    "TokenIds",
    "TokenStates",
    "concatenate_conditions",
    "has_condition",
    "remove_condition",
]


class RowCondition:
    """Base of the conditions that are no class indices: tensors [B, ...], and which rows have a condition.

    Attributes:
        names: of its tensors, which are the first arguments of its constructor; one that may be missing is None.
        keep: [B] bool; False = no condition in this row, its tensors are ignored.
        says_none: whether the tensors say themselves which rows have no condition, for keep = None.
        embeddings: names of the tensors that are vectors of a network or an encoder -> of the mask [B, L] of their tokens,
            "" = they have no tokens.
    """

    names: ClassVar[tuple[str, ...]] = ()
    says_none: ClassVar[bool] = False
    embeddings: ClassVar[Mapping[str, str]] = MappingProxyType({})
    keep: Tensor

    def tensors(self) -> list[Tensor | None]:
        """The tensors, in the order of the constructor."""
        return [getattr(self, name) for name in self.names]

    def __len__(self) -> int:
        return len(self.keep)

    def __getitem__(self, rows: slice | Tensor) -> Self:
        """Some of the rows: a slice, indices or a mask."""
        return self.rebuild((part if part is None else part[rows] for part in self.tensors()), self.keep[rows])

    @property
    def device(self) -> torch.device:
        return self.keep.device

    def to(self, device: torch.device | str) -> Self:
        moved = (part if part is None else part.to(device, non_blocking=True) for part in self.tensors())
        return self.rebuild(moved, self.keep.to(device, non_blocking=True))

    def without(self, rows: Tensor) -> Self:
        """The same without a condition in the rows where `rows` [B] is True."""
        return self.rebuild(self.tensors(), self.keep & ~rows)

    def join(self, others: Sequence[Any]) -> Self:
        """The rows of this condition, and of others of its class after them."""
        columns = zip(*(part.tensors() for part in (self, *others)))
        joined = (None if column[0] is None else torch.cat(column) for column in columns)
        return self.rebuild(joined, torch.cat([part.keep for part in (self, *others)]))

    def rebuild(self, tensors: Iterable[Tensor | None], keep: Tensor | None) -> Self:
        """A condition of this class, of tensors in the order of `names`."""
        return type(self)(*tensors, keep=keep)  # type: ignore[call-arg]  # every subclass takes them


def check_rows(kind: str, expected: str, fits: bool, keep: Tensor, *parts: Tensor | None) -> None:
    """Raises ValueError for tensors of other shapes than `expected`, or a mask that is not one boolean per row."""
    count = next(part.shape[0] for part in parts if part is not None)  # len() would fix the rows of an exported program
    if not fits or keep.shape != (count,) or keep.dtype != torch.bool:
        found = [f"{list(part.shape)} of {part.dtype}" for part in (*parts, keep) if part is not None]
        raise ValueError(f"{kind} needs {expected} and keep [B] of booleans, got {' and '.join(found)}")


def every_row(like: Tensor) -> Tensor:
    """[B] of True."""
    return torch.ones(like.shape[0], dtype=torch.bool, device=like.device)


class Embedding(RowCondition):
    """Condition vectors in place of class indices (of a text, of an image), with a mask of rows.

    Arguments:
        vectors: [B, D].
        keep: [B] bool; False = no condition in this row, its vector is ignored; None = a condition in every row.

    Raises:
        ValueError: other shapes, or a mask that is not boolean.
    """

    names, embeddings = ("vectors",), MappingProxyType({"vectors": ""})

    def __init__(self, vectors: Tensor, keep: Tensor | None = None):
        keep = every_row(vectors) if keep is None else keep
        check_rows("an Embedding", "vectors [B, D]", vectors.ndim == 2, keep, vectors)
        self.vectors, self.keep = vectors, keep


class ClassEmbedding(Embedding):
    """Class indices embedded by a network, as rows of its own table, which it takes in place of the indices."""


class TokenIds(RowCondition):
    """Texts as the indices of tokens, which the encoder of a network takes.

    Arguments:
        ids: [B, L] whole numbers, 0 = padding after the last token.
        keep: [B] bool; None = every row that has a token.

    Raises:
        ValueError: other shapes, or a mask that is not boolean.
    """

    names, says_none = ("ids",), True

    def __init__(self, ids: Tensor, keep: Tensor | None = None):
        keep = (ids != 0).any(-1) if keep is None else keep
        check_rows("TokenIds", "ids [B, L]", ids.ndim == 2 and not ids.is_floating_point(), keep, ids)
        self.ids, self.keep = ids, keep


class TokenStates(RowCondition):
    """Encoded texts: a vector per token, and one for the whole text where the encoder has one.

    Arguments:
        states: [B, L, D].
        mask: [B, L] bool, True = a token, False = padding.
        pooled: [B, P]; None = the encoder has none.
        keep: [B] bool; None = every row that has a token.

    Raises:
        ValueError: other shapes, or masks that are not boolean.
    """

    names, says_none = ("states", "mask", "pooled"), True
    embeddings = MappingProxyType({"states": "mask", "pooled": ""})

    def __init__(self, states: Tensor, mask: Tensor, pooled: Tensor | None = None, keep: Tensor | None = None):
        fits = states.ndim == 3 and mask.shape == states.shape[:2] and mask.dtype == torch.bool
        fits = fits and (pooled is None or pooled.ndim == 2 and pooled.shape[0] == states.shape[0])
        keep = mask.any(-1) if keep is None else keep
        check_rows("TokenStates", "states [B, L, D], mask [B, L], pooled [B, P]", fits, keep, states, mask, pooled)
        self.states, self.mask, self.pooled, self.keep = states, mask, pooled, keep


class Attributes(RowCondition):
    """Several properties at once, each of which an example has, has not, or is silent about.

    Arguments:
        values: [B, A], 1 = has it, 0 = has it not, -1 = not said.
        keep: [B] bool; None = every row that says something.

    Raises:
        ValueError: other shapes, or a mask that is not boolean.
    """

    names, says_none = ("values",), True

    def __init__(self, values: Tensor, keep: Tensor | None = None):
        keep = (values >= 0).any(-1) if keep is None else keep
        check_rows("Attributes", "values [B, A]", values.ndim == 2, keep, values)
        self.values, self.keep = values, keep


class Numbers(RowCondition):
    """Real numbers, such as an angle or an age.

    Arguments:
        values: [B, K], in the units of the data; NaN = not said.
        keep: [B] bool; None = every row that says something.

    Raises:
        ValueError: other shapes, whole numbers, or a mask that is not boolean.
    """

    names, says_none = ("values",), True

    def __init__(self, values: Tensor, keep: Tensor | None = None):
        keep = (~values.isnan()).any(-1) if keep is None else keep
        check_rows("Numbers", "values [B, K]", values.ndim == 2 and values.is_floating_point(), keep, values)
        self.values, self.keep = values, keep


class Picture(RowCondition):
    """A picture, such as one of fewer pixels or one with a hole, in the channels that the network gets beside x.

    Arguments:
        x: [B, C, H, W].
        keep: [B] bool; None = a condition in every row.

    Raises:
        ValueError: other shapes, or a mask that is not boolean.
    """

    names: ClassVar[tuple[str, ...]] = ("x",)

    def __init__(self, x: Tensor, keep: Tensor | None = None):
        keep = every_row(x) if keep is None else keep
        check_rows("a Picture", "x [B, C, H, W]", x.ndim == 4 and x.is_floating_point(), keep, x)
        self.x, self.keep = x, keep


class Several(RowCondition):
    """Conditions of several kinds, each with rows of its own; a row has a condition if one of them has.

    Arguments:
        parts: name -> condition.

    Raises:
        ValueError: no part, or parts of different numbers of rows.
    """

    def __init__(self, parts: Mapping[str, "Condition"]):
        self.parts = dict(parts)
        counts = [has_condition(part).shape[0] for part in self.parts.values()]
        if not counts or any(count != counts[0] for count in counts):
            found = {name: len(part) for name, part in self.parts.items()}
            raise ValueError(f"the parts of a condition need the same number of rows, got {found}")

    @property
    def keep(self) -> Tensor:  # type: ignore[override]
        return torch.stack([has_condition(part) for part in self.parts.values()]).any(0)

    def __getitem__(self, rows: slice | Tensor) -> "Several":
        return Several({name: part[rows] for name, part in self.parts.items()})

    def to(self, device: torch.device | str) -> "Several":
        return Several({name: part.to(device) for name, part in self.parts.items()})

    def without(self, rows: Tensor) -> "Several":
        return Several({name: remove_condition(part, rows) for name, part in self.parts.items()})

    def only(self, names: Sequence[str]) -> "Several":
        """The same with the condition of these parts alone."""
        kept = {name: part if name in names else remove_condition(part) for name, part in self.parts.items()}
        return Several(kept)

    def join(self, others: Sequence["Several"]) -> "Several":
        every = (self, *others)
        return Several({name: concatenate_conditions([part.parts[name] for part in every]) for name in self.parts})


Condition = Tensor | RowCondition


def has_condition(y: Condition) -> Tensor:
    """Which rows have a condition, [B]."""
    return y.keep if isinstance(y, RowCondition) else y >= 0


def remove_condition(y: Condition, rows: Tensor | None = None) -> Condition:
    """y without its condition in the rows where `rows` [B] is True; None = in every row."""
    if rows is None:
        rows = torch.ones(len(y), dtype=torch.bool, device=y.device)
    if isinstance(y, RowCondition):
        return y.without(rows)
    return torch.where(rows, -1, y)


def concatenate_conditions(parts: Sequence[Condition]) -> Condition:
    """The rows of conditions of one kind, one after the other."""
    given = [part for part in parts if isinstance(part, RowCondition)]
    if given:
        return given[0].join(given[1:])
    return torch.cat([part for part in parts if isinstance(part, Tensor)])
