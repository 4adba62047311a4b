"""Images in a folder of the user's: a class per sub-folder, or none; kept in memory, or read as they are needed."""

import math
import sys
from collections.abc import Callable, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from ..files.text import escape_unprintable
from . import decoding
from .base import Dataset, Split, Stream, check_dataset_facts
from .decoding import Unreadable, read_header, read_max_grey, read_square
from .fingerprints import Fingerprint, fingerprint_files
from .folders import class_folder, find_classes
from .listing import list_files
from .ranges import FROM_FILE, WhiteLevels, find_whites
from .sheets import describe_copies, describe_files
from .splits import TEST, TRAIN, VALIDATION, assign_splits, content_hash, group_copies, path_hash, unit_hash

__all__ = ["ImageFolder", "ImageStream"]

Result = TypeVar("Result")
MAX_EXAMPLE_SIZE, MAX_STORED_SIDE = 2**24, 2**14  # numbers in one example; pixels along a side that is stored
MAX_NAMED_UNREADABLE = 3  # how many are named where there may be many


class ImageStream(Stream):
    """Image files, decoded on access.

    A file that cannot be decoded is named on stderr, once, and the next one that can be takes its place.

    Arguments:
        files: one per example.
        y: class indices [N].
        channels, side, stretch, whites: as `decoding.read_square`.
    """

    def __init__(
        self, files: Sequence[str], y: Tensor, channels: int, side: int, stretch: bool, whites: WhiteLevels = FROM_FILE
    ):  # fmt: skip
        self.files, self.y, self.storage = files, y, (channels, side, stretch, whites)
        self.reported = torch.zeros(len(y), dtype=torch.bool).share_memory_()  # one note for all worker processes

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)  # which ends a loop over the stream
        for step in range(len(self)):
            row = (index + step) % len(self)
            try:
                return read_square(Path(self.files[row]), *self.storage), int(self.y[row])
            except Unreadable as error:
                if not self.reported[row]:
                    self.reported[row] = True
                    print(escape_unprintable(f"{self.files[row]} is skipped: {error}"), file=sys.stderr, flush=True)
        first = escape_unprintable(self.files[0])
        raise RuntimeError(f"none of these {len(self)} images can be read any more, the first is {first}")


