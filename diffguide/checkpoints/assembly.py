"""Building the objective of a saved configuration."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..objectives import Objective
from ..runtime.put_off import put_off_compiler
from .allowlist import construct
from .validation import at_most, check_model, compare

__all__ = ["assemble", "check_on_meta"]


def assemble(config: dict[str, Any], trust: Sequence[str], device: str) -> Objective:
    """The objective of a saved configuration; on the device `meta` its network needs no memory."""
    schedule = construct(config["schedule"], "schedule", trust)  # small; its numbers are needed on `meta` too
    backbone = construct(config["backbone"], "backbone", trust, device=device)
    return construct(leave_out_teachers(config["objective"]), "objective", trust, backbone, schedule, device=device)


def leave_out_teachers(node: dict[str, Any]) -> dict[str, Any]:
    """The node of an objective without the models that it learned from: what it trained does not need them."""
    return {name: value for name, value in node.items() if name not in ("teacher", "teacher_guidance", "solver")}


def check_on_meta(held: dict[str, Tensor], metadata: dict[str, Any], trust: Sequence[str]) -> None:
    """Checks that tensors, of which only types and shapes matter, are those of the network of a configuration."""
    try:
        with put_off_compiler():
            check_network(held, metadata, trust)
    except ModuleNotFoundError:  # a network that asks for torch's compiler at once
        check_network(held, metadata, trust)


def check_network(held: dict[str, Tensor], metadata: dict[str, Any], trust: Sequence[str]) -> None:
    """Builds the network of a configuration without memory; raises CheckpointError unless it is that of the tensors."""
    with at_most(16 * len(held) + 256, "its configuration describes a far larger network than its tensors are"):
        expected = assemble(metadata["config"], trust, "meta")
    compare(held, expected.state_dict())
    check_model(expected.model, metadata)
