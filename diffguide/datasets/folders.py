"""The classes of a folder of images: its first-level folders, their names and their order."""

import re
import unicodedata
from pathlib import Path

from ..files.text import escape_unprintable

__all__ = ["class_folder", "find_classes"]

WHOLE_NUMBER = re.compile("-?[0-9]+")
UNPRINTABLE_CATEGORIES = (
    "Cc",
    "Cs",
    "Zl",
    "Zp",
)  # Unicode's categories: control characters, bytes that are no UTF-8, ends of lines


def class_folder(file: str) -> str:
    """The first folder of a path."""
    return unicodedata.normalize("NFC", file.partition("/")[0])


def sort_names(names: set[str], class_order: str) -> list[str]:
    """The names sorted: as numbers, where all are whole numbers and `class_order` is so, or letter by letter."""
    if class_order == "numbers" and all(WHOLE_NUMBER.fullmatch(name) for name in names):
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
    names = sort_names({class_folder(file) for file in files if "/" in file}, class_order)
    flat = sorted(file for file in files if "/" not in file)
    if not names:
        raise ValueError(
            f"dataset.num_classes is {num_classes}, but {folder} has no class folders with images, its images ({len(flat)}) "
            "are not in class folders: set dataset.num_classes=0"
        )
    for name in names:
        if any(unicodedata.category(letter) in UNPRINTABLE_CATEGORIES for letter in name):
            raise ValueError(
                f"dataset.path is {folder}, where the name of the class folder '{escape_unprintable(name)}' has control "
                "characters or is not UTF-8: rename it"
            )
    if flat:
        raise ValueError(
            f"dataset.path is {folder}, where {escape_unprintable(flat[0])} is not in a class folder: move it into one, or "
            "set dataset.num_classes=0 to use all images without classes"
        )
    if len(names) != num_classes:
        some = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
        noun = "class" if len(names) == 1 else "classes"
        raise ValueError(
            f"dataset.num_classes is {num_classes}, but {folder} has {len(names)} {noun} ({some}): "
            f"set dataset.num_classes={len(names)}"
        )
    return tuple(names)
