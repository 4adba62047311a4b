"""From an image file, whatever its kind, to the square of bytes that a data set stores.

Pillow's conversions are used where they are right and replaced where they are not: 16-bit grey is divided down (Pillow
clips it), transparent pixels are laid over white (Pillow shows the colour hidden under them), the camera's orientation is
applied. Of an animation the first frame counts; colour profiles are ignored.
"""

import os
import stat
from pathlib import Path
from typing import NamedTuple

import numpy
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

__all__ = ["Header", "Unreadable", "is_image", "read_header", "read_image", "square", "stored"]

KINDS = frozenset((".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"))
GAP = 4  # a file may first be reduced coarsely to this many times the side that is wanted; the rest is done finely


class Unreadable(Exception):
    """A file that is no image, a damaged one, or one whose range of values is unknown; the message is the reason."""


class Header(NamedTuple):
    """What a file says about itself: Pillow's mode (L, RGB, P, ...), and its size as stored, pixels."""

    mode: str
    width: int
    height: int


def is_image(path: Path) -> bool:
    """Whether a file's name has the ending of an image that this Pillow can read, in any case."""
    return path.suffix.lower() in KINDS and path.suffix.lower() in Image.registered_extensions()


def read_header(path: Path) -> Header:
    """The header of a file, without its pixels.

    Raises:
        Unreadable: no regular file, no image, or one with floating-point pixels.
    """
    try:
        check_regular(path)
        with Image.open(path) as image:
            check_mode(image.mode)
            return Header(image.mode, *image.size)
    except Unreadable:
        raise
    except Exception as error:  # on broken files Pillow raises OSError, SyntaxError, struct.error and what not
        raise Unreadable(reason(error)) from error


def read_image(path: Path, channels: int, side: int | None = None) -> Image.Image:
    """The image in a file, upright and opaque, 8 bits per channel.

    Arguments:
        channels: 1 (grey) or 3 (RGB).
        side: pixels that the shorter side will be resized to: a JPEG that is much larger is decoded at a half, a quarter
            or an eighth of its size, never below four times this. None = decoded whole.

    Raises:
        Unreadable: no regular file, no image, a damaged one, floating-point pixels, or whole numbers beyond 16 bits.
    """
    try:
        check_regular(path)
        with Image.open(path) as image:
            check_mode(image.mode)
            if side is not None:
                image.draft(None, (GAP * side, GAP * side))
            image.load()
            return to_bytes(ImageOps.exif_transpose(image), channels)
    except Unreadable:
        raise
    except Exception as error:  # as above, and one file in a million must not end a training run
        raise Unreadable(reason(error)) from error


def check_regular(path: Path) -> None:
    """Raises Unreadable for a pipe, a socket or a device: opening one may wait for ever, reading one may never end."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise Unreadable("no regular file")


def check_mode(mode: str) -> None:
    """Raises Unreadable for modes whose pixels have no stated range."""
    if mode == "F":
        raise Unreadable("floating-point pixels, whose range is unknown; save it with 8 or 16 bits")


def to_bytes(image: Image.Image, channels: int) -> Image.Image:
    """An image of any mode with 8 bits per channel, on white where it is transparent: grey (1) or RGB (3)."""
    if image.mode.startswith("I"):
        image = from_16_bits(image)
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    elif image.mode not in ("1", "L"):
        image = image.convert("RGB")
    return image.convert("L" if channels == 1 else "RGB")


def from_16_bits(image: Image.Image) -> Image.Image:
    """Whole-numbered grey u in 0..65535 as bytes round(u / 257); the value marked as transparent becomes white."""
    u = numpy.asarray(image).astype(numpy.int64)
    if u.min() < 0 or u.max() > 65535:
        raise Unreadable("grey values beyond 0..65535, whose range is unknown; save it with 8 or 16 bits")
    if "transparency" in image.info:
        u = numpy.where(u == image.info["transparency"], 65535, u)
    return Image.fromarray(((u + 128) // 257).astype(numpy.uint8))


def square(image: Image.Image, side: int, stretch: bool) -> Image.Image:
    """An image as a square of `side` pixels, antialiased: its central square, or all of it squeezed (`stretch`)."""
    width, height = image.size
    if stretch:
        box = (0, 0, width, height)
    else:
        short = min(width, height)
        left, top = (width - short) / 2, (height - short) / 2
        if short == side:  # only cut, no pixel is touched
            left, top = int(left), int(top)
        box = (left, top, left + short, top + short)
    return image.resize((side, side), Image.Resampling.LANCZOS, box, reducing_gap=GAP)


def stored(path: Path, channels: int, side: int, stretch: bool) -> Tensor:
    """What a data set keeps of a file: uint8 [channels, side, side].

    Raises:
        Unreadable: as `read_image`.
    """
    pixels = numpy.array(square(read_image(path, channels, side), side, stretch))
    return torch.from_numpy(pixels).reshape(side, side, channels).permute(2, 0, 1).contiguous()


def reason(error: Exception) -> str:
    """An exception in a few words."""
    if isinstance(error, UnidentifiedImageError):
        return "no image that Pillow can identify"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
