"""Versioned run folders, their lock, and atomic writes."""

import errno
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
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "BusyError",
    "WriteError",
    "append_json",
    "append_text",
    "convert_write_errors",
    "create_dir",
    "create_sweep_dir",
    "create_version_dir",
    "hash_file",
    "lock_run_dir",
    "remove_leftovers",
    "shorten_path",
    "strict_json",
    "write_atomically",
    "write_together",
]

VERSION_PATTERN = re.compile(r"v(\d{3,})")
UMASK = os.umask(0)  # can only be read by setting it
os.umask(UMASK)
LEFTOVER_PATTERN = re.compile(r"\..+\.\d+(\.\w+)?")  # names of the temporary files of write_atomically


class WriteError(OSError):
    """A write failed. The message names the path and the reason."""


class BusyError(OSError):
    """Another process is writing into this run."""


@contextmanager
def convert_write_errors(path: Path) -> Iterator[None]:
    """Converts every OSError into a WriteError that names the path: full disk, read-only folder, missing folder, ..."""
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        missing = isinstance(error, FileNotFoundError) and not path.parent.exists()
        reason = f"there is no folder {path.parent}" if missing else (error.strerror or str(error))
        raise WriteError(f"cannot write {path}: {reason}") from error


def list_versions(parent: Path) -> list[int]:
    """The version numbers in a folder, ascending."""
    return sorted(int(match[1]) for path in parent.iterdir() if (match := VERSION_PATTERN.fullmatch(path.name)))


def create_version_dir(parent: Path, fill: Callable[[Path], object]) -> Path:
    """Creates and returns the next of parent/v001, v002, ..., with the files that `fill` writes.

    The folder is filled under a temporary name and then renamed, so that two processes never share a version and a version
    is never incomplete.

    Arguments:
        fill: writes at least one file into the given folder.

    Raises:
        WriteError: `parent` is not writable.
    """
    with convert_write_errors(parent / "v001"), fill_temporary(parent, fill) as temporary:
        number = max(list_versions(parent), default=0) + 1
        while True:
            folder = parent / f"v{number:03d}"
            if not folder.exists():  # a rename would replace an empty folder
                try:
                    temporary.rename(folder)
                    return folder
                except OSError:
                    if not folder.exists():
                        raise
            number += 1


def create_dir(folder: Path, fill: Callable[[Path], object]) -> None:
    """Creates a folder with the files that `fill` writes; it appears when all are written, or not at all.

    Arguments:
        fill: writes at least one file into the given folder.

    Raises:
        WriteError: the folder exists, or its parent is not writable.
    """
    with convert_write_errors(folder), fill_temporary(folder.parent, fill) as temporary:
        if folder.exists():  # a rename would replace an empty folder
            raise FileExistsError(errno.EEXIST, "it exists, and nothing is overwritten")
        temporary.rename(folder)


@contextmanager
def fill_temporary(parent: Path, fill: Callable[[Path], object]) -> Iterator[Path]:
    """A filled folder under a temporary name, for the block to rename; removed after an exception."""
    parent.mkdir(parents=True, exist_ok=True)
    temporary = parent / f".v.{os.getpid()}.{threading.get_ident()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        fill(temporary)
        yield temporary
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextmanager
def lock_run_dir(folder: Path) -> Iterator[None]:
    """Holds the lock on a run folder until the block or the process ends.

    Worker processes do not inherit this record lock, so that none of them keeps it after a killed run.

    Raises:
        BusyError: another process holds the lock.
        WriteError: the folder is not writable.
    """
    with convert_write_errors(folder / ".lock"):
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            if fcntl is not None:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            owner = os.read(descriptor, 200).decode(errors="replace")
            raise BusyError(f"{folder} is being written by {owner}; wait for it, or stop it") from error
        except OSError:  # a file system without locks
            pass
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        os.close(descriptor)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a temporary file in the same folder, flushes it to the disk and renames it to `path`.

    Raises:
        WriteError: the disk is full, the folder is read-only or missing, ...
    """
    write_together({path: write})


def write_together(writes: Mapping[Path, Callable[[Path], object]]) -> None:
    """`write_atomically` for many files, which are flushed together to save time.

    Raises:
        WriteError: the disk is full, the folder is read-only or missing, ...
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
                os.chmod(temporary, 0o666 & ~UMASK)  # safetensors creates files with mode 0600
                os.replace(temporary, path)
    except BaseException:
        for temporary in temporaries.values():
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        raise
    for path in {path.parent: path for path in writes}.values():
        with convert_write_errors(path):
            descriptor = os.open(path.parent, os.O_RDONLY)  # flushes the renames
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Removes the temporary files of a killed process; the caller must hold the lock."""
    for path in folder.iterdir():
        if LEFTOVER_PATTERN.fullmatch(path.name) and path.is_file():
            path.unlink()


def append_text(path: Path, line: str) -> None:
    """Appends one line in a single write.

    Raises:
        WriteError: the disk is full, the folder is missing, ...
    """
    with convert_write_errors(path), open(path, "a", encoding="utf-8") as file:
        file.write(line + "\n")


def append_json(path: Path, record: dict) -> None:
    """Appends one JSON line in a single write.

    Raises:
        WriteError: the disk is full, the folder is missing, ...
    """
    append_text(path, strict_json(record))


def strict_json(value: Any, indent: int | None = None) -> str:
    """Standard JSON, in which infinities and nan become the texts inf, -inf and nan.

    Arguments:
        indent: spaces per nested level; None = one line.
    """

    def finite(part):
        if isinstance(part, dict):
            return {key: finite(below) for key, below in part.items()}
        if isinstance(part, list | tuple):
            return [finite(below) for below in part]
        return str(part) if isinstance(part, float) and not math.isfinite(part) else part

    return json.dumps(finite(value), allow_nan=False, indent=indent)


def create_sweep_dir(folders: Sequence[Path]) -> Path:
    """Creates and returns the folder of a sweep, in the parent of its runs, or one level above for runs of several names.

    Its name has the lowest and the highest version, in any order of the runs.
    """
    parent, last = folders[0].parent, folders[-1].parent

    def version(folder: Path) -> tuple[int, str]:
        return len(folder.name), folder.name

    lowest = min((folder for folder in folders if folder.parent == parent), key=version)
    highest = max((folder for folder in folders if folder.parent == last), key=version)
    if all(folder.parent == parent for folder in folders):
        return create_numbered_dir(parent, f"sweep_{lowest.name}-{highest.name}")
    return create_numbered_dir(parent.parent, f"sweep_{parent.name}_{lowest.name}-{last.name}_{highest.name}")


def create_numbered_dir(parent: Path, name: str) -> Path:
    """Creates and returns the first free one of parent/name, parent/name_2, ..."""
    folder = parent / name
    for number in itertools.count(2):
        try:
            folder.mkdir()
            break
        except FileExistsError:
            folder = parent / f"{name}_{number}"
    return folder


def shorten_path(value: str) -> str:
    """The last two parts of a path; other texts are unchanged."""
    return "/".join(Path(value).parts[-2:])


def hash_file(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
