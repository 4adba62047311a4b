"""Decoding of image files to squares of bytes.

Every image format that Pillow decodes by itself is read. Formats that need another program (EPS and PostScript, Windows
metafiles), films (MPEG), and formats of which Pillow reads only the header are skipped.

Grey of more than 8 bits is scaled down (`ranges`; Pillow would clip it), transparent pixels are composited over white (Pillow
would show the colour below), and the orientation of the camera is applied. Only the first frame of an animation is read;
colour profiles are ignored.
"""

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy
import torch
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from torch import Tensor

from .ranges import FROM_FILE, Unreadable, WhiteLevels, max_grey, to_8_bit, wide_field

__all__ = [
    "Header", "Unreadable", "is_image", "read_header", "read_image", "read_max_grey", "read_square", "readable_suffixes",
    "resize_square",
]  # fmt: skip

EXTERNAL_FORMATS = {"EPS", "MPEG", "PDF", "WMF"}  # decoded by Ghostscript, a film player or Windows
READER_FORMATS = {"MPO": "JPEG"}  # formats registered for writing only, with the format whose reader reads them
REDUCING_GAP = 4  # an image may first be reduced coarsely to this multiple of the final side, then resampled finely


class Header(NamedTuple):
    """The header of an image file: Pillow's mode (L, RGB, P, ...) and the stored size, pixels."""

    mode: str
    width: int
    height: int


@cache
def readable_formats() -> frozenset[str]:
    """Pillow's names of the formats that the installed Pillow decodes by itself."""
    Image.init()
    stubs = {
        name
        for name, (reader, _) in Image.OPEN.items()
        if isinstance(reader, type) and issubclass(reader, ImageFile.StubImageFile)
    }
    return frozenset(Image.OPEN) - stubs - EXTERNAL_FORMATS


@cache
def readable_suffixes() -> frozenset[str]:
    """The suffixes of readable files, in lower case."""
    known = Image.registered_extensions()
    return frozenset(suffix for suffix, name in known.items() if READER_FORMATS.get(name, name) in readable_formats())


def is_image(path: Path, suffixes: Sequence[str] | None = None) -> bool:
    """Whether the name of a file has the suffix of a readable image, in upper or lower case.

    Arguments:
        suffixes: the suffixes to accept, in lower case; None = all.
    """
    suffix = path.suffix.lower()
    return suffix in readable_suffixes() and (suffixes is None or suffix in suffixes)


def read_header(path: Path) -> Header:
    """The header of a file, without its pixels.

    Raises:
        Unreadable: not a regular file, or not an image.
    """
    with open_image(path) as image:
        return Header(image.mode, *image.size)


def read_max_grey(path: Path) -> float:
    """`ranges.max_grey` of an image file."""
    with open_image(path) as image:
        image.load()
        return max_grey(image)


@contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """The image in a file, in any of the `readable_formats` and under any name.

    Raises:
        Unreadable: not a regular file, not an image, or any error of Pillow.
    """
    try:
        check_regular(path)
        with Image.open(path, formats=sorted(readable_formats())) as image:
            yield image
    except Unreadable:
        raise
    except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error and others for broken files
        raise Unreadable(describe_error(error)) from error


def read_image(path: Path, channels: int, side: int | None = None, whites: WhiteLevels = FROM_FILE) -> Image.Image:
    """The image in a file, upright and opaque, 8 bits per channel.

    Arguments:
        channels: 1 (grey) or 3 (RGB).
        side: pixels that the shorter side will be resized to: a much larger JPEG is decoded at a half, a quarter or an
            eighth of its size, at least four times `side`. None = decoded at full size.
        whites: the white levels of modes whose bit depth does not determine them.

    Raises:
        Unreadable: not a regular file, not an image, a damaged image, or grey values in an unknown range.
    """
    with open_image(path) as image:
        if side is not None:
            image.draft(None, (REDUCING_GAP * side, REDUCING_GAP * side))
        image.load()
        return to_bytes(ImageOps.exif_transpose(image), channels, whites)


def check_regular(path: Path) -> None:
    """Raises Unreadable for a pipe, a socket or a device, which could block for ever."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise Unreadable("not a regular file")


def to_bytes(image: Image.Image, channels: int, whites: WhiteLevels = FROM_FILE) -> Image.Image:
    """An image of any mode as grey (1 channel) or RGB (3) with 8 bits per channel, transparent pixels over white."""
    if wide_field(image.mode):
        image = to_8_bit(image, whites)
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    elif image.mode not in ("1", "L"):
        image = image.convert("RGB")
    return image.convert("L" if channels == 1 else "RGB")


def resize_square(image: Image.Image, side: int, stretch: bool) -> Image.Image:
    """An image as a square of `side` pixels, antialiased: its central square, or with `stretch` all of it, distorted."""
    width, height = image.size
    box = (0.0, 0.0, float(width), float(height))
    if not stretch:
        short = min(width, height)
        left, top = (width - short) / 2, (height - short) / 2
        if short == side:  # cropped without resampling
            left, top = left // 1, top // 1
        box = (left, top, left + short, top + short)
    return image.resize((side, side), Image.Resampling.LANCZOS, box, reducing_gap=REDUCING_GAP)


def read_square(path: Path, channels: int, side: int, stretch: bool, whites: WhiteLevels = FROM_FILE) -> Tensor:
    """The image in a file as uint8 [channels, side, side], resized as by `resize_square`.

    Raises:
        Unreadable: as for `read_image`.
    """
    pixels = numpy.array(resize_square(read_image(path, channels, side, whites), side, stretch))
    return torch.from_numpy(pixels).reshape(side, side, channels).permute(2, 0, 1).contiguous()


def describe_error(error: Exception) -> str:
    """The first line of the message of an exception."""
    if isinstance(error, UnidentifiedImageError):
        return "no image that Pillow can identify"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
