"""A record of the data of a run, in its folder and its checkpoints, and the comparison with the data of today.

A checkpoint has {sha256, count, path} of its data. data.json in the run folder also lists the files, so that a message can
name those that were added, removed or replaced.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..datasets import Dataset
from ..datasets.fingerprints import Fingerprint, compare_fingerprints
from ..files.run_folders import strict_json, write_atomically
from ..files.text import escape_unprintable

__all__ = [
    "FILE",
    "find_changes",
    "check_record",
    "describe_changes",
    "locate_data",
    "read_record",
    "record",
    "read_seen_data",
    "write",
]

FILE = "data.json"
MAX_PATH_CHARACTERS = 4096
MAX_BYTES = 2**28  # of a data.json


def record(data: Dataset) -> dict[str, Any]:
    """The record of a data set: its hash, its number of examples or files, and the absolute path of its folder, if any."""
    fingerprint = data.fingerprint()
    path = None if data.folder is None else os.path.abspath(data.folder)
    return {"sha256": fingerprint.sha256, "count": fingerprint.total, "path": path}


def write(path: Path, data: Dataset) -> None:
    """Writes the record, with the list of files.

    Raises:
        WriteError: the disk is full, the folder is gone, ...
    """
    text = strict_json(record(data) | {"files": data.fingerprint().files}, indent=1) + "\n"

    def write_text(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    write_atomically(path, write_text)


def check_record(value: Any) -> None:
    """Raises ValueError for a value that `record` does not return."""
    is_record = (
        isinstance(value, dict)
        and isinstance(value.get("sha256"), str)
        and re.fullmatch("[0-9a-f]{64}", value["sha256"])
        and isinstance(value.get("count"), int)
        and isinstance(value.get("path"), str | None)
        and len(value["path"] or "") <= MAX_PATH_CHARACTERS
        and "\0" not in (value["path"] or "")
    )
    if not is_record:
        raise ValueError("data must hold a sha256, a count and a path")


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record in a run folder; None where it is missing or invalid."""
    path = folder / FILE
    try:
        if not path.is_file() or path.stat().st_size > MAX_BYTES:
            return None
        recorded = json.loads(path.read_text(encoding="utf-8"))
        check_record(recorded)
    except (OSError, ValueError, RecursionError):
        return None
    return recorded


def read_seen_data(folder: Path, metadata: Mapping[str, Any]) -> dict[str, Any] | None:
    """The record in a checkpoint, with the path and the list of files from the run folder.

    The path may have changed since, on resume. The list of files is added where the run folder records the same data.

    Arguments:
        folder: of the run.
        metadata: of the checkpoint.
    """
    seen = metadata.get("data")
    current = read_record(folder)
    if seen is None or current is None:
        return seen
    files = {"files": current.get("files")} if seen["sha256"] == current["sha256"] else {}
    return seen | {"path": current["path"]} | files


def read_fingerprint(before: Mapping[str, Any]) -> Fingerprint:
    """The fingerprint in a record, with its list of files if that is valid."""
    files = before.get("files")
    plain = isinstance(files, dict) and all(isinstance(value, str) for value in files.values())
    return Fingerprint(before["sha256"], before["count"], files if plain else None)


def find_changes(before: Mapping[str, Any] | None, data: Dataset) -> dict[str, Any] | None:
    """How the data differ from a record; None where they do not, or there is no record."""
    return None if before is None else compare_fingerprints(read_fingerprint(before), data.fingerprint())


def describe_changes(changes: Mapping[str, Any]) -> str:
    """Changes for a message: 2 files added (a.png, b.png), 1 replaced (c.png)."""
    if "examples" in changes:
        before, now = changes["examples"]
        return f"other contents, {before} examples or files then, {now} now"
    parts = []
    for kind, part in changes.items():
        names = ", ".join(map(escape_unprintable, part["first"])) + (
            ", ..." if part["count"] > len(part["first"]) else ""
        )
        parts.append(f"{part['count']} files {kind} ({names})")
    return ", ".join(parts)


def locate_data(node: Mapping[str, Any], before: Mapping[str, Any] | None) -> dict[str, Any]:
    """The node of a data set, with the recorded path if that exists."""
    path = before and before["path"]
    return dict(node) | ({"path": path} if path and "path" in node and os.path.exists(path) else {})
