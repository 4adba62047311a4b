"""Fingerprints, which identify the data of a run in any folder, and the difference of two of them."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Fingerprint", "compare_fingerprints", "fingerprint_files", "fingerprint_tensors"]

MAX_LISTED_FILES = 100_000  # number of files up to which the hash of each is recorded
MAX_NAMED_FILES = 3  # files named per kind of change


class Fingerprint(NamedTuple):
    """The identity of a data set.

    Attributes:
        sha256: hash of all data, hexadecimal.
        total: number of examples, or of files.
        files: hash of each file by its path relative to the folder; None = no files, or too many to list.
    """

    sha256: str
    total: int
    files: Mapping[str, str] | None = None


def fingerprint_tensors(tensors: Sequence[Tensor], count: int) -> Fingerprint:
    """The hash of dtypes, shapes and bytes."""
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(json.dumps([str(tensor.dtype), list(tensor.shape)]).encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return Fingerprint(total.hexdigest(), count)


def fingerprint_files(files: Mapping[str, str]) -> Fingerprint:
    """The hash of a list of files.

    Arguments:
        files: hash of each file by its path relative to the folder.
    """
    total = hashlib.sha256(json.dumps(sorted(files.items())).encode()).hexdigest()
    return Fingerprint(total, len(files), dict(sorted(files.items())) if len(files) <= MAX_LISTED_FILES else None)


def compare_fingerprints(before: Fingerprint, now: Fingerprint) -> dict[str, Any] | None:
    """The changes as JSON: counts of added, removed and replaced files, and the first names of each.

    None = no change; only the numbers of examples if one of the two lists no files.
    """
    if before.sha256 == now.sha256:
        return None
    if before.files is None or now.files is None:
        return {"examples": [before.total, now.total]}
    old, new = before.files, now.files
    changed = {
        "added": [file for file in new if file not in old],
        "removed": [file for file in old if file not in new],
        "replaced": [file for file in new if file in old and new[file] != old[file]],
    }
    return {kind: {"count": len(files), "first": files[:MAX_NAMED_FILES]} for kind, files in changed.items() if files}