class ImageFolder(Dataset):
    """The images below a folder. A class is a first-level sub-folder, in the order of their names.

    A hash u of a file's contents, uniform in [0, 1), decides which split it is in: u < validation validates, u >= 1 - test
    tests, the rest trains (`splits.assign_splits`). So an image stays there whatever else comes into the folder, and copies
    are in one split. A class whose only image would validate trains on it. Hidden files and folders are counted and not read,
    links are followed.

    Arguments:
        path: the folder.
        channels: 1 (grey) or 3 (RGB); every image is converted to that.
        size: side of what the network sees, pixels; an example has at most 2^24 numbers.
        num_classes: number of class folders, checked; 0 = no labels, all images below the folder.
        resize: side of the stored square, pixels, at most 2^14; above `size` training sees random windows; None = size.
        stretch: whether images are squeezed to the square; otherwise their central square is taken.
        flip: whether training mirrors every second image, left to right.
        validation, test: shares of the images, in [0, 1); 0 = none.
        memory: bytes of decoded images up to which the set is kept in memory.
        workers: processes that read ahead where it is not.
        suffixes: endings of the files that are read, with their dots; None = of all pictures that Pillow decodes.
        class_order: `numbers` = class folders that are all whole numbers are in the order of the numbers; `names` = letter
            by letter, 1, 10, 2.
        split_by: what u is a hash of: `contents`, or, as runs before had it, `path`, where copies may part, and an image
            validates at validation=0 too.

    Attributes:
        unreadable: (path inside the folder, reason) of the skipped files, both escaped for printing.

    Raises:
        ValueError: an argument out of its range, a folder without enough usable images, or one of other classes.
    """

    folder: Path
    unreadable: list[tuple[Path, str]]

    def __init__(
        self, path: str, channels: int = 3, size: int = 64, num_classes: int = 0, resize: int | None = None,
        stretch: bool = False, flip: bool = True, validation: float = 0.05, test: float = 0.0, memory: float = 2.0e9,
        workers: int = 2, suffixes: Sequence[str] | None = None,
        class_order: str = "numbers", split_by: str = "contents", quantization_levels: int = 256,
    ):  # fmt: skip
        check_dataset_facts("image_folder", {"quantization_levels": quantization_levels}, {"quantization_levels": 256})
        side = size if resize is None else resize
        check_arguments(channels, size, num_classes, side, validation, test, memory, workers)
        check_choices(suffixes, class_order, split_by)
        self.folder, self.unreadable = Path(path).expanduser(), []
        folder = self.folder
        self.listing = list_files(folder, suffixes and [suffix.lower() for suffix in suffixes])
        self.hashes = self.hash_files(self.listing.files)
        keys = {
            file: path_hash(file) if split_by == "path" else self.hashes[file] or path_hash(file)
            for file in self.hashes
        }
        files = sorted(keys, key=lambda file: (unit_hash(keys[file]), file))
        class_names = find_classes(self.folder, files, num_classes, class_order)

        headers = self.read_files(files, lambda file: read_header(folder / file))
        files = list(headers)
        x: Tensor | None = None
        whites = find_whites(
            [headers[file].mode for file in files], lambda number: read_max_grey(folder / files[number])
        )
        storage = channels, side, stretch, whites
        if len(files) * channels * side**2 <= memory:
            files, x = self.decode(files, *storage)
        self.check_enough(files, class_names)
        classes = [class_folder(file) if class_names else "" for file in files]
        split = assign_splits([keys[file] for file in files], classes, validation, test, always=split_by == "path")

        index = {name: number for number, name in enumerate(class_names)}
        y, place = torch.tensor([index.get(name, -1) for name in classes]), torch.tensor(split)

        def build(part: int) -> Split | ImageStream:
            rows = (place == part).nonzero()[:, 0]
            if x is not None:
                return Split(x[rows], y[rows])
            return ImageStream([str(folder / files[row]) for row in rows.tolist()], y[rows], *storage)

        splits = build(TRAIN), build(VALIDATION), build(TEST)
        super().__init__(*splits, class_names=class_names, size=size, flip=flip, workers=workers)
        self.notes = describe_files([headers[file] for file in files], channels, side, x, workers, whites)
        groups = group_copies({file: self.hashes[file] for file in files}, self.folder)
        self.notes += describe_copies(groups, dict(zip(files, split)), bool(class_names))

    def hash_files(self, files: Sequence[str]) -> dict[str, str]:
        """The `content_hash` of each file; "" where it cannot be read."""

        def attempt(file: str) -> str:
            try:
                return content_hash(self.folder / file)
            except (Unreadable, OSError):
                return ""

        with ThreadPool() as pool:
            return dict(zip(files, pool.imap(attempt, files, chunksize=16)))

    def read_files(self, files: Sequence[str], read: Callable[[str], Result]) -> dict[str, Result]:
        """What `read` finds in each file that it can read, in their order; the others are noted."""

        def attempt(file: str) -> Result | Unreadable:
            try:
                return read(file)
            except Unreadable as error:
                return error

        with ThreadPool() as pool:
            found = dict(zip(files, pool.imap(attempt, files, chunksize=16)))
        for file, result in found.items():
            if isinstance(result, Unreadable):
                self.unreadable.append((Path(escape_unprintable(file)), escape_unprintable(str(result))))
        return {file: result for file, result in found.items() if not isinstance(result, Unreadable)}

    def decode(
        self, files: list[str], channels: int, side: int, stretch: bool, whites: WhiteLevels
    ) -> tuple[list[str], Tensor]:  # fmt: skip
        """The files that can be decoded, and their bytes [N, channels, side, side]."""
        x = torch.empty(len(files), channels, side, side, dtype=torch.uint8)
        row = {file: number for number, file in enumerate(files)}

        def fill(file: str) -> None:
            x[row[file]] = read_square(self.folder / file, channels, side, stretch, whites)

        kept = list(self.read_files(files, fill))
        return kept, x if len(kept) == len(files) else x[[row[file] for file in kept]]

    def check_enough(self, files: list[str], class_names: tuple[str, ...]) -> None:
        """Raises ValueError where too few files are left, in all or of a class."""
        total, lost = len(files) + len(self.unreadable), ""
        if self.unreadable:
            lost = f"; {len(self.unreadable)} of {total} files cannot be read: {self.describe_unreadable()}"
        if len(self.unreadable) > len(files):
            raise ValueError(f"dataset.path is {self.folder}, where most files cannot be read{lost}")
        present = {class_folder(file) for file in files}
        for name in class_names:
            if name not in present:
                raise ValueError(f"dataset.path is {self.folder}, where class {name} has no readable image{lost}")

    def describe_unreadable(self) -> str:
        """The first skipped files, with reasons."""
        return ", ".join(f"{file} ({reason})" for file, reason in self.unreadable[:MAX_NAMED_UNREADABLE])

    def summary(self) -> list[str]:
        lines = super().summary() + self.notes + self.listing.describe()
        if self.unreadable:
            more = ", ..." if len(self.unreadable) > MAX_NAMED_UNREADABLE else ""
            lines.append(f"unreadable: {len(self.unreadable)} files skipped: {self.describe_unreadable()}{more}")
        return lines

    def warnings(self) -> list[str]:
        return super().warnings() + self.listing.describe()

    def fingerprint(self) -> Fingerprint:
        """The hash of the files' paths inside the folder and contents."""
        return fingerprint_files(self.hashes)


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
    if channels * size**2 > MAX_EXAMPLE_SIZE:
        most = math.isqrt(MAX_EXAMPLE_SIZE // channels)
        raise ValueError(f"dataset.size is {size}, but must be at most {most}: an example has at most 2^24 numbers")
    if side > MAX_STORED_SIDE:
        raise ValueError(f"dataset.resize is {side}, but must be at most {MAX_STORED_SIDE}")
    if not (0 <= validation and 0 <= test and validation + test < 1):
        raise ValueError(
            f"dataset.validation is {validation} and dataset.test {test}, but they are shares and sum to less than 1"
        )
    if not memory >= 0:
        raise ValueError(f"dataset.memory is {memory}, but must be a number of bytes, 0 to keep nothing in memory")


def check_choices(suffixes: Sequence[str] | None, class_order: str, split_by: str) -> None:
    """Raises ValueError for a choice that there is not."""
    for name, value, known in (
        ("class_order", class_order, ("numbers", "names")),
        ("split_by", split_by, ("contents", "path")),
    ):
        if value not in known:
            raise ValueError(f"dataset.{name} is {value}, but must be {known[0]} or {known[1]}")
    readable = decoding.readable_suffixes()
    for suffix in suffixes or ():
        if suffix.lower() not in readable:
            near = "; write it with the dot" if f".{suffix.lower()}" in readable else ""
            raise ValueError(f"dataset.suffixes has {suffix}, which is no image suffix that Pillow reads{near}")
