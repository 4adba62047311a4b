"""The file format: tensors and one JSON text in a safetensors file, sealed with a checksum over both; never pickle.

The metadata key `diffguide` holds the text, whose last entry `sha256` is the hash of the rest of the text and of every
tensor's name, type, shape and bytes. Any change of what a file says or holds is told when it is read.
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

__all__ = ["FORMAT", "KEY", "CheckpointError", "below", "read", "read_metadata", "write"]

FORMAT = 2
KEY = "diffguide"
LONGEST = 600  # characters of a message; what a foreign file makes us say stays readable


class CheckpointError(ValueError):
    """A file that is missing, damaged, foreign or not to be trusted: one printable line, which says what would be right."""

    def __init__(self, message: str):
        super().__init__(shorten(printable(" ".join(message.split())), LONGEST))


def printable(text: str) -> str:
    """The text with everything that a terminal might obey written out, such as \\x1b."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def shorten(text: str, length: int) -> str:
    """The text, or its beginning and three dots."""
    return text if len(text) <= length else text[: length - 3] + "..."


def write(path: Path, tensors: dict[str, Tensor], metadata: dict) -> None:
    """Writes a sealed file, whole or not at all.

    Raises:
        WriteError: the disk is full, the folder is read-only or gone, ...
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    metadata = json.loads(strict_json({"format": FORMAT, **metadata}))
    text = json.dumps(metadata | {"sha256": digest(tensors, metadata)})

    def fill(temporary: Path) -> None:
        try:
            safetensors.torch.save_file(tensors, temporary, {KEY: text})
        except safetensors.SafetensorError as error:  # how it tells of a full disk
            raise OSError(str(error)) from error

    write_atomically(path, fill)


def digest(tensors: dict[str, Tensor], metadata: dict) -> str:
    """The hash of all that a file says and holds, hexadecimal."""
    total = hashlib.sha256(json.dumps(metadata).encode())
    for name, value in sorted(tensors.items()):
        total.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of one of our files.

    Raises:
        CheckpointError: no readable file, not ours, of another format version, or changed since it was written.
    """
    if not path.is_file():  # opening a pipe would wait for ever
        raise CheckpointError(f"there is no file {path}")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(KEY)
            tensors = {} if text is None else {name: file.get_tensor(name) for name in file.keys()}
    except Exception as error:  # whatever the reader of a broken header may raise
        raise CheckpointError(f"{path} is not a checkpoint of diffguide, or is damaged ({error})") from error
    if text is None:
        raise CheckpointError(f"{path} is not a checkpoint of diffguide: it was written by another program")
    try:
        metadata = json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
        if not isinstance(metadata, dict):
            raise ValueError("its metadata is no mapping")
        if metadata.get("format") != FORMAT:
            version = shorten(repr(metadata.get("format")), 20)
            raise CheckpointError(f"{path} has checkpoint format {version}, this diffguide reads format {FORMAT}")
        seal = metadata.pop("sha256", None)
        if seal != digest(tensors, metadata):
            raise ValueError("its contents and its checksum disagree")
        return tensors, restore(metadata)
    except (ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is damaged: {error}") from error


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata of one of our files, unchecked and without its tensors; {} where it cannot be read."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {})[KEY])
    except (safetensors.SafetensorError, OSError, LookupError, TypeError, ValueError, RecursionError):
        return {}
    return metadata if isinstance(metadata, dict) else {}


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A mapping of a JSON text, in which no key may come twice: two readers could see two files."""
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        raise ValueError("its metadata has a key twice")
    return mapping


def refuse(constant: str) -> None:
    """NaN and infinities are no JSON."""
    raise ValueError(f"its metadata holds {constant}")


def restore(value: Any) -> Any:
    """Undoes `strict_json`: the texts inf and -inf become numbers again, but for names."""
    if isinstance(value, dict):
        return {key: part if key in ("name", "class_names") else restore(part) for key, part in value.items()}
    if isinstance(value, list):
        return [restore(part) for part in value]
    return float(value) if value in ("inf", "-inf") else value


def below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors named `prefix.*`, without the prefix."""
    return {key.removeprefix(f"{prefix}."): value for key, value in tensors.items() if key.startswith(f"{prefix}.")}
