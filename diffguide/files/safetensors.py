"""The file format: tensors and a JSON text in a safetensors file with a checksum over both; no pickle.

The metadata key `diffguide` has the text. Its last entry `sha256` is the hash of the rest of the text and of the name, dtype,
shape and bytes of every tensor, so that a changed file is detected.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from .run_folders import strict_json, write_atomically
from .text import escape_unprintable, shorten

__all__ = [
    "FORMAT_VERSION", "METADATA_KEY", "CheckpointError", "read_metadata", "read_sealed", "select_prefix", "write_sealed",
]  # fmt: skip

FORMAT_VERSION = 2
METADATA_KEY = "diffguide"
MAX_MESSAGE_LENGTH = 600  # characters of a message, which may quote a foreign file


class CheckpointError(ValueError):
    """A file that is missing, damaged, foreign or not trusted. The message is one printable line."""

    def __init__(self, message: str):
        super().__init__(shorten(escape_unprintable(" ".join(message.split())), MAX_MESSAGE_LENGTH))


def write_sealed(path: Path, tensors: dict[str, Tensor], metadata: dict) -> None:
    """Writes a sealed file atomically.

    Raises:
        WriteError: the disk is full, the folder is read-only or missing, ...
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    metadata = json.loads(strict_json({"format": FORMAT_VERSION, **metadata}))
    text = json.dumps(metadata | {"sha256": compute_digest(tensors, metadata)})

    def fill(temporary: Path) -> None:
        try:
            safetensors.torch.save_file(tensors, temporary, {METADATA_KEY: text})
        except safetensors.SafetensorError as error:  # a full disk
            raise OSError(str(error)) from error

    write_atomically(path, fill)


def compute_digest(tensors: dict[str, Tensor], metadata: dict) -> str:
    """The hash of metadata and tensors, hexadecimal."""
    total = hashlib.sha256(json.dumps(metadata).encode())
    for name, value in sorted(tensors.items()):
        total.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def read_sealed(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a sealed file.

    Raises:
        CheckpointError: an unreadable file, a file of another program or format version, or a wrong checksum.
    """
    if not path.is_file():  # opening a pipe would block
        raise CheckpointError(f"there is no file {path}")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
            tensors = {} if text is None else {name: file.get_tensor(name) for name in file.keys()}
    except Exception as error:  # any error of the reader for a damaged header
        raise CheckpointError(f"{path} is not a checkpoint of diffguide, or is damaged ({error})") from error
    if text is None:
        raise CheckpointError(f"{path} is not a checkpoint of diffguide: it was written by another program")
    try:
        metadata = json.loads(text, object_pairs_hook=reject_duplicates, parse_constant=reject_constant)
        if not isinstance(metadata, dict):
            raise ValueError("its metadata is not a mapping")
        if metadata.get("format") != FORMAT_VERSION:
            version = shorten(repr(metadata.get("format")), 20)
            raise CheckpointError(
                f"{path} has checkpoint format {version}, but this version of diffguide reads format {FORMAT_VERSION}"
            )
        seal = metadata.pop("sha256", None)
        if seal != compute_digest(tensors, metadata):
            raise ValueError("its checksum does not match its contents")
        return tensors, restore_infinities(metadata)
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata of a sealed file, without its tensors and unverified; {} for an unreadable file."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {})[METADATA_KEY])
    except (safetensors.SafetensorError, OSError, LookupError, TypeError, ValueError, RecursionError):
        return {}
    return metadata if isinstance(metadata, dict) else {}


def reject_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A mapping of a JSON text. Raises ValueError for a duplicate key, of which readers may choose either."""
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        raise ValueError("its metadata has a key twice")
    return mapping


def reject_constant(constant: str) -> None:
    """Raises ValueError for NaN and infinities, which are not JSON."""
    raise ValueError(f"its metadata has {constant}")


def restore_infinities(value: Any) -> Any:
    """Inverts `strict_json`: the texts inf and -inf become numbers, except in names."""
    if isinstance(value, dict):
        return {
            key: part if key in ("name", "class_names") else restore_infinities(part) for key, part in value.items()
        }
    if isinstance(value, list):
        return [restore_infinities(part) for part in value]
    return float(value) if value in ("inf", "-inf") else value


def select_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors named `prefix.*`, without the prefix."""
    return {key.removeprefix(f"{prefix}."): value for key, value in tensors.items() if key.startswith(f"{prefix}.")}
