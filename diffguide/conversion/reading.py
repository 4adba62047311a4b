"""Reading the tensors of a published file without running code in it, and without copying them into memory.

A `.pt` file is a pickle, which may run any program. Here torch's restricted reader takes tensors and plain values only.
"""

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from .weights import ConversionError

__all__ = ["read_metadata", "read_tensors"]

PARTS = (
    "ema",
    "ema_state_dict",
    "model_ema",
    "model",
    "state_dict",
    "net",
    "network",
)  # of a file, the averaged weights first
OLD_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # first bytes of a file of torch.save before torch 1.6
HOLDS_CODE = (
    "it holds code or objects besides tensors, which are not read since they could run any program; where you trust it, make "
    "a file of tensors in the environment that wrote it: safetensors.torch.save_file({name: value.contiguous() for name, "
    "value in state_dict.items()}, 'weights.safetensors')"
)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors of a .pt or .safetensors file, on the CPU and backed by the file; and the part of it that they are, "" = all.

    Of a file with several sets of weights the averaged one is taken.

    Raises:
        ConversionError: a missing, damaged or foreign file, or one that holds more than tensors and plain values.
    """
    if path.is_dir():
        raise ConversionError(
            f"{path} is a folder, and the weights are one file; a folder of diffusers is a model as it is, checkpoint={path}"
        )
    if not path.is_file():
        raise ConversionError(f"there is no file {path}")
    if path.suffix == ".safetensors":
        return read_safetensors(path), ""
    return select_part(load_restricted(path), path)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}
    except Exception as error:  # any error of the reader for a damaged header
        raise ConversionError(f"{path} is no safetensors file, or is damaged ({error})") from error


def read_metadata(path: Path) -> dict[str, str]:
    """The texts by name in the header of a .safetensors file; none for another file."""
    if path.suffix != ".safetensors":
        return {}
    with safetensors.safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def load_restricted(path: Path) -> Any:
    """The content of a .pt file: tensors and plain containers."""
    try:
        with warnings.catch_warnings(action="ignore"):  # on pickles of other programs
            # files of torch before 1.6 cannot be mapped into memory
            return torch.load(path, weights_only=True, map_location="cpu", mmap=zipfile.is_zipfile(path))
    except Exception as error:  # any error of the reader for a damaged file
        refused = isinstance(error, pickle.UnpicklingError) and "global" in str(error).lower()
        if refused or is_plain_pickle(path):
            raise ConversionError(f"{path}: {HOLDS_CODE}") from error
        raise ConversionError(f"{path} is no file of torch.save, or is damaged ({type(error).__name__})") from error


def is_plain_pickle(path: Path) -> bool:
    """Whether a file begins as a pickle of protocol 2 or later, and not as one of torch.save before torch 1.6."""
    with open(path, "rb") as file:
        first = file.read(len(OLD_MAGIC))
    return first[:1] == b"\x80" and first != OLD_MAGIC


def select_part(content: Any, path: Path) -> tuple[dict[str, Tensor], str]:
    """The set of weights in what a file holds, and the name of its part."""
    taken: list[str] = []
    while isinstance(content, Mapping) and not is_state(content):
        part = next((name for name in PARTS if isinstance(content.get(name), Mapping)), None)
        if part is None:
            break
        content = content[part]
        taken.append(part)
    if not isinstance(content, Mapping) or not is_state(content):
        raise ConversionError(f"{path} has no state dict: neither tensors by name, nor one of {', '.join(PARTS)}")
    return dict(content), ".".join(taken)


def is_state(content: Mapping[Any, Any]) -> bool:
    """Whether a mapping is tensors by name."""
    return bool(content) and all(isinstance(key, str) and isinstance(part, Tensor) for key, part in content.items())
