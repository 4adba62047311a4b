"""torch.compile for a network in training and for its average, one graph for each.

`nn.Module.compile` alone is lost in a copy, and a compiled network would be compiled again without gradients and for every
other batch size.
"""

import importlib.util
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as trees

__all__ = ["CPU_BREAK_EVEN", "CompiledInference", "compile_average", "compile_training", "should_compile"]

BACKEND = "inductor"
CPU_BREAK_EVEN = (
    700_000  # images: 132 s of compilation over 25 ms of 128 images, the 8x8 U-Net in bf16-mixed on a Xeon core
)
LARGE = 10**7  # parameters of a network for which the minutes of compilation are worth it on a GPU
MIN_ROWS = 16  # the choice of a convolution's kernel depends on 16 <= B, which would be a condition of the graph


def should_compile(choice: bool | str, device: torch.device, network: nn.Module) -> bool:
    """Whether to compile a network: a boolean is the answer; "auto" = a large network on a GPU, if Triton is installed."""
    if isinstance(choice, bool):
        return choice
    is_large = sum(parameter.numel() for parameter in network.parameters()) >= LARGE
    return device.type == "cuda" and is_large and importlib.util.find_spec("triton") is not None


def compile_training(network: nn.Module) -> None:
    """Compiles the calls of a network, for one shape of its inputs."""
    network.compile(backend=BACKEND, dynamic=False)


class CompiledInference:
    """The calls of a network without gradients, compiled once for all batch sizes.

    A call with gradients is not compiled, nor one of fewer than `MIN_ROWS` rows: each would need a graph of its own.

    Arguments:
        network: called as network(x, log_snr, y, ...), x [B, ...]. `can_compile(...)`, where it has that method, says whether a
            call with these further arguments may be compiled.
    """

    def __init__(self, network: nn.Module):
        self.plain = network._call_impl
        self.can_compile = getattr(network, "can_compile", None)  # a user's network may not have it
        self.compiled = torch.compile(network._call_impl, backend=BACKEND)

    def __call__(self, x: Tensor, *others: Any) -> Tensor:
        can_compile = self.can_compile is None or self.can_compile(*others[2:])
        if torch.is_grad_enabled() or len(x) < MIN_ROWS or not can_compile:
            return self.plain(x, *others)

        def unify(value: Any) -> Any:
            """Rows of a size that may change, in a memory format that does not."""
            if not isinstance(value, Tensor) or value.shape[:1] != x.shape[:1]:
                return value
            value = value.clone(memory_format=torch.contiguous_format)
            torch._dynamo.mark_dynamic(value, 0)
            return value

        return self.compiled(*trees.tree_map(unify, (x, *others)))


def compile_average(model: nn.Module, averaged: nn.Module) -> None:
    """Compiles the calls without gradients of an averaged model's backbone, if that of the model is compiled."""
    network, average = getattr(model, "backbone", None), getattr(averaged, "backbone", None)
    if isinstance(average, nn.Module) and getattr(network, "_compiled_call_impl", None) is not None:
        average._compiled_call_impl = CompiledInference(average)  # what nn.Module.compile sets
