"""Conditions: class indices or embeddings, and functions that drop and batch them.

A condition y is None (no condition in any row), class indices [B] with -1 for "no condition in this row", or an
`Embedding`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["ClassEmbedding", "Condition", "Embedding", "concatenate_conditions", "remove_condition"]


class Embedding:
    """Condition vectors in place of class indices (of a text, of an image), with a mask of rows.

    Arguments:
        vectors: [B, D].
        keep: [B] bool; False = no condition in this row, its vector is ignored; None = a condition in every row.

    Raises:
        ValueError: other shapes, or a mask that is not boolean.
    """

    def __init__(self, vectors: Tensor, keep: Tensor | None = None):
        if keep is None:
            keep = torch.ones(len(vectors), dtype=torch.bool, device=vectors.device)
        if vectors.ndim != 2 or keep.shape != vectors.shape[:1] or keep.dtype != torch.bool:
            raise ValueError(
                f"an Embedding needs vectors [B, D] and keep [B] of booleans, got {list(vectors.shape)} and "
                f"{list(keep.shape)} of {keep.dtype}"
            )
        self.vectors, self.keep = vectors, keep

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, rows: slice | Tensor) -> "Embedding":
        """Some of the rows: a slice, indices or a mask."""
        return type(self)(self.vectors[rows], self.keep[rows])

    @property
    def device(self) -> torch.device:
        return self.vectors.device

    def to(self, device: torch.device | str) -> "Embedding":
        return type(self)(self.vectors.to(device), self.keep.to(device))


class ClassEmbedding(Embedding):
    """Class indices embedded by a network, as rows of its own table, which it takes in place of the indices."""


Condition = Tensor | Embedding


def remove_condition(y: Condition, rows: Tensor | None = None) -> Condition:
    """y without its condition in the rows where `rows` [B] is True; None = in every row."""
    if rows is None:
        rows = torch.ones(len(y), dtype=torch.bool, device=y.device)
    if isinstance(y, Embedding):
        return type(y)(y.vectors, y.keep & ~rows)
    return torch.where(rows, -1, y)


def concatenate_conditions(parts: Sequence[Condition]) -> Condition:
    """The rows of conditions of one kind, one after the other."""
    embeddings = [part for part in parts if isinstance(part, Embedding)]
    if embeddings:
        vectors = torch.cat([part.vectors for part in embeddings])
        return type(embeddings[0])(vectors, torch.cat([part.keep for part in embeddings]))
    return torch.cat([part for part in parts if isinstance(part, Tensor)])
