"""Loading a network without a second copy of its weights, and without the time of a random initialisation."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as registration

__all__ = ["allocate", "allocate_later"]


@contextmanager
def allocate_later() -> Iterator[None]:
    """Parameters that are created inside are on the device meta, where initialisation takes neither time nor memory.

    Buffers are computed as usual, since a file may not have them.
    """
    thread = threading.get_ident()

    def move(module: nn.Module, name: str, parameter: nn.Parameter) -> Any:
        if threading.get_ident() != thread or parameter is None or parameter.is_meta:
            return None
        return nn.Parameter(parameter.to("meta"), parameter.requires_grad)

    hook = registration.register_module_parameter_registration_hook(move)
    try:
        yield
    finally:
        hook.remove()


def allocate(root: nn.Module) -> None:
    """Gives the parameters on the device meta memory on the CPU, all of it before any is filled.

    The temporary tensors of filling would else lie between them, and their memory could not be used again.
    """
    for module in root.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_meta:
                empty = torch.empty_like(parameter, device="cpu")
                setattr(module, name, nn.Parameter(empty, parameter.requires_grad))
