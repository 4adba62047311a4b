"""The vectors of embedded conditions: of classes, of texts, or of several conditions."""

from collections.abc import Callable, Iterator
from itertools import count

from torch import Tensor

from ..backbones.conditions import Condition, RowCondition, Several

__all__ = ["change_embedded", "measure"]

Change = Callable[[Tensor, Tensor | None, int], Tensor]


def change_embedded(y: Condition, change: Change, numbers: Iterator[int] | None = None) -> Condition:
    """An embedded condition with other vectors; attributes, numbers and pictures have none and stay.

    Arguments:
        change: (vectors [B, D] or [B, L, D], mask [B, L] of the tokens or None, number of the tensor) -> vectors.
        numbers: of the next tensors; None = from 0.
    """
    numbers = count() if numbers is None else numbers
    if isinstance(y, Several):
        return Several({name: change_embedded(part, change, numbers) for name, part in y.parts.items()})
    if not isinstance(y, RowCondition) or not y.embeddings:
        return y
    tensors = dict(zip(y.names, y.tensors()))
    for name, mask in y.embeddings.items():
        vectors = tensors[name]
        if vectors is not None:
            tensors[name] = change(vectors, tensors[mask] if mask else None, next(numbers))
    return y.rebuild(tensors.values(), y.keep)


def measure(values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the values of each row: [B, 1] of vectors [B, D], [B, 1, 1] of tokens [B, L, D]."""
    if mask is None:
        return values.mean(1, keepdim=True), values.std(1, keepdim=True)
    weight = mask[:, :, None].to(values.dtype).expand_as(values)
    count = weight.sum((1, 2), keepdim=True)
    mean = (weight * values).sum((1, 2), keepdim=True) / count.clamp(min=1)
    squares = (weight * (values - mean).square()).sum((1, 2), keepdim=True)
    return mean, (squares / (count - 1).clamp(min=1)).sqrt()
