"""What a network makes of a condition: a vector beside the noise level, tokens to attend to, channels beside x."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .conditions import Condition

__all__ = [
    "ConditionTable",
    "Conditioning",
    "Context",
    "check_conditioning",
    "find_column",
    "join_channels",
    "mask_rows",
]


class Context(NamedTuple):
    """A condition as a network takes it; None for what the condition has not.

    Attributes:
        vector: [B, V], added to the conditioning vector after a linear layer.
        tokens: [B, L, D], to which cross-attention attends.
        mask: [B, L] bool, True = a token; every row has one. None = all are.
        channels: [B, C, H, W], which the network gets beside the channels of x.
    """

    vector: Tensor | None = None
    tokens: Tensor | None = None
    mask: Tensor | None = None
    channels: Tensor | None = None


class ConditionTable:
    """The conditions of the examples of a split: table(rows, x, chance) -> y.

    A table moves to the device of x and stays there: a training step reads nothing back, for which it would wait.

    Attributes:
        draws: how many uniform numbers per row training draws for it, to choose among captions or to drop parts.
    """

    draws: int = 0

    def __call__(self, rows: Tensor, x: Tensor, chance: Tensor | None = None) -> Condition:
        """The condition of some rows, on the device of x.

        Arguments:
            rows: [B] indices into the split.
            x: [B, ...], these examples as the network gets them.
            chance: [B, draws] uniform numbers in [0, 1); None = the first of several, and nothing is dropped.
        """
        raise NotImplementedError


class Conditioning(nn.Module):
    """Base of the conditions that a network can be built with: conditioning(y, x) -> Context.

    Attributes:
        vector_features: length V of the vector; 0 = none.
        token_features: length D of the tokens; 0 = none.
        channels: number of channels beside those of x.
        column: the column of the data that it reads; "" = none.
        reads_text: whether `read` takes texts.
        gives_vectors: whether `embed` gives vectors of a network or an encoder, to which guidance=cads adds noise.
    """

    vector_features: int = 0
    token_features: int = 0
    channels: int = 0
    column: str = ""
    reads_text: bool = False
    gives_vectors: bool = False

    def forward(self, y: Condition | None, x: Tensor) -> Context:
        """The context of the rows of x [B, ...]; None, and rows without condition, are the null condition.

        Raises:
            ValueError: a condition of another kind.
        """
        raise NotImplementedError

    def embed(self, y: Condition) -> Condition:
        """What can be computed once for all noise levels, which `forward` takes in place of y; y itself by default."""
        return y

    def draw(self, y: Condition, noise: Any) -> Condition:
        """A condition that was read, with what is random in it drawn for the samples of a `Noise`; y itself by default."""
        return y

    def settle(self, node: Mapping[str, Any]) -> dict[str, Any]:
        """The node that this was built from, with what was read from other files: a checkpoint is built without them."""
        return dict(node)

    def explain(self) -> Mapping[str, str]:
        """What the tensors of its conditions hold, by their names, for who gets them without this package."""
        return {}

    def tabulate(self, columns: Mapping[str, Any], labels: Tensor) -> ConditionTable:
        """The conditions of a split.

        Arguments:
            columns: of the split, each with an entry per example.
            labels: [N] class indices, -1 = none.

        Raises:
            ValueError: the data lack what this condition needs.
        """
        raise NotImplementedError

    def read(self, values: Sequence[Any]) -> Condition:
        """The condition that a user wrote, one row per value; "" = no condition in this row.

        Raises:
            ValueError: a value that this condition does not have.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot be written on a command line")


def check_conditioning(conditioning: Conditioning | None, num_classes: int, condition_features: int) -> None:
    """Raises ValueError for a network with a conditioning and another condition beside it."""
    if conditioning is not None and (num_classes or condition_features):
        raise ValueError(
            f"num_classes and condition_features must be 0 with a conditioning, got {num_classes} and {condition_features}; "
            "classes beside a text are a part of condition=several"
        )


def join_channels(x: Tensor, context: Context | None) -> Tensor:
    """x [B, C, H, W] and the channels of a context beside it, if it has any."""
    if context is None or context.channels is None:
        return x
    return torch.cat([x, context.channels.to(x.dtype)], dim=1)


def find_column(columns: Mapping[str, Any], name: str, kind: str) -> Any:
    """A column of the data; raises ValueError where they have none of this name."""
    if name not in columns:
        has = f"they have {', '.join(columns)}" if columns else "they have classes at most"
        raise ValueError(f"{kind} needs data with {name}, and {has}")
    return columns[name]


def mask_rows(value: Tensor, keep: Tensor) -> Tensor:
    """value [B, ...] with zeros in the rows where keep [B] is False."""
    return torch.where(keep.reshape(-1, *[1] * (value.ndim - 1)), value, torch.zeros_like(value))
