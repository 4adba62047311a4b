"""Loading a network without a second copy of its weights, and without the time of a random initialisation."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as registration

__all__ = ["allocate_later", "fill_parameter"]


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


def fill_parameter(root: nn.Module, name: str, value: Tensor) -> None:
    """Gives a parameter or buffer a copy of a value, in its own type."""
    parent, _, leaf = name.rpartition(".")
    module = root.get_submodule(parent)
    held = getattr(module, leaf)
    copy = value.to(held.dtype, copy=True)
    if isinstance(held, nn.Parameter):
        setattr(module, leaf, nn.Parameter(copy, held.requires_grad))
    else:
        setattr(module, leaf, copy)
