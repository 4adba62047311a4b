"""The images in a folder of the user, with a class per subfolder or without classes, in memory or read as needed."""

import math
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from ..files.text import escape_unprintable
from ..runtime.ranges import check_range, check_whole
from . import decoding
from .base import ColumnSplit, Dataset, Split, check_dataset_facts
from .decoding import Header, Unreadable, read_header, read_max_grey, read_square
from .fingerprints import Fingerprint, fingerprint_files
from .folders import class_folder, find_classes
from .image_stream import ColumnStream, ImageStream
from .listing import list_files
from .ranges import WhiteLevels, find_whites
from .sheets import describe_copies, describe_files
from .splits import TEST, TRAIN, VALIDATION, assign_splits, content_hash, group_copies, path_hash, unit_hash

__all__ = ["ImageFolder"]

Result = TypeVar("Result")
MAX_EXAMPLE_SIZE = 2**24  # numbers in one example
MAX_STORED_SIDE = 2**14  # pixels
MAX_NAMED_UNREADABLE = 3  # unreadable files named in a message


class ImageFolder(Dataset):
    """The images below a folder, with the first-level subfolders as classes.

    The split of a file depends on a hash of its contents (`splits.assign_splits`), so that it does not change when other
    files are added, and copies are in one split. Hidden files and folders are counted but not read; links are followed.

    Arguments:
        path: the folder.
        channels: 1 (grey) or 3 (RGB), to which every image is converted.
        size: side of the network's input, pixels; an example has at most 2^24 numbers.
        num_classes: number of class folders, checked; 0 = no labels, all images below the folder.
        resize: side of the stored square, pixels, at most 2^14; above `size` training uses random windows; None = size.
        stretch: whether images are distorted to the square; otherwise the central square is cropped.
        flip: whether training mirrors every second image, left to right.
        validation, test: shares of the images, in [0, 1); 0 = none.
        memory: bytes of decoded images up to which they are kept in memory.
        workers: processes that read ahead if the images are not in memory.
        suffixes: suffixes of the files to read, with dots; None = of all images that Pillow decodes.
        class_order: as for `folders.find_classes`.
        split_by: `contents`, or `path` as in runs of earlier versions, where copies may be in several splits and an image is
            selected for validation even at validation=0.
        quantization_levels: 256; checked.

    Attributes:
        unreadable: (path relative to the folder, reason) of each skipped file, both escaped for printing.

    Raises:
        ValueError: an argument out of range, too few readable images, or another number of classes.
    """

    folder: Path
    unreadable: list[tuple[Path, str]]

    def __init__(
        self,
        path: str,
        channels: int = 3,
        size: int = 64,
        num_classes: int = 0,
        resize: int | None = None,
        stretch: bool = False,
        flip: bool = True,
        validation: float = 0.05,
        test: float = 0.0,
        memory: float = 2.0e9,
        workers: int = 2,
        suffixes: Sequence[str] | None = None,
        class_order: str = "numbers",
        split_by: str = "contents",
        quantization_levels: int = 256,
    ):
        check_dataset_facts("image_folder", quantization_levels=(quantization_levels, 256))
        side = size if resize is None else resize
        check_arguments(channels, size, num_classes, side, validation, test, memory, workers)
        check_choices(suffixes, class_order, split_by)
        self.folder, self.unreadable = Path(path).expanduser(), []
        self.listing = list_files(self.folder, suffixes and [suffix.lower() for suffix in suffixes])
        columns = self.read_columns()
        self.hashes = self.hash_files(self.listing.files)
        keys = {file: key if key and split_by == "contents" else path_hash(file) for file, key in self.hashes.items()}
        files = sorted(keys, key=lambda file: (unit_hash(keys[file]), file))
        class_names = find_classes(self.folder, files, num_classes, class_order)
        headers, whites, x = self.load(files, channels, side, stretch, memory)
        files = list(headers)
        self.check_enough(files, class_names)
        classes = [class_folder(file) if class_names else "" for file in files]
        split = assign_splits([keys[file] for file in files], classes, validation, test, always=split_by == "path")
        labels = {name: label for label, name in enumerate(class_names)}
        y = torch.tensor([labels.get(name, -1) for name in classes])

        def select(part: int) -> Split | ImageStream:
            rows = (torch.tensor(split) == part).nonzero()[:, 0]
            members = [files[row] for row in rows.tolist()]
            held = {name: [texts[file] for file in members] for name, texts in columns.items()}
            if x is not None:
                return ColumnSplit(x[rows], y[rows], held) if held else Split(x[rows], y[rows])
            facts = [str(self.folder / file) for file in members], y[rows], channels, side, stretch, whites
            return ColumnStream(held, *facts) if held else ImageStream(*facts)

        splits = select(TRAIN), select(VALIDATION), select(TEST)
        super().__init__(*splits, class_names=class_names, size=size, flip=flip, workers=workers)
        self.notes = describe_files(list(headers.values()), channels, side, x, workers, whites)
        groups = group_copies({file: self.hashes[file] for file in files}, self.folder)
        self.notes += describe_copies(groups, dict(zip(files, split)), bool(class_names))

    def read_columns(self) -> Mapping[str, Mapping[str, Sequence[str]]]:
        """What else is known of the files of `listing`: texts by name of the column and by file."""
        return {}

    def load(
        self, files: Sequence[str], channels: int, side: int, stretch: bool, memory: float
    ) -> tuple[dict[str, Header], WhiteLevels, Tensor | None]:
        """(Headers of the readable files, white levels, the decoded images if they fit into `memory` bytes)."""
        headers = self.read_files(files, lambda file: read_header(self.folder / file))
        files = list(headers)
        modes = [header.mode for header in headers.values()]
        whites = find_whites(modes, lambda index: read_max_grey(self.folder / files[index]))
        if len(files) * channels * side**2 > memory:
            return headers, whites, None
        files, x = self.decode(files, channels, side, stretch, whites)
        return {file: headers[file] for file in files}, whites, x

    def hash_files(self, files: Sequence[str]) -> dict[str, str]:
        """The `content_hash` of each file; "" for an unreadable one."""

        def attempt(file: str) -> str:
            try:
                return content_hash(self.folder / file)
            except (Unreadable, OSError):
                return ""

        with ThreadPool() as pool:
            return dict(zip(files, pool.imap(attempt, files, chunksize=16)))

    def read_files(self, files: Sequence[str], read: Callable[[str], Result]) -> dict[str, Result]:
        """read(file) of each readable file, in order; the others are recorded in `unreadable`."""

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
    ) -> tuple[list[str], Tensor]:
        """The files that can be decoded, and their bytes [N, channels, side, side]."""
        x = torch.empty(len(files), channels, side, side, dtype=torch.uint8)
        row = {file: number for number, file in enumerate(files)}

        def fill(file: str) -> None:
            x[row[file]] = read_square(self.folder / file, channels, side, stretch, whites)

        kept = list(self.read_files(files, fill))
        return kept, x if len(kept) == len(files) else x[[row[file] for file in kept]]

    def check_enough(self, files: list[str], class_names: tuple[str, ...]) -> None:
        """Raises ValueError if most files are unreadable, or all of a class."""
        lost = ""
        if self.unreadable:
            total = len(files) + len(self.unreadable)
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
        """The hash of the relative paths and contents of the files."""
        return fingerprint_files(self.hashes)


