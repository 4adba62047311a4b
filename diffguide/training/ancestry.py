"""The weights of a trained model as the start of another training: fine-tuning."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Start", "copy_weights"]

MAX_NAMES = 6  # in a message


class Start(NamedTuple):
    """What a training starts from.

    Attributes:
        copied: number of tensors with the weights of the ancestor.
        known: classes whose rows were copied.
        fresh: classes, and tensors, that start at random.
        dropped: number of tensors of the ancestor that this network does not have.
    """

    copied: int
    known: Sequence[str]
    fresh: Sequence[str]
    dropped: int

    def describe(self) -> str:
        """One line for the log."""
        parts = [f"{self.copied} tensors copied"]
        if self.known:
            parts.append(f"the rows of {len(self.known)} classes too")
        if self.fresh:
            more = ", ..." if len(self.fresh) > MAX_NAMES else ""
            parts.append(f"new: {', '.join(self.fresh[:MAX_NAMES])}{more}")
        if self.dropped:
            parts.append(f"{self.dropped} tensors of the ancestor have no place here")
        return "; ".join(parts)


def copy_weights(model: Any, ancestor: Any, names: Sequence[str], ancestor_names: Sequence[str]) -> Start:
    """Copies the weights of a trained model into a model, in place.

    Tensors of one name and shape are copied. Of a table of classes, the rows of classes with the same name and that for no
    class are copied; other rows keep their random start.

    Arguments:
        model: to train, with a backbone.
        ancestor: trained, with a backbone.
        names, ancestor_names: of the classes of each.

    Raises:
        ValueError: tensors of one name and another shape, or no tensor in common.
    """
    mine, theirs = model.state_dict(), ancestor.state_dict()
    tables = {f"backbone.{name}": axis for name, axis in model.backbone.class_tables().items()}
    rows = match_rows(model.backbone, ancestor.backbone, names, ancestor_names)
    copied, fresh = 0, [name for name in mine if name not in theirs]
    for name, value in theirs.items():
        if name not in mine:
            continue
        if name in tables:
            copy_rows(mine[name], value, tables[name], rows)
        elif mine[name].shape != value.shape:
            raise ValueError(
                f"{name} has the shape {list(value.shape)} there, {list(mine[name].shape)} here: the network must be the same"
            )
        else:
            mine[name].copy_(value)
        copied += 1
    if not copied:
        here, there = (getattr(part.backbone, "name", type(part.backbone).__name__) for part in (model, ancestor))
        raise ValueError(
            f"its network, a {there}, has no tensor in common with backbone, a {here}; leave out backbone=... to train that of "
            "the model"
        )
    known = [name for name in names if name in ancestor_names] if tables else []
    fresh += [name for name in names if name not in ancestor_names] if tables else []
    return Start(copied, known, fresh, len(theirs.keys() - mine.keys()))


def match_rows(mine: Any, theirs: Any, names: Sequence[str], ancestor_names: Sequence[str]) -> list[tuple[int, int]]:
    """(Row here, row there) of the classes with the same name, and of the null class if both have it."""
    places = {name: index for index, name in enumerate(ancestor_names)}
    pairs = [
        (mine.class_row(index), theirs.class_row(places[name])) for index, name in enumerate(names) if name in places
    ]
    here, there = mine.class_row(-1), theirs.class_row(-1)
    return pairs if here is None or there is None else [*pairs, (here, there)]


@torch.no_grad()
def copy_rows(mine: Tensor, theirs: Tensor, axis: int, rows: Sequence[tuple[int, int]]) -> None:
    """Copies rows of a table of classes along an axis."""
    if mine.shape[:axis] + mine.shape[axis + 1 :] != theirs.shape[:axis] + theirs.shape[axis + 1 :]:
        raise ValueError(f"a table of classes has the shape {list(theirs.shape)} there and {list(mine.shape)} here")
    for here, there in rows:
        mine.select(axis, here).copy_(theirs.select(axis, there))
