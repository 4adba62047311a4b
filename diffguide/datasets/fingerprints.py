"""What identifies the data of a run, whoever has them and wherever they lie, and what differs between two such records."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Fingerprint", "difference", "of_files", "of_tensors"]

LISTED, NAMED = 100_000, 3  # files up to which each is recorded; files that are named


class Fingerprint(NamedTuple):
    """
    Attributes:
        sha256: of everything, hexadecimal.
        count: of examples, or of files.
        files: hash of each file by its path inside the folder; None = not of files, or too many to be listed.
    """

    sha256: str
    count: int
    files: Mapping[str, str] | None = None


def of_tensors(tensors: Sequence[Tensor], count: int) -> Fingerprint:
    """The hash of types, shapes and bytes."""
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(json.dumps([str(tensor.dtype), list(tensor.shape)]).encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return Fingerprint(total.hexdigest(), count)


def of_files(files: Mapping[str, str]) -> Fingerprint:
    """The hash of a list of files.

    Arguments:
        files: hash of each by its path inside the folder.
    """
    total = hashlib.sha256(json.dumps(sorted(files.items())).encode()).hexdigest()
    return Fingerprint(total, len(files), dict(sorted(files.items())) if len(files) <= LISTED else None)


def difference(before: Fingerprint, now: Fingerprint) -> dict[str, Any] | None:
    """What changed, for a reader of JSON: counts of added, removed and replaced files, and the first of each.

    None where nothing did; only the number of examples where one of the two lists no files.
    """
    if before.sha256 == now.sha256:
        return None
    if before.files is None or now.files is None:
        return {"examples": [before.count, now.count]}
    old, new = before.files, now.files
    changed = {
        "added": [file for file in new if file not in old],
        "removed": [file for file in old if file not in new],
        "replaced": [file for file in new if file in old and new[file] != old[file]],
    }
    return {kind: {"count": len(files), "first": files[:NAMED]} for kind, files in changed.items() if files}
