"""Images in a folder of the user's: a class per sub-folder, or none; kept in memory, or read as they are needed."""

import math
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from .base import Dataset, Split, Stream, check_facts
from .decoding import Header, Unreadable, read_header, stored
from .folders import class_of, find_classes, list_images, shown, uniform

__all__ = ["ImageFolder", "ImageStream"]

Found = TypeVar("Found")
GREY = {"1": "black and white", "L": "grey", "LA": "grey with transparency", "I": "grey of more than 8 bits"}
GREY |= dict.fromkeys(("I;16", "I;16B", "I;16L"), "16-bit grey")
COLOUR = {"P": "palette", "RGB": "RGB", "RGBA": "RGB with transparency"}
BIGGEST, WIDEST = 2**24, 2**14  # numbers in one example; pixels along a side that is stored
FEW = 3  # how many are named where there may be many


class ImageStream(Stream):
    """Image files, decoded when they are asked for.

    A file that cannot be decoded is named on stderr, once, and the next one that can be takes its place.

    Arguments:
        files: one per example.
        y: class indices [N].
        channels, side, stretch: as `decoding.stored`.
    """

    def __init__(self, files: Sequence[str], y: Tensor, channels: int, side: int, stretch: bool):
        self.files, self.y, self.channels, self.side, self.stretch = files, y, channels, side, stretch
        self.told = torch.zeros(len(y), dtype=torch.bool).share_memory_()  # one note for all worker processes

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        for step in range(len(self)):
            row = (index + step) % len(self)
            try:
                return stored(Path(self.files[row]), self.channels, self.side, self.stretch), int(self.y[row])
            except Unreadable as error:
                if not self.told[row]:
                    self.told[row] = True
                    print(shown(f"{self.files[row]} is left out: {error}"), file=sys.stderr, flush=True)
        first = shown(self.files[0])
        raise RuntimeError(f"none of these {len(self)} images can be read any more, the first is {first}")


class ImageFolder(Dataset):
    """The images below a folder. A class is a first-level sub-folder, in the order of their names.

    A hash u of an image's path inside the folder, uniform in [0, 1), decides which split it is in: u < validation
    validates, u >= 1 - test tests, the rest trains. So it stays there whatever else comes into the folder. Where no u is
    that small, the image with the smallest one validates. Hidden files and folders are skipped, links are followed.

    Arguments:
        path: the folder.
        channels: 1 (grey) or 3 (RGB); every image is converted to that.
        size: side of what the network sees, pixels; an example has at most 2^24 numbers.
        num_classes: number of class folders, checked; 0 = no labels, all images below the folder.
        resize: side of the stored square, pixels, at most 2^14; above `size` training sees random windows; None = size.
        stretch: whether images are squeezed to the square; otherwise their central square is taken.
        flip: whether training mirrors every second image, left to right.
        validation, test: shares of the images, in [0, 1).
        memory: bytes of decoded images up to which the set is kept in memory.
        workers: processes that read ahead where it is not.

    Attributes:
        unreadable: (path inside the folder, reason) of the files that were left out, both as they may be shown.

    Raises:
        ValueError: an argument out of its range, a folder without enough usable images, or one of other classes.
    """

    def __init__(
        self, path: str, channels: int, size: int, num_classes: int, resize: int | None, stretch: bool, flip: bool,
        validation: float, test: float, memory: float, workers: int, values: int = 256,
    ):  # fmt: skip
        check_facts("image_folder", {"values": values}, {"values": 256})
        side = size if resize is None else resize
        check_arguments(channels, size, num_classes, side, validation, test, memory, workers)
        self.folder, self.unreadable = Path(path).expanduser(), []
        u = {file: uniform(file) for file in list_images(self.folder)}
        files = sorted(u, key=lambda file: (u[file], file))  # the splits are cuts of this order
        class_names = find_classes(self.folder, files, num_classes)

        headers = self.readable(files, lambda file: read_header(self.folder / file))
        files, x = list(headers), None
        if len(files) * channels * side**2 <= memory:
            files, x = self.decode(files, channels, side, stretch)
        low = max(1, sum(u[file] < validation for file in files))
        high = max(low, sum(u[file] < 1 - test for file in files))
        self.check_enough(files, files[low:high], class_names)

        index = {name: number for number, name in enumerate(class_names)}
        y = torch.tensor([index[class_of(file)] if index else -1 for file in files])
        cuts = slice(low, high), slice(0, low), slice(high, len(files))
        if x is None:
            paths = [str(self.folder / file) for file in files]
            splits = [ImageStream(paths[cut], y[cut], channels, side, stretch) for cut in cuts]
        else:
            splits = [Split(x[cut], y[cut]) for cut in cuts]
        super().__init__(*splits, class_names=class_names, size=size, flip=flip, workers=workers)
        self.notes = describe([headers[file] for file in files], channels, side, x, workers)

    def readable(self, files: Sequence[str], read: Callable[[str], Found]) -> dict[str, Found]:
        """What `read` finds in each file that it can read, in their order; the others are noted."""

        def attempt(file: str) -> Found | Unreadable:
            try:
                return read(file)
            except Unreadable as error:
                return error

        with ThreadPool() as pool:
            found = dict(zip(files, pool.imap(attempt, files, chunksize=16)))
        failed = {file: error for file, error in found.items() if isinstance(error, Unreadable)}
        self.unreadable += [(Path(shown(file)), shown(str(error))) for file, error in failed.items()]
        return {file: result for file, result in found.items() if file not in failed}

    def decode(self, files: list[str], channels: int, side: int, stretch: bool) -> tuple[list[str], Tensor]:
        """The files that can be decoded, and their bytes [N, channels, side, side]."""
        x = torch.empty(len(files), channels, side, side, dtype=torch.uint8)
        row = {file: number for number, file in enumerate(files)}

        def fill(file: str) -> None:
            x[row[file]] = stored(self.folder / file, channels, side, stretch)

        kept = list(self.readable(files, fill))
        return kept, x if len(kept) == len(files) else x[[row[file] for file in kept]]

    def check_enough(self, files: list[str], train: list[str], class_names: tuple[str, ...]) -> None:
        """Raises ValueError where too few files are left, in all, of a class, or to train on."""
        total, lost = len(files) + len(self.unreadable), ""
        if self.unreadable:
            lost = f"; {len(self.unreadable)} of {total} files cannot be read: {self.first_unreadable()}"
        if len(self.unreadable) > len(files):
            raise ValueError(f"dataset.path is {self.folder}, where most files are unusable{lost}")
        present, trained = {class_of(file) for file in files}, {class_of(file) for file in train}
        for name in class_names:
            if name not in present:
                raise ValueError(f"dataset.path is {self.folder}, whose class {name} has no usable image{lost}")
        if not train:
            raise ValueError(
                f"dataset.path is {self.folder}, where no image is left to train on ({len(files)} are usable, one or more "
                f"validate): add images, or lower dataset.validation and dataset.test{lost}"
            )
        for name in class_names:
            if name not in trained:
                raise ValueError(
                    f"dataset.path is {self.folder}, where no image of class {name} falls into the training split: add "
                    f"images, or lower dataset.validation and dataset.test{lost}"
                )

    def first_unreadable(self) -> str:
        """The first of the files that were left out, with reasons."""
        return ", ".join(f"{file} ({reason})" for file, reason in self.unreadable[:FEW])

    def sheet(self) -> list[str]:
        lines = super().sheet() + self.notes
        if self.unreadable:
            more = ", ..." if len(self.unreadable) > FEW else ""
            lines.append(f"unreadable: {len(self.unreadable)} files left out: {self.first_unreadable()}{more}")
        return lines


