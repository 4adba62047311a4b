"""Folders of small images for tests, and what a data set made of them."""

import hashlib
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from diffguide.datasets import ImageFolder, Split, Stream


def folder_of(path: Path, **changes) -> ImageFolder:
    arguments = dict(
        path=str(path), channels=3, size=4, num_classes=0, resize=None, stretch=False, flip=False, validation=0.25,
        test=0.25, memory=1e9, workers=2,
    )  # fmt: skip
    return ImageFolder(**arguments | changes)


def paint(path: Path, number: int, size: tuple[int, int] = (4, 4)) -> None:
    """An image of one colour, which tells its number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (number % 256, number // 256, 100)).save(path)


def numbers(split: Split | Stream) -> list[int]:
    """The numbers of a split's images, in order."""
    x = split.x if isinstance(split, Split) else [split[i][0] for i in range(len(split))]
    return [int(image[0, 0, 0]) + 256 * int(image[1, 0, 0]) for image in x]


def place(file: Path) -> float:
    """The hash of a file's contents as the documentation states it."""
    return int(hashlib.sha256(file.read_bytes()).hexdigest(), 16) / 2**256


def path_place(relative: str) -> float:
    """The hash of a path, which decided before."""
    return int(hashlib.sha256(unicodedata.normalize("NFC", relative).encode()).hexdigest(), 16) / 2**256


def split_of(data: ImageFolder) -> dict[int, str]:
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    return {number: name for name, split in splits.items() for number in numbers(split)}


def refusal(path: Path, **changes) -> str:
    with pytest.raises(ValueError) as raised:
        folder_of(path, **changes)
    assert "\n" not in str(raised.value)
    return str(raised.value)
