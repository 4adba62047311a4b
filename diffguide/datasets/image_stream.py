"""Image files that are decoded on access, by worker processes."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..files.text import escape_unprintable
from .base import Column, RowStream, Stream
from .decoding import Unreadable, read_square
from .ranges import FROM_FILE, WhiteLevels

__all__ = ["ColumnStream", "ImageStream"]


class ImageStream(Stream):
    """Image files, decoded on access.

    A file that cannot be decoded is reported on stderr once and replaced by the next readable one.

    Arguments:
        files: path of each example.
        y: class indices [N].
        channels, side, stretch, whites: as for `decoding.read_square`.
    """

    def __init__(
        self, files: Sequence[str], y: Tensor, channels: int, side: int, stretch: bool, whites: WhiteLevels = FROM_FILE
    ):
        self.files, self.y = files, y
        self.storage = channels, side, stretch, whites
        self.reported = torch.zeros(len(y), dtype=torch.bool).share_memory_()  # shared by all worker processes

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, row = self.read(index)
        return image, int(self.y[row])

    def read(self, index: int) -> tuple[Tensor, int]:
        """The image at an index, or the next readable one, and its row.

        Raises:
            IndexError: an index out of range, which ends a loop over the stream.
            RuntimeError: no image can be read any more.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        for step in range(len(self)):
            row = (index + step) % len(self)
            try:
                return read_square(Path(self.files[row]), *self.storage), row
            except Unreadable as error:
                if not self.reported[row]:
                    self.reported[row] = True
                    print(escape_unprintable(f"{self.files[row]} is skipped: {error}"), file=sys.stderr, flush=True)
        first = escape_unprintable(self.files[0])
        raise RuntimeError(f"none of the {len(self)} images can be read any more; the first is {first}")


class ColumnStream(ImageStream, RowStream):
    """An `ImageStream` with columns, such as captions: stream[i] -> (image, its row).

    Arguments:
        columns: one entry per file.
        files, ...: as for `ImageStream`.
    """

    def __init__(
        self,
        columns: Mapping[str, Column],
        files: Sequence[str],
        y: Tensor,
        channels: int,
        side: int,
        stretch: bool,
        whites: WhiteLevels = FROM_FILE,
    ):
        super().__init__(files, y, channels, side, stretch, whites)
        self.columns = columns

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.read(index)
