"""The split of an image file, from a hash of its contents or of its path.

The split of a file does not change when other files are added. Copies of a file have the same hash, so that no image is in
two splits.
"""

import hashlib
import os
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from .decoding import check_regular

__all__ = ["TEST", "TRAIN", "VALIDATION", "assign_splits", "content_hash", "group_copies", "path_hash", "unit_hash"]

TRAIN, VALIDATION, TEST = range(3)
MAX_WHOLE_BYTES = 2**20  # bytes up to which all of a file is hashed
HASHED_BLOCKS = 64  # number of blocks hashed of a larger file


def content_hash(path: Path) -> str:
    """SHA-256 of the contents of a file, hexadecimal.

    For a file above 1 MiB, of its length and of 64 evenly spaced blocks of 16 KiB, to save the time to read it.

    Raises:
        Unreadable: not a regular file.
        OSError: a file that cannot be read.
    """
    check_regular(path)
    with open(path, "rb") as file:
        length = os.fstat(file.fileno()).st_size
        if length <= MAX_WHOLE_BYTES:
            return hashlib.sha256(file.read()).hexdigest()
        size = MAX_WHOLE_BYTES // HASHED_BLOCKS
        found = hashlib.sha256(str(length).encode())
        for block in range(HASHED_BLOCKS):
            file.seek(block * (length - size) // (HASHED_BLOCKS - 1))
            found.update(file.read(size))
        return found.hexdigest()


def same_contents(one: Path, other: Path) -> bool:
    """Whether two files with equal `content_hash` are identical, byte for byte."""
    if os.path.getsize(one) <= MAX_WHOLE_BYTES:
        return True
    with open(one, "rb") as first, open(other, "rb") as second:
        return hashlib.file_digest(first, "sha256").digest() == hashlib.file_digest(second, "sha256").digest()


def path_hash(file: str) -> str:
    """SHA-256 of the NFC form of a path, hexadecimal, the same on every system."""
    return hashlib.sha256(unicodedata.normalize("NFC", file).encode("utf-8", "surrogateescape")).hexdigest()


def unit_hash(digest: str) -> float:
    """The first 48 bits of a hash as a number in [0, 1)."""
    return int(digest[:12], 16) / 2**48


def assign_splits(
    keys: Sequence[str], classes: Sequence[str], validation: float, test: float, always: bool = False
) -> list[int]:
    """The split of each file.

    With u = `unit_hash` of its key, a file is a validation file for u < validation, a test file for u >= 1 - test, else a
    training file. In a class without training file, the file with u nearest to the training range becomes one. If
    validation > 0 selects no file, the file with the smallest u that leaves its classes a training file is selected; if
    there is none, the validation split stays empty.

    Arguments:
        keys: hash of each file; files with the same key are in one split.
        classes: class of each file.
        validation, test: shares in [0, 1).
        always: whether to select a validation file at validation = 0 too.
    """
    u = {key: unit_hash(key) for key in keys}
    split = {key: VALIDATION if u[key] < validation else TRAIN for key in u}
    split |= {key: TEST for key in u if validation <= u[key] and u[key] >= 1 - test}
    members, classes_of = defaultdict(set), defaultdict(set)
    for key, name in zip(keys, classes):
        members[name].add(key)
        classes_of[key].add(name)

    def trains(name: str, without: str | None = None) -> bool:
        return any(split[key] == TRAIN for key in members[name] if key != without)

    for name in sorted(members):
        if not trains(name):
            nearest = min(members[name], key=lambda key: (max(validation - u[key], u[key] - (1 - test)), key))
            split[nearest] = TRAIN
    if (validation > 0 or always) and VALIDATION not in split.values():
        for key in sorted(u, key=lambda key: (u[key], key)):
            if all(trains(name, key) for name in classes_of[key]):
                split[key] = VALIDATION
                break
    return [split[key] for key in keys]


def group_copies(keys: Mapping[str, str], folder: Path) -> list[list[str]]:
    """Groups of two or more identical files of a folder, as sorted paths.

    Arguments:
        keys: `content_hash` by path; "" = unknown.
    """
    alike = defaultdict(list)
    for file, key in keys.items():
        alike[key].append(file)
    groups = []
    for key, files in alike.items():
        while key and len(files) > 1:
            group = [file for file in files if file == files[0] or same_contents(folder / files[0], folder / file)]
            files = [file for file in files if file not in group]
            groups.append(sorted(group))
    return sorted(group for group in groups if len(group) > 1)
