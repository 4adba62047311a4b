"""The tensors of a published file, taken one by one; a mismatch is one line with the name of the tensor."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ..files.safetensors import CheckpointError

__all__ = ["ConversionError", "PublishedWeights"]


class ConversionError(CheckpointError):
    """Weights that cannot be converted. The message is one printable line: what is wrong, in which tensor."""


class PublishedWeights:
    """The tensors of a file by their published names.

    Arguments:
        tensors: by name.
        family: of the architecture, for messages.
        metadata: texts by name in the header of a .safetensors file.
    """

    def __init__(self, tensors: Mapping[str, Tensor], family: str, metadata: Mapping[str, str] | None = None):
        self.tensors, self.family, self.metadata = tensors, family, metadata or {}
        self.taken: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def shape(self, name: str, axes: int | None = None) -> tuple[int, ...]:
        """The shape of a tensor.

        Arguments:
            axes: number of its axes; None = any.

        Raises:
            ConversionError: no such tensor, or another number of axes.
        """
        if name not in self.tensors:
            raise ConversionError(f"it has no tensor {name}, which {self.family} has; choose another architecture")
        shape = tuple(self.tensors[name].shape)
        if axes is not None and len(shape) != axes:
            raise ConversionError(f"{name} has the shape {list(shape)}, and {self.family} needs {axes} axes there")
        return shape

    def count(self, prefix: str) -> int:
        """The number n of parts prefix.0 to prefix.(n - 1) that have tensors."""
        numbers = {name.removeprefix(f"{prefix}.").split(".")[0] for name in self if name.startswith(f"{prefix}.")}
        count = 0
        while str(count) in numbers:
            count += 1
        return count

    def take(self, name: str, *shape: int) -> Tensor:
        """A tensor in float32, which must have this shape.

        Raises:
            ConversionError: no such tensor, another shape, no floating-point numbers, NaN or infinity.
        """
        found = self.shape(name)
        if found != shape:
            raise ConversionError(f"{name} has the shape {list(found)}, and {self.family} needs {list(shape)} there")
        value = self.tensors[name]
        if not value.is_floating_point():
            raise ConversionError(f"{name} is of type {value.dtype}, not of floating-point numbers")
        if not value.isfinite().all():
            raise ConversionError(f"{name} has NaN or infinity")
        self.taken.add(name)
        return value.to(torch.float32)

    def skip(self, *names: str) -> None:
        """Marks tensors, where they exist, as known and not needed."""
        self.taken |= {name for name in names if name in self}

    def finish(self) -> None:
        """Raises ConversionError for a tensor that was never taken: the network would be another one without it."""
        if unknown := sorted(self.tensors.keys() - self.taken):
            more = f", and {len(unknown) - 1} more" if unknown[1:] else ""
            raise ConversionError(
                f"{unknown[0]}{more} has no place in {self.family} with these settings; choose another architecture"
            )
