"""The state of an optimiser, as the file beside a checkpoint holds it."""

import re
from typing import Any

import torch
from torch import Tensor

from ..files.safetensors import CheckpointError
from .validation import check_finite_tensor

__all__ = ["optimizer_state", "read_numbers"]


def read_numbers(saved: dict[str, Any], name: str) -> dict[str, Any]:
    """A mapping to numbers in the metadata of a file; raises CheckpointError for any other value."""
    value = saved.get(name)
    if not isinstance(value, dict) or not all(isinstance(part, int | float | None) for part in value.values()):
        raise CheckpointError(f"its {name} must be a mapping of numbers")
    return value


def optimizer_state(memory: dict[str, Tensor], saved: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict:
    """The state of each parameter in a file, {index: {name: value}}.

    Files hold tensors in the usual order of memory. Where a parameter is stored channels last its state is, too: torch's fused
    optimisers go through both by their place in memory, without a look at their strides.

    Raises:
        CheckpointError: the number or the shapes of the parameters differ.
    """
    parameters = [value for group in optimizer.param_groups for value in group["params"]]
    counts = [len(group["params"]) for group in optimizer.param_groups]
    if saved.get("parameters") != counts:
        raise CheckpointError(f"it is of an optimiser of {saved.get('parameters')} parameters, this one has {counts}")
    state: dict[int, dict] = {}
    for key, value in (read_numbers(saved, "state") | memory).items():
        match = re.fullmatch(r"(\d{1,9})\.(\w+)", key, re.ASCII)
        if not match or int(match[1]) >= len(parameters):
            raise CheckpointError(f"{key!r} is no state of one of {len(parameters)} parameters")
        sides = parameters[int(match[1])].shape
        if isinstance(value, Tensor) and value.ndim:  # one value per parameter, per row, per column or in all
            if value.ndim != len(sides) or any(side not in (1, own) for side, own in zip(value.shape, sides)):
                raise CheckpointError(f"{key} has the shape {list(value.shape)}, its parameter has {list(sides)}")
        if isinstance(value, Tensor):
            check_finite_tensor(value, key)
            value = order_as(value, parameters[int(match[1])])
        state.setdefault(int(match[1]), {})[match[2]] = value
    return state


def order_as(value: Tensor, parameter: Tensor) -> Tensor:
    """A tensor in the order of memory of a parameter; itself where its shape is another one."""
    if value.shape != parameter.shape or value.stride() == parameter.stride():
        return value
    return torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)
