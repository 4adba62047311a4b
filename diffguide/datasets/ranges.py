"""The white level of images of more than 8 bits and of floating-point images, which the bit depth does not determine.

Files hold 8-bit values in 32 bits, masks in 16, and shares of white in floating point. The largest value decides:
white is the smallest of 1, 255 and 65535 that no value exceeds. It is decided once for a folder, so that one
dark image keeps its brightness beside the others. Below 0, above 65535, infinity and NaN are no grey values.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy
from PIL import Image

__all__ = ["FROM_FILE", "Unreadable", "WhiteLevels", "max_grey", "find_whites", "to_8_bit", "wide_field"]

WHITE_LEVELS = (1, 255, 65535)
MIN_WHITE_SHARE = 0.25  # of white that fractions must reach: 1.3 is neither a share of white nor one of 255 levels


class Unreadable(Exception):
    """A file that is no image, a damaged one, or one whose range of values is unknown; the message is the reason."""


class WhiteLevels(NamedTuple):
    """The value shown as white of whole numbers of more than 8 bits, and of floating-point ones; None = the file decides."""

    whole: int | None = None
    floating: int | None = None


FROM_FILE = WhiteLevels()


def wide_field(mode: str) -> str | None:
    """The field of `WhiteLevels` that pixels of one of Pillow's modes follow; None for 8-bit modes."""
    return "floating" if mode == "F" else "whole" if mode.startswith("I") else None


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
        raise Unreadable("grey values beyond 0..65535, whose range is unknown; save it with 8 or 16 bits")
    return high


def white_level(extents: Iterable[float], floating: bool) -> int:
    """The smallest of 1, 255 and 65535 that no value exceeds.

    Arguments:
        extents: the largest value of each file; read only as far as needed.
        floating: whether the values may be fractions of white.

    Raises:
        Unreadable: fractions that fill none of the ranges.
    """
    top, enough = 0.0, MIN_WHITE_SHARE * WHITE_LEVELS[-1] if floating else WHITE_LEVELS[-2]
    for value in extents:
        top = max(top, value)
        if top > enough:
            break
    white = next(level for level in WHITE_LEVELS if top <= level)
    if floating and white > 1 and top < MIN_WHITE_SHARE * white:
        raise Unreadable(f"floating-point values up to {top:.4g}, a range that is unknown; save it with 8 or 16 bits")
    return white


def find_whites(modes: Sequence[str], measure: Callable[[int], float]) -> WhiteLevels:
    """What white is in files of one folder.

    Arguments:
        modes: Pillow's mode of each file.
        measure: the `max_grey` of the file of a number; where it raises Unreadable the file does not count.
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
            continue  # every such file is reported when it is read
    return WhiteLevels(**found)


def to_8_bit(image: Image.Image, whites: WhiteLevels = FROM_FILE) -> Image.Image:
    """A loaded image of a wide mode as bytes round(255 u / white); the value marked as transparent becomes white.

    Raises:
        Unreadable: values whose range is unknown.
    """
    floating, top = image.mode == "F", max_grey(image)
    white = (whites.floating if floating else whites.whole) or white_level([top], floating)
    if top > white:
        raise Unreadable(f"grey values up to {top:.4g}, and white is {white} in this folder; save it with 8 or 16 bits")
    u = numpy.asarray(image).astype(numpy.float64)
    if "transparency" in image.info:
        u = numpy.where(u == image.info["transparency"], white, u)
    return Image.fromarray(numpy.floor(255 * u / white + 0.5).astype(numpy.uint8))
