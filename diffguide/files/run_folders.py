"""Versioned run folders, the lock on them, and files that are whole or absent."""

import hashlib
import itertools
import json
import math
import os
import re
import shutil
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows has none: there, nothing prevents two processes on one run
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "BusyError",
    "WriteError",
    "append_json",
    "append_text",
    "create_sweep_dir",
    "create_version_dir",
    "lock_run_dir",
    "remove_leftovers",
    "hash_file",
    "shorten_path",
    "strict_json",
    "write_atomically",
    "write_together",
    "convert_write_errors",
]

VERSION_PATTERN = re.compile(r"v(\d{3,})")
UMASK = os.umask(0)  # can only be read by setting it
os.umask(UMASK)
LEFTOVER_PATTERN = re.compile(r"\..+\.\d+(\.\w+)?")  # what write_atomically names its temporary files


class WriteError(OSError):
    """Something could not be written; the message names it and the reason."""


class BusyError(OSError):
    """Another process is writing into this run."""


@contextmanager
def convert_write_errors(path: Path) -> Iterator[None]:
    """Names the path in every error of the operating system: disk full, read-only folder, folder removed meanwhile.

    Raises:
        WriteError: such an error.
    """
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        missing = isinstance(error, FileNotFoundError) and not path.parent.exists()
        reason = f"there is no folder {path.parent}" if missing else error.strerror or str(error)
        raise WriteError(f"cannot write {path}: {reason}") from error


def list_versions(parent: Path) -> list[int]:
    """The version numbers below a folder, ascending."""
    return sorted(int(match[1]) for path in parent.iterdir() if (match := VERSION_PATTERN.fullmatch(path.name)))


def create_version_dir(parent: Path, fill: Callable[[Path], object]) -> Path:
    """Makes and returns the next of parent/v001, v002, ...: a folder that appears with what `fill` puts into it.

    It is filled under a temporary name and renamed, which fails where the name is taken: two processes never share a
    version, and none is ever seen half-made.

    Arguments:
        fill: writes at least one file into the folder it is given.

    Raises:
        WriteError: a parent that cannot be written.
    """
    with convert_write_errors(parent / "v001"):
        parent.mkdir(parents=True, exist_ok=True)
        temporary = parent / f".v.{os.getpid()}.{threading.get_ident()}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            fill(temporary)
            number = max(list_versions(parent), default=0) + 1
            while True:
                folder = parent / f"v{number:03d}"
                if not folder.exists():  # renaming replaces an empty folder
                    try:
                        temporary.rename(folder)
                        return folder
                    except OSError:
                        if not folder.exists():
                            raise
                number += 1
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


@contextmanager
def lock_run_dir(folder: Path) -> Iterator[None]:
    """Holds the lock on a run folder; the operating system frees it however this process ends.

    A record lock, which processes that read data ahead do not inherit: one that outlives a killed run holds nothing.

    Raises:
        BusyError: another process holds it.
        WriteError: a folder that cannot be written.
    """
    with convert_write_errors(folder / ".lock"):
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            if fcntl is not None:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            owner = os.read(descriptor, 200).decode(errors="replace")
            raise BusyError(f"{folder} is being written by {owner}: wait for it, or stop it") from error
        except OSError:  # a file system without locks
            pass
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        os.close(descriptor)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a temporary file beside `path`, flushes it to the disk and renames it: whole or absent.

    Raises:
        WriteError: the disk is full, the folder is read-only or gone, ...
    """
    write_together({path: write})


def write_together(writes: Mapping[Path, Callable[[Path], object]]) -> None:
    """`write_atomically` of many files. They go to the disk together: one by one, each would wait for it.

    Raises:
        WriteError: the disk is full, the folder is read-only or gone, ...
    """
    temporaries = {path: path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}") for path in writes}
    try:
        for path, write in writes.items():
            with convert_write_errors(path):
                write(temporaries[path])
        for path, temporary in temporaries.items():
            with convert_write_errors(path):
                with open(temporary, "rb+") as file:
                    os.fsync(file.fileno())
        for path, temporary in temporaries.items():
            with convert_write_errors(path):
                os.chmod(temporary, 0o666 & ~UMASK)  # safetensors makes files that only their owner can read
                os.replace(temporary, path)
    except BaseException:
        for temporary in temporaries.values():
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        raise
    for path in {path.parent: path for path in writes}.values():
        with convert_write_errors(path):
            descriptor = os.open(path.parent, os.O_RDONLY)  # the renames themselves must reach the disk too
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Removes the temporary files of a process that was killed while it wrote; for the holder of the lock."""
    for path in folder.iterdir():
        if LEFTOVER_PATTERN.fullmatch(path.name) and path.is_file():
            path.unlink()


def append_text(path: Path, line: str) -> None:
    """Appends one line in a single write.

    Raises:
        WriteError: the disk is full, the folder is gone, ...
    """
    with convert_write_errors(path), open(path, "a", encoding="utf-8") as file:
        file.write(line + "\n")


def append_json(path: Path, record: dict) -> None:
    """Appends one JSON line in a single write.

    Raises:
        WriteError: the disk is full, the folder is gone, ...
    """
    append_text(path, strict_json(record))


def strict_json(value: Any, indent: int | None = None) -> str:
    """JSON that every reader reads: it has no infinities, which become the strings inf, -inf and nan.

    Arguments:
        indent: of nested parts, spaces; None = all in one line.
    """

    def finite(part):
        if isinstance(part, dict):
            return {key: finite(below) for key, below in part.items()}
        if isinstance(part, list | tuple):
            return [finite(below) for below in part]
        return str(part) if isinstance(part, float) and not math.isfinite(part) else part

    return json.dumps(finite(value), allow_nan=False, indent=indent)


def create_sweep_dir(folders: Sequence[Path]) -> Path:
    """Makes and returns the folder of a sweep: beside its runs, or beside their folders where they are of several names.

    It is named by the lowest and the highest version, whichever run came first where they went side by side.
    """
    parent, last = folders[0].parent, folders[-1].parent

    def version(folder: Path) -> tuple[int, str]:
        return len(folder.name), folder.name

    ends = [
        min((folder for folder in folders if folder.parent == parent), key=version),
        max((folder for folder in folders if folder.parent == last), key=version),
    ]
    if all(folder.parent == parent for folder in folders):
        return create_numbered_dir(parent, "sweep_" + "-".join(folder.name for folder in ends))
    return create_numbered_dir(
        parent.parent, "sweep_" + "-".join(f"{folder.parent.name}_{folder.name}" for folder in ends)
    )


def create_numbered_dir(parent: Path, name: str) -> Path:
    """Makes and returns parent/name, or parent/name_2, ... where that is taken."""
    folder = parent / name
    for number in itertools.count(2):
        try:
            folder.mkdir()
            break
        except FileExistsError:
            folder = parent / f"{name}_{number}"
    return folder


def shorten_path(value: str) -> str:
    """A path by its last two parts, anything else as it is."""
    return "/".join(Path(value).parts[-2:])


def hash_file(path: Path) -> str:
    """The hash of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
