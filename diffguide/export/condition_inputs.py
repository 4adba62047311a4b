"""The tensors of a condition as inputs of an exported program: texts, attributes, numbers, pictures, or several of them."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..backbones.conditioning import Conditioning
from ..backbones.conditions import Condition, RowCondition, Several
from ..conditions.several import SeveralConditions
from .errors import ExportError

__all__ = ["CLASS", "ConditionInput", "assemble_condition", "list_inputs"]

CLASS, KEEP = "class index, -1 = no class", "false = no condition in this row"


@dataclass(frozen=True)
class ConditionInput:
    """One of the tensors of a condition.

    Arguments:
        null: [1, ...], of a row without condition: int64, float32 or bool, the same number everywhere.
        meaning: for a user of the program.
        kind: of the condition; None = class indices.
    """

    null: Tensor
    meaning: str
    kind: type[RowCondition] | None

    @property
    def dtype(self) -> str:
        return str(self.null.dtype).removeprefix("torch.")

    @property
    def shape(self) -> list[int]:
        """Of a row."""
        return list(self.null.shape[1:])

    @property
    def is_constant(self) -> bool:
        """Whether one number stands for no condition."""
        same = self.null.isnan() if math.isnan(self.null_value) else self.null == self.null_value
        return bool(same.all())

    @property
    def null_value(self) -> float:
        return self.null.flatten()[0].item()


def list_inputs(conditioning: Conditioning) -> tuple[Condition, dict[str, ConditionInput]]:
    """(A row without condition, the inputs of a program by name, in their order).

    Raises:
        ExportError: a conditioning whose conditions are not said in tensors with one number for "no condition".
    """
    try:
        null = conditioning.read([""])
    except NotImplementedError as error:
        raise ExportError(f"programs take conditions that can be written, and {error}: take to=safetensors") from error
    found = flatten(null, conditioning)
    if odd := [name for name, given in found.items() if not given.is_constant]:
        raise ExportError(
            f"programs need one number for no condition, and {odd[0]} of {type(conditioning).__name__} has several: take "
            "to=safetensors"
        )
    return null, found


def flatten(null: Condition, conditioning: Conditioning, prefix: str = "") -> dict[str, ConditionInput]:
    """The inputs of a condition; those of the parts of several begin with the name of the part."""
    if isinstance(null, Several):
        assert isinstance(conditioning, SeveralConditions)
        parts = ((name, part, conditioning.part(name)) for name, part in null.parts.items())
        return {key: value for name, part, owner in parts for key, value in flatten(part, owner, f"{name}_").items()}
    if isinstance(null, Tensor):
        return {f"{prefix}label": ConditionInput(null.long(), CLASS, None)}
    meanings, found = conditioning.explain(), {}
    for name, tensor in zip(null.names, null.tensors()):
        if tensor is not None:
            plain = (
                tensor
                if tensor.dtype == torch.bool
                else tensor.float()
                if tensor.is_floating_point()
                else tensor.long()
            )
            found[prefix + name] = ConditionInput(
                plain, meanings.get(name, f"{name} of a {type(null).__name__}"), type(null)
            )
    if not null.says_none:
        found[f"{prefix}keep"] = ConditionInput(null.keep, KEEP, type(null))
    return found


def assemble_condition(null: Condition, tensors: Sequence[Tensor]) -> Condition:
    """The condition of tensors [B, ...] in the order of `list_inputs`."""
    return take(null, iter(tensors))


def take(null: Condition, tensors: Iterator[Tensor]) -> Condition:
    if isinstance(null, Several):
        return Several({name: take(part, tensors) for name, part in null.parts.items()})
    if isinstance(null, Tensor):
        return next(tensors)
    given = [None if part is None else next(tensors) for part in null.tensors()]
    return null.rebuild(given, None if null.says_none else next(tensors))
