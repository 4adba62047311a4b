"""The white level of grey images of more than 8 bits and of floating-point images, which the bit depth does not determine.

Such files may store 8-bit values in 32 bits, masks in 16 bits, or shares of white in floating point. White is the smallest
of 1, 255 and 65535 that no value in the folder exceeds; it is the same for all files, so that a dark image stays dark.
Values below 0 or above 65535, infinity and NaN are rejected.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy
from PIL import Image

__all__ = ["FROM_FILE", "Unreadable", "WhiteLevels", "max_grey", "find_whites", "to_8_bit", "wide_field"]

WHITE_LEVELS = (1, 255, 65535)
MIN_WHITE_SHARE = 0.25  # share of white that the largest floating-point value must reach, else the range is unknown


class Unreadable(Exception):
    """A file that is not an image, is damaged, or has values in an unknown range. The message is the reason."""


class WhiteLevels(NamedTuple):
    """The value of white in integer images of more than 8 bits and in floating-point images; None = from each file."""

    whole: int | None = None
    floating: int | None = None


FROM_FILE = WhiteLevels()


def wide_field(mode: str) -> str | None:
    """The field of `WhiteLevels` for one of Pillow's modes; None for 8-bit modes."""
    if mode == "F":
        return "floating"
    return "whole" if mode.startswith("I") else None


def max_grey(image: Image.Image) -> float:
    """The largest grey value of a loaded image of a wide mode, without the value marked as transparent.

    Raises:
        Unreadable: a value below 0 or above 65535, NaN or infinity.
    """
    u = numpy.asarray(image)
    if "transparency" in image.info and not isinstance(image.info["transparency"], bytes):
        u = u[u != image.info["transparency"]]
    low, high = (float(u.min()), float(u.max())) if u.size else (0.0, 0.0)
    if not (low >= 0 and high <= WHITE_LEVELS[-1]):
        raise Unreadable("grey values outside 0..65535; save it with 8 or 16 bits")
    return high


def white_level(extents: Iterable[float], floating: bool) -> int:
    """The smallest of 1, 255 and 65535 that no value exceeds.

    Arguments:
        extents: the largest value of each file, read until the result is certain.
        floating: whether the values are floating-point numbers.

    Raises:
        Unreadable: floating-point values that fit none of the ranges.
    """
    top = 0.0
    certain = MIN_WHITE_SHARE * WHITE_LEVELS[-1] if floating else WHITE_LEVELS[-2]
    for value in extents:
        top = max(top, value)
        if top > certain:
            break
    white = next(level for level in WHITE_LEVELS if top <= level)
    if floating and white > 1 and top < MIN_WHITE_SHARE * white:
        raise Unreadable(f"floating-point values up to {top:.4g}, in an unknown range; save it with 8 or 16 bits")
    return white


def find_whites(modes: Sequence[str], measure: Callable[[int], float]) -> WhiteLevels:
    """The white levels of the files of one folder.

    Arguments:
        modes: Pillow's mode of each file.
        measure: gives `max_grey` of the file with an index; files for which it raises Unreadable are ignored.
    """

    def extents(field: str) -> Iterable[float]:
        for number, mode in enumerate(modes):
            if wide_field(mode) == field:
                try:
                    yield measure(number)
                except Unreadable:
                    continue

    found: dict[str, int] = {}
    for field in {field for mode in modes if (field := wide_field(mode))}:
        try:
            found[field] = white_level(extents(field), field == "floating")
        except Unreadable:
            continue  # each such file is reported when it is decoded
    return WhiteLevels(**found)


def to_8_bit(image: Image.Image, whites: WhiteLevels = FROM_FILE) -> Image.Image:
    """A loaded image of a wide mode as bytes round(255 u / white); the value marked as transparent becomes white.

    Raises:
        Unreadable: values in an unknown range.
    """
    floating = image.mode == "F"
    top = max_grey(image)
    white = (whites.floating if floating else whites.whole) or white_level([top], floating)
    if top > white:
        raise Unreadable(f"grey values up to {top:.4g}, but white is {white} in this folder; save it with 8 or 16 bits")
    u = numpy.asarray(image).astype(numpy.float64)
    if "transparency" in image.info:
        u = numpy.where(u == image.info["transparency"], white, u)
    return Image.fromarray(numpy.floor(255 * u / white + 0.5).astype(numpy.uint8))
