"""The classes of a folder of images: its first-level folders, their names and their order."""

import re
import unicodedata
from pathlib import Path

from .listing import shown

__all__ = ["class_of", "find_classes"]

WHOLE = re.compile("-?[0-9]+")
UNFIT = ("Cc", "Cs", "Zl", "Zp")  # Unicode's categories: control characters, bytes that are no UTF-8, ends of lines


def class_of(file: str) -> str:
    """The first folder of a path."""
    return unicodedata.normalize("NFC", file.partition("/")[0])


def in_order(names: set[str], class_order: str) -> list[str]:
    """The names sorted: as numbers, where all are whole numbers and `class_order` is so, or letter by letter."""
    if class_order == "numbers" and all(WHOLE.fullmatch(name) for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def find_classes(folder: Path, files: list[str], num_classes: int, class_order: str = "numbers") -> tuple[str, ...]:
    """The names of the class folders, sorted; none where num_classes is 0.

    Arguments:
        class_order: `numbers` = 1, 2, 10 where all names are whole numbers; `names` = 1, 10, 2, letter by letter.

    Raises:
        ValueError: another number of them, a name that cannot be written into a picture, or images beside them.
    """
    if num_classes == 0:
        return ()
    names = in_order({class_of(file) for file in files if "/" in file}, class_order)
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
