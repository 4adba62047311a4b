"""Versioned run folders, and files that are whole or absent."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

__all__ = ["claim_version", "write_atomically", "append_line", "latest_version"]

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


def latest_version(parent: Path) -> Path | None:
    """The newest version folder below a folder, or None."""
    numbers = versions(parent) if parent.is_dir() else []
    return parent / f"v{numbers[-1]:03d}" if numbers else None


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
        file.write(json.dumps(record) + "\n")
