"""Weights in safetensors files of other programs: their names and shapes first, then one tensor at a time.

A file is opened again for every few tensors, so that its pages leave the memory of the process.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from .run_folders import hash_file
from .safetensors import CheckpointError, reject_constant, reject_duplicates

__all__ = ["Weights", "find_variant", "hash_weights", "read_json", "weight_files"]

INDEX_NAME = re.compile(r".+\.safetensors\.index(\.[\w-]+)?\.json")  # of a variant such as fp16 with its name
BLOCK_BYTES = 2**23  # read before a file is opened again
MAX_JSON_BYTES = 2**24
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


def read_json(path: Path, infinite: bool = False) -> dict[str, Any]:
    """The mapping in a JSON file.

    Arguments:
        infinite: whether numbers may be Infinity and -Infinity, which are not JSON, but Python writes them.

    Raises:
        CheckpointError: a missing, unreadable or too large file, or one without a mapping.
    """
    try:
        if not path.is_file():  # opening a pipe would block
            raise ValueError("there is no such file")
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ValueError("it is larger than 16 MB")
        text = path.read_text(encoding="utf-8")
        constant = read_infinity if infinite else reject_constant
        value = json.loads(text, object_pairs_hook=reject_duplicates, parse_constant=constant)
        if not isinstance(value, dict):
            raise ValueError("it is no mapping")
        return value
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def read_infinity(constant: str) -> float:
    """The number of Infinity and -Infinity; raises ValueError for NaN."""
    if constant == "NaN":
        raise ValueError("it has NaN")
    return float(constant)


class Weights:
    """The tensors of one or more safetensors files.

    Arguments:
        files: no name in two of them.

    Attributes:
        specs: on the device meta, by name.

    Raises:
        CheckpointError: a file that is missing, damaged or no safetensors file, or a name in two files.
    """

    def __init__(self, files: Sequence[Path]):
        self.files = list(files)
        self.places: dict[str, Path] = {}
        self.specs: dict[str, Tensor] = {}
        for file in self.files:
            if not file.is_file():
                raise CheckpointError(f"there is no file {file}")
            try:
                self.read_header(file)
            except CheckpointError:
                raise
            except Exception as error:  # any error of the reader for a damaged header
                raise CheckpointError(f"{file} is no safetensors file, or is damaged ({error})") from error

    def read_header(self, file: Path) -> None:
        with safetensors.safe_open(file, framework="pt") as opened:
            for name in opened.keys():
                part = opened.get_slice(name)
                if name in self.places:
                    raise CheckpointError(f"{file} has {name}, which {self.places[name].name} has too")
                if part.get_dtype() not in DTYPES:
                    raise CheckpointError(f"{file} has {name} of the type {part.get_dtype()}, which is not supported")
                self.places[name] = file
                self.specs[name] = torch.empty(part.get_shape(), dtype=DTYPES[part.get_dtype()], device="meta")

    def read(self, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of each name; a tensor is valid until the next one is asked for."""
        block: list[str] = []
        for position, name in enumerate(names):
            block.append(name)
            last = position + 1 == len(names) or self.places[names[position + 1]] != self.places[name]
            if last or sum(self.specs[each].nbytes for each in block) > BLOCK_BYTES:
                with safetensors.safe_open(self.places[name], framework="pt") as opened:
                    for each in block:
                        yield each, opened.get_tensor(each)
                block = []


def find_variant(folder: Path, stem: str) -> Path | None:
    """The safetensors file of a name in a folder, or its index of shards; variants such as fp16 last. None = neither."""
    for name in ("safetensors", "safetensors.index.json", "*.safetensors", "safetensors.index.*.json"):
        found = [file for file in sorted(folder.glob(f"{stem}.{name}")) if not re.search(r"-\d+-of-\d+\.", file.name)]
        if found:
            return found[0]
    return None


def weight_files(file: Path) -> list[Path]:
    """The files of the weights: the file itself, or the shards of an index (`INDEX_NAME`).

    Raises:
        CheckpointError: an index that names other places than its folder.
    """
    if not INDEX_NAME.fullmatch(file.name):
        return [file]
    names = read_json(file).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise CheckpointError(f"{file} has no weight_map")
    for name in names.values():
        if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+\.safetensors", name):
            raise CheckpointError(f"{file} names {name!r}, which is no safetensors file beside it")
    return [file.parent / name for name in sorted(set(names.values()))]


def hash_weights(file: Path) -> str:
    """SHA-256 of a checkpoint file, or of the hashes of all shards of an index, hexadecimal."""
    hashes = [hash_file(each) for each in weight_files(file)]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
