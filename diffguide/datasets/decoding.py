"""From an image file to the square of bytes that a data set stores.

Every image format that Pillow decodes by itself is read. Skipped are formats that need another program (EPS and
PostScript, Windows metafiles), films (MPEG), and those of which Pillow reads only the header.

Pillow's conversions are used where they are right and replaced where they are not: grey of more than 8 bits is divided down
(`ranges`; Pillow clips it), transparent pixels are composited over white (Pillow shows the colour hidden under them), the
camera's orientation is applied. Of an animation the first frame counts; colour profiles are ignored.
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
    "Header",
    "Unreadable",
    "is_image",
    "read_max_grey",
    "read_header",
    "read_image",
    "resize_square",
    "read_square",
    "readable_suffixes",
]

EXTERNAL_FORMATS = {"EPS", "MPEG", "PDF", "WMF"}  # another program's work: Ghostscript's, a film player's, Windows'
READER_FORMATS = {"MPO": "JPEG"}  # a format that Pillow registers for writing, and reads with the reader of another
REDUCING_GAP = (
    4  # a file may first be reduced coarsely to this many times the side that is wanted; the rest is done finely
)


class Header(NamedTuple):
    """The header of an image file: Pillow's mode (L, RGB, P, ...), and its size as stored, pixels."""

    mode: str
    width: int
    height: int


@cache
def readable_formats() -> frozenset[str]:
    """The picture formats, by Pillow's names, that this Pillow decodes by itself."""
    Image.init()
    stubs = {
        name
        for name, (reader, _) in Image.OPEN.items()
        if isinstance(reader, type) and issubclass(reader, ImageFile.StubImageFile)
    }
    return frozenset(Image.OPEN) - stubs - EXTERNAL_FORMATS


@cache
def readable_suffixes() -> frozenset[str]:
    """The endings of files that are read, in lower case."""
    known = Image.registered_extensions()
    return frozenset(suffix for suffix, name in known.items() if READER_FORMATS.get(name, name) in readable_formats())


def is_image(path: Path, wanted: Sequence[str] | None = None) -> bool:
    """Whether a file's name has the ending of a picture that this Pillow can read, in any case.

    Arguments:
        wanted: the endings that count, in lower case; None = all.
    """
    suffix = path.suffix.lower()
    return suffix in readable_suffixes() and (wanted is None or suffix in wanted)


def read_header(path: Path) -> Header:
    """The header of a file, without its pixels.

    Raises:
        Unreadable: no regular file, or no image.
    """
    with open_image(path) as image:
        return Header(image.mode, *image.size)


def read_max_grey(path: Path) -> float:
    """The largest grey value of a file of a wide mode; as `ranges.max_grey`."""
    with open_image(path) as image:
        image.load()
        return max_grey(image)


@contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """The image in a file, whatever its name says, in one of the `readable_formats`.

    Raises:
        Unreadable: no regular file, no image, or any error of Pillow while it is read.
    """
    try:
        check_regular(path)
        with Image.open(path, formats=sorted(readable_formats())) as image:
            yield image
    except Unreadable:
        raise
    except Exception as error:  # on broken files Pillow raises OSError, SyntaxError, struct.error and what not
        raise Unreadable(describe_error(error)) from error  # and one file in a million must not end a training run


def read_image(path: Path, channels: int, side: int | None = None, whites: WhiteLevels = FROM_FILE) -> Image.Image:
    """The image in a file, upright and opaque, 8 bits per channel.

    Arguments:
        channels: 1 (grey) or 3 (RGB).
        side: pixels that the shorter side will be resized to: a JPEG that is much larger is decoded at a half, a quarter
            or an eighth of its size, never below four times this. None = decoded whole.
        whites: the white level where the bit depth does not determine it.

    Raises:
        Unreadable: no regular file, no image, a damaged one, or grey values whose range is unknown.
    """
    with open_image(path) as image:
        if side is not None:
            image.draft(None, (REDUCING_GAP * side, REDUCING_GAP * side))
        image.load()
        return to_bytes(ImageOps.exif_transpose(image), channels, whites)


def check_regular(path: Path) -> None:
    """Raises Unreadable for a pipe, a socket or a device: opening one may wait for ever, reading one may never end."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise Unreadable("no regular file")


def to_bytes(image: Image.Image, channels: int, whites: WhiteLevels = FROM_FILE) -> Image.Image:
    """An image of any mode with 8 bits per channel, on white where it is transparent: grey (1) or RGB (3)."""
    if wide_field(image.mode):
        image = to_8_bit(image, whites)
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    elif image.mode not in ("1", "L"):
        image = image.convert("RGB")
    return image.convert("L" if channels == 1 else "RGB")


def resize_square(image: Image.Image, side: int, stretch: bool) -> Image.Image:
    """An image as a square of `side` pixels, antialiased: its central square, or all of it squeezed (`stretch`)."""
    width, height = image.size
    box = (0.0, 0.0, float(width), float(height))
    if not stretch:
        short = min(width, height)
        left, top = (width - short) / 2, (height - short) / 2
        if short == side:  # only cut, no pixel is touched
            left, top = left // 1, top // 1
        box = (left, top, left + short, top + short)
    return image.resize((side, side), Image.Resampling.LANCZOS, box, reducing_gap=REDUCING_GAP)


def read_square(path: Path, channels: int, side: int, stretch: bool, whites: WhiteLevels = FROM_FILE) -> Tensor:
    """What a data set keeps of a file: uint8 [channels, side, side].

    Raises:
        Unreadable: as `read_image`.
    """
    pixels = numpy.array(resize_square(read_image(path, channels, side, whites), side, stretch))
    return torch.from_numpy(pixels).reshape(side, side, channels).permute(2, 0, 1).contiguous()


def describe_error(error: Exception) -> str:
    """An exception in a few words."""
    if isinstance(error, UnidentifiedImageError):
        return "no image that Pillow can identify"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
