"""Lines of the data sheet of an image folder: sizes, modes, value ranges, storage, copies."""

from collections import Counter
from collections.abc import Mapping, Sequence

from torch import Tensor

from ..files.text import escape_unprintable
from .decoding import Header
from .folders import class_folder
from .ranges import WhiteLevels, wide_field
from .splits import TRAIN, VALIDATION

__all__ = ["describe_files", "describe_copies"]

GREY_MODES = {
    "1": "black and white",
    "L": "grey",
    "LA": "grey with transparency",
    "I": "grey of more than 8 bits",
    "F": "floating-point grey",
}
GREY_MODES |= dict.fromkeys(("I;16", "I;16B", "I;16L", "I;16N"), "16-bit grey")
COLOR_MODES = {"P": "palette", "RGB": "RGB", "RGBA": "RGB with transparency"}


def describe_files(
    headers: Sequence[Header], channels: int, side: int, x: Tensor | None, workers: int, whites: WhiteLevels
) -> list[str]:
    """Lines on the usable files: sizes, modes, white levels, storage."""
    sizes = sorted(((width, height) for _, width, height in headers), key=lambda size: (size[0] * size[1], size))
    three = " / ".join(f"{width} x {height}" for width, height in (sizes[0], sizes[len(sizes) // 2], sizes[-1]))
    modes = Counter((GREY_MODES | COLOR_MODES).get(mode, mode) for mode, _, _ in headers)
    small = sum(min(size) < side for size in sizes)
    megabytes = len(headers) * channels * side**2 / 1e6
    storage = "in memory" if x is not None else f"read as needed by {workers} workers (above dataset.memory)"
    lines = [
        f"original sizes, smallest / median / largest: {three} pixels",
        "modes: " + ", ".join(f"{count} {name}" for name, count in modes.most_common()),
    ]
    fields = Counter(wide_field(mode) for mode, _, _ in headers)
    for field, name in {"whole": "grey of more than 8 bits", "floating": "floating-point grey"}.items():
        if fields[field] and (white := getattr(whites, field)) is not None:
            lines.append(f"{name}: {fields[field]} images, white is {white}, from the largest value")
    lines.append(f"stored: {channels} x {side} x {side}, {megabytes:.1f} MB, {storage}")
    if small:
        lines.append(f"enlarged: {small} images have a side below {side} pixels")
    grey = all(mode in GREY_MODES for mode, _, _ in headers)
    if x is not None:
        grey = all(bool((part == part[:, :1]).all()) for part in x.split(100))
    if channels == 3 and grey:
        lines.append("all images are grey: set dataset.channels=1")
    return lines


def describe_copies(groups: Sequence[Sequence[str]], split: Mapping[str, int], classes: bool) -> list[str]:
    """Lines on identical files: their number, and the groups in several splits or classes.

    Arguments:
        groups: paths of identical files.
        split: split of each file.
        classes: whether the first folder of a path is its class.
    """
    if not groups:
        return ["copies: no two files are identical"]
    across = {
        "splits": [group for group in groups if len({split[file] for file in group}) > 1],
        "classes": [group for group in groups if classes and len({class_folder(file) for file in group}) > 1],
    }
    parts = [f"{len(found)} groups across {what}" + format_example(found) for what, found in across.items()]
    lines = [f"copies: {sum(map(len, groups))} files in {len(groups)} groups of identical files; {', '.join(parts)}"]
    validation = [file for file, part in split.items() if part == VALIDATION]
    trained = {file for group in groups if any(split[file] == TRAIN for file in group) for file in group}
    if seen := sum(file in trained for file in validation):
        lines.append(f"copies: {seen} of {len(validation)} validation images are identical to training images")
    return lines


def format_example(groups: Sequence[Sequence[str]]) -> str:
    """The first two files of the first group, in brackets; "" without a group."""
    if not groups:
        return ""
    names = " = ".join(map(escape_unprintable, groups[0][:2]))
    return f" ({names}{', ...' if len(groups) > 1 else ''})"