def check_arguments(
    channels: int, size: int, num_classes: int, side: int, validation: float, test: float, memory: float, workers: int
) -> None:
    """Raises ValueError for the first argument out of range."""
    if channels not in (1, 3):
        raise ValueError(f"dataset.channels is {channels}, but must be 1 (grey) or 3 (RGB)")
    check_whole("dataset.size", size, 1)
    check_whole("dataset.num_classes", num_classes, 0)
    check_whole("dataset.workers", workers, 0)
    if side < size:
        raise ValueError(
            f"dataset.resize is {side}, but must be at least dataset.size={size}, or null for dataset.size"
        )
    if channels * size**2 > MAX_EXAMPLE_SIZE:
        largest = math.isqrt(MAX_EXAMPLE_SIZE // channels)
        raise ValueError(f"dataset.size is {size}, but must be at most {largest}: an example has at most 2^24 numbers")
    if side > MAX_STORED_SIDE:
        raise ValueError(f"dataset.resize is {side}, but must be at most {MAX_STORED_SIDE}")
    if not (0 <= validation and 0 <= test and validation + test < 1):
        raise ValueError(
            f"dataset.validation and dataset.test must be at least 0 and sum to less than 1, got {validation} and {test}"
        )
    check_range("dataset.memory", memory, "[0, inf]")


def check_choices(suffixes: Sequence[str] | None, class_order: str, split_by: str) -> None:
    """Raises ValueError for an unknown choice."""
    if class_order not in ("numbers", "names"):
        raise ValueError(f"dataset.class_order is {class_order}, but must be numbers or names")
    if split_by not in ("contents", "path"):
        raise ValueError(f"dataset.split_by is {split_by}, but must be contents or path")
    readable = decoding.readable_suffixes()
    for suffix in suffixes or ():
        if suffix.lower() not in readable:
            advice = "; write it with the dot" if f".{suffix.lower()}" in readable else ""
            raise ValueError(
                f"dataset.suffixes has {suffix}, which is not a suffix of images that Pillow reads{advice}"
            )
