"""Versioned run folders, and files that are whole or absent."""

import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["claim_version", "write_atomically", "append_line", "strict_json"]

VERSION = re.compile(r"v(\d{3,})")


def versions(parent: Path) -> list[int]:
    """The version numbers below a folder, ascending."""
    return sorted(int(match[1]) for path in parent.iterdir() if (match := VERSION.fullmatch(path.name)))


def claim_version(parent: Path) -> Path:
    """Makes and returns the next of parent/v001, v002, ...; an exclusive mkdir, so two processes never share one."""
    parent.mkdir(parents=True, exist_ok=True)
    number = max(versions(parent), default=0) + 1
    while True:
        try:
            (folder := parent / f"v{number:03d}").mkdir()
            return folder
        except FileExistsError:
            number += 1


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Lets `write` fill a temporary file beside `path`, flushes it to the disk and renames it: whole or absent."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    descriptor = os.open(path.parent, os.O_RDONLY)  # the rename itself must reach the disk too
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def append_line(path: Path, record: dict) -> None:
    """Appends one JSON line in a single write."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(strict_json(record) + "\n")


def strict_json(value: Any) -> str:
    """JSON that every reader reads: it has no infinities, which become the strings inf, -inf and nan."""

    def finite(part):
        if isinstance(part, dict):
            return {key: finite(below) for key, below in part.items()}
        if isinstance(part, list | tuple):
            return [finite(below) for below in part]
        return str(part) if isinstance(part, float) and not math.isfinite(part) else part

    return json.dumps(finite(value), allow_nan=False)
