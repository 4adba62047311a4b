"""What lies in a folder of images: the files, the classes, and the number that puts each file into a split."""

import hashlib
import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from .decoding import is_image

__all__ = ["class_of", "find_classes", "list_images", "shown", "uniform"]

UNFIT = ("Cc", "Cs", "Zl", "Zp")  # Unicode's categories: control characters, bytes that are no UTF-8, ends of lines


def shown(name: str) -> str:
    """A name as it may be shown and written: what a terminal might obey, or no UTF-8 can hold, is written out, as \\x1b."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in name)


def list_images(folder: Path) -> list[str]:
    """The images below a folder, as POSIX paths inside it, in no order.

    Raises:
        ValueError: no folder there, or no image inside.
    """
    if not folder.exists():
        raise ValueError(f"dataset.path is {folder}, which does not exist: give the folder that holds your images")
    if not folder.is_dir():
        raise ValueError(f"dataset.path is {folder}, which is a file: give the folder that holds your images")

    def below(folder: Path, above: frozenset[str]) -> Iterator[Path]:
        for name in os.listdir(folder):
            path = folder / name
            if name.startswith("."):
                continue
            if not path.is_dir():
                yield from [path] if is_image(path) else []
            elif (real := os.path.realpath(path)) not in above:  # a link to a folder above would never end
                yield from below(path, above | {real})

    try:
        files = [path.relative_to(folder).as_posix() for path in below(folder, frozenset({os.path.realpath(folder)}))]
    except OSError as error:
        raise ValueError(
            f"dataset.path is {folder}, where {shown(error.filename)} cannot be listed: {error.strerror}"
        ) from error
    if not files:
        raise ValueError(
            f"dataset.path is {folder}, which holds no image (png, jpg, webp, bmp, gif, tif, ppm, pgm): give the folder "
            "that holds your images"
        )
    return files


def uniform(file: str) -> float:
    """A number in [0, 1) that depends on the path alone: SHA-256 of its NFC form, so that it is one on every system."""
    digest = hashlib.sha256(unicodedata.normalize("NFC", file).encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def class_of(file: str) -> str:
    """The first folder of a path."""
    return unicodedata.normalize("NFC", file.partition("/")[0])


def find_classes(folder: Path, files: list[str], num_classes: int) -> tuple[str, ...]:
    """The names of the class folders, sorted; none where num_classes is 0.

    Raises:
        ValueError: another number of them, a name that cannot be written into a picture, or images beside them.
    """
    if num_classes == 0:
        return ()
    names = sorted({class_of(file) for file in files if "/" in file})
    flat = sorted(file for file in files if "/" not in file)
    if not names:
        raise ValueError(
            f"dataset.num_classes is {num_classes}, but {folder} has no class folders with images, its images ({len(flat)}) "
            "lie side by side: say dataset.num_classes=0"
        )
    for name in names:
        if any(unicodedata.category(letter) in UNFIT for letter in name):
            raise ValueError(
                f"dataset.path is {folder}, whose class folder '{shown(name)}' has control characters, or bytes that are no "
                "UTF-8, in its name: rename it"
            )
    if flat:
        raise ValueError(
            f"dataset.path is {folder}, where {shown(flat[0])} lies beside the class folders: move it into one of them, or say "
            "dataset.num_classes=0 to use all images without classes"
        )
    if len(names) != num_classes:
        some = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
        noun = "class" if len(names) == 1 else "classes"
        raise ValueError(
            f"dataset.num_classes is {num_classes}, but {folder} has {len(names)} {noun} ({some}): "
            f"say dataset.num_classes={len(names)}"
        )
    return tuple(names)