def check_arguments(
    channels: int, size: int, num_classes: int, side: int, validation: float, test: float, memory: float, workers: int
) -> None:
    """Raises ValueError for the first argument that is out of its range."""
    if channels not in (1, 3):
        raise ValueError(f"dataset.channels is {channels}, but must be 1 (grey) or 3 (RGB)")
    for name, value, least in (("size", size, 1), ("num_classes", num_classes, 0), ("workers", workers, 0)):
        if value < least:
            raise ValueError(f"dataset.{name} is {value}, but must be at least {least}")
    if side < size:
        raise ValueError(f"dataset.resize is {side}, but must be at least dataset.size={size}, or null for that")
    if channels * size**2 > BIGGEST:
        most = math.isqrt(BIGGEST // channels)
        raise ValueError(f"dataset.size is {size}, but must be at most {most}: an example has at most 2^24 numbers")
    if side > WIDEST:
        raise ValueError(f"dataset.resize is {side}, but must be at most {WIDEST}")
    if not (0 <= validation and 0 <= test and validation + test < 1):
        raise ValueError(
            f"dataset.validation is {validation} and dataset.test {test}, but they are shares and sum to less than 1"
        )
    if not memory >= 0:
        raise ValueError(f"dataset.memory is {memory}, but must be a number of bytes, 0 to keep nothing in memory")


def describe(headers: Sequence[Header], channels: int, side: int, x: Tensor | None, workers: int) -> list[str]:
    """Lines on the usable files: sizes, modes, how they are kept."""
    sizes = sorted(((width, height) for _, width, height in headers), key=lambda size: (size[0] * size[1], size))
    three = " / ".join(f"{width} x {height}" for width, height in (sizes[0], sizes[len(sizes) // 2], sizes[-1]))
    modes = Counter((GREY | COLOUR).get(mode, mode) for mode, _, _ in headers)
    small = sum(min(size) < side for size in sizes)
    bytes_ = len(headers) * channels * side**2
    kept = "in memory" if x is not None else f"read as needed by {workers} workers (above dataset.memory)"
    lines = [
        f"original sizes, smallest / median / largest: {three} pixels",
        "modes: " + ", ".join(f"{count} {name}" for name, count in modes.most_common()),
        f"stored: {channels} x {side} x {side}, {bytes_ / 1e6:.1f} MB, {kept}",
    ]
    if small:
        lines.append(f"enlarged: {small} images have a side below {side} pixels")
    grey = all(mode in GREY for mode, _, _ in headers)
    if x is not None:
        grey = all(bool((part == part[:, :1]).all()) for part in x.split(100))
    if channels == 3 and grey:
        lines.append("all images are grey: dataset.channels=1 would do")
    return lines
