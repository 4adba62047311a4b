"""Fingerprints that identify the data of a run wherever they lie, and the difference of two of them."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Fingerprint", "compare_fingerprints", "fingerprint_files", "fingerprint_tensors"]

MAX_LISTED_FILES, MAX_NAMED_FILES = 100_000, 3  # files up to which each is recorded; files that are named


class Fingerprint(NamedTuple):
    """
    Attributes:
        sha256: of everything, hexadecimal.
        total: number of examples, or of files.
        files: hash of each file by its path inside the folder; None = not of files, or too many to be listed.
    """

    sha256: str
    total: int
    files: Mapping[str, str] | None = None


def fingerprint_tensors(tensors: Sequence[Tensor], count: int) -> Fingerprint:
    """The hash of types, shapes and bytes."""
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(json.dumps([str(tensor.dtype), list(tensor.shape)]).encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return Fingerprint(total.hexdigest(), count)


def fingerprint_files(files: Mapping[str, str]) -> Fingerprint:
    """The hash of a list of files.

    Arguments:
        files: hash of each by its path inside the folder.
    """
    total = hashlib.sha256(json.dumps(sorted(files.items())).encode()).hexdigest()
    return Fingerprint(total, len(files), dict(sorted(files.items())) if len(files) <= MAX_LISTED_FILES else None)


def compare_fingerprints(before: Fingerprint, now: Fingerprint) -> dict[str, Any] | None:
    """What changed, for a reader of JSON: counts of added, removed and replaced files, and the first of each.

    None where nothing did; only the number of examples where one of the two lists no files.
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
