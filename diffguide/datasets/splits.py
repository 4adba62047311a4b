"""The split of a file: a function of a hash of its contents, or of its path, alone.

A file's number does not change with what else comes into the folder, and copies of a file have the same number, so that no
image trains under one name and validates under another.
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
MAX_WHOLE_BYTES, HASHED_BLOCKS = 2**20, 64  # bytes up to which all of a file is hashed; blocks of a larger one


def content_hash(path: Path) -> str:
    """SHA-256 of what a file holds, hexadecimal.

    Of a file above 1 MiB the hash of its length and of 64 blocks of 16 KiB, evenly spread: reading terabytes at every start
    would take hours.

    Raises:
        Unreadable: no regular file.
        OSError: a file that cannot be read.
    """
    check_regular(path)
    with open(path, "rb") as file:
        length = os.fstat(file.fileno()).st_size
        if length <= MAX_WHOLE_BYTES:
            return hashlib.sha256(file.read()).hexdigest()
        size, found = MAX_WHOLE_BYTES // HASHED_BLOCKS, hashlib.sha256(str(length).encode())
        for block in range(HASHED_BLOCKS):
            file.seek(block * (length - size) // (HASHED_BLOCKS - 1))
            found.update(file.read(size))
        return found.hexdigest()


def same_contents(one: Path, other: Path) -> bool:
    """Whether two files of equal `content_hash` are identical, byte for byte."""
    if os.path.getsize(one) <= MAX_WHOLE_BYTES:
        return True
    with open(one, "rb") as first, open(other, "rb") as second:
        return hashlib.file_digest(first, "sha256").digest() == hashlib.file_digest(second, "sha256").digest()


def path_hash(file: str) -> str:
    """SHA-256 of a path's NFC form, hexadecimal: one on every system."""
    return hashlib.sha256(unicodedata.normalize("NFC", file).encode("utf-8", "surrogateescape")).hexdigest()


def unit_hash(digest: str) -> float:
    """A number in [0, 1), the first 48 bits of a hash."""
    return int(digest[:12], 16) / 2**48


def assign_splits(
    keys: Sequence[str], classes: Sequence[str], validation: float, test: float, always: bool = False
) -> list[int]:  # fmt: skip
    """The split of each file.

    u = `unit_hash` of a file's key: u < validation validates, u >= 1 - test tests, the rest trains. A class whose images all
    do otherwise trains on the one nearest to that. Where no u is below a share above 0, the smallest validates of those
    that leave their classes a training image; if there is none, the validation split stays empty.

    Arguments:
        keys: hash of each file; files with the same key fall into one split.
        classes: of each file.
        validation, test: shares in [0, 1).
        always: whether an image validates at validation=0 too.
    """
    u = {key: unit_hash(key) for key in keys}
    split = {key: VALIDATION if u[key] < validation else TEST if u[key] >= 1 - test else TRAIN for key in u}
    members, of = defaultdict(set), defaultdict(set)
    for key, name in zip(keys, classes):
        members[name].add(key)
        of[key].add(name)

    def trains(name: str, without: str | None = None) -> bool:
        return any(split[key] == TRAIN for key in members[name] if key != without)

    for name in sorted(members):
        if not trains(name):
            nearest = min(members[name], key=lambda key: (max(validation - u[key], u[key] - (1 - test)), key))
            split[nearest] = TRAIN
    if (validation > 0 or always) and VALIDATION not in split.values():
        for key in sorted(u, key=lambda key: (u[key], key)):
            if all(trains(name, key) for name in of[key]):
                split[key] = VALIDATION
                break
    return [split[key] for key in keys]


def group_copies(keys: Mapping[str, str], folder: Path) -> list[list[str]]:
    """Groups of two and more identical files of a folder, by path.

    Arguments:
        keys: `content_hash` by path; "" = not known.
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
