"""The classes of a folder of images: the names of its first-level folders, in order."""

import re
import unicodedata
from pathlib import Path

from ..files.text import escape_unprintable

__all__ = ["class_folder", "find_classes"]

WHOLE_NUMBER = re.compile("-?[0-9]+")
UNPRINTABLE_CATEGORIES = ("Cc", "Cs", "Zl", "Zp")  # of Unicode: control characters, invalid UTF-8, line separators


def class_folder(file: str) -> str:
    """The first folder of a path."""
    return unicodedata.normalize("NFC", file.partition("/")[0])


def sort_names(names: set[str], class_order: str) -> list[str]:
    """The names in alphabetical order; in numerical order if all are integers and `class_order` is `numbers`."""
    if class_order == "numbers" and all(WHOLE_NUMBER.fullmatch(name) for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def find_classes(folder: Path, files: list[str], num_classes: int, class_order: str = "numbers") -> tuple[str, ...]:
    """The sorted names of the class folders; () for num_classes 0.

    Arguments:
        class_order: `numbers` = names that are all integers are in numerical order, 1, 2, 10; `names` = alphabetical order,
            1, 10, 2.

    Raises:
        ValueError: another number of class folders, a name that cannot be printed, or images outside the class folders.
    """
    if num_classes == 0:
        return ()
    names = sort_names({class_folder(file) for file in files if "/" in file}, class_order)
    flat = sorted(file for file in files if "/" not in file)
    if not names:
        raise ValueError(
            f"dataset.num_classes is {num_classes}, but {folder} has no class folders: its {len(flat)} images are not in "
            "class folders; set dataset.num_classes=0"
        )
    for name in names:
        if any(unicodedata.category(letter) in UNPRINTABLE_CATEGORIES for letter in name):
            raise ValueError(
                f"dataset.path is {folder}, where the name of the class folder '{escape_unprintable(name)}' has control "
                "characters or is not UTF-8; rename it"
            )
    if flat:
        raise ValueError(
            f"dataset.path is {folder}, where {escape_unprintable(flat[0])} is not in a class folder; move it into one, or "
            "set dataset.num_classes=0 to use all images without classes"
        )
    if len(names) != num_classes:
        first = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
        raise ValueError(
            f"dataset.num_classes is {num_classes}, but {folder} has {len(names)} class folders ({first}); "
            f"set dataset.num_classes={len(names)}"
        )
    return tuple(names)
