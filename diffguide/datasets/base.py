"""Base of the data sets: three splits, class names, and the preprocessing of stored examples.

A split is a `Split`, in memory, or a `Stream`, read example by example by worker processes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from .fingerprints import Fingerprint, fingerprint_tensors

__all__ = [
    "Column",
    "ColumnSplit",
    "Dataset",
    "RowStream",
    "Split",
    "Stream",
    "check_dataset_facts",
    "check_draws",
    "fetch_examples",
]

Column = Tensor | Sequence[Sequence[str]]  # one entry per example: numbers [N, ...], or the texts of each
NO_COLUMNS: Mapping[str, Column] = MappingProxyType({})


class Split(NamedTuple):
    """Examples in memory: x [N, C, H, W], float32 in [-1, 1] or uint8 in 0..255, or vectors [N, D]; y [N] class indices.

    y is -1 for an example without class.
    """

    x: Tensor
    y: Tensor

    @property
    def columns(self) -> Mapping[str, Column]:
        """What else is known of every example; nothing, of a plain split, which is a pair."""
        return NO_COLUMNS


class ColumnSplit(Split):
    """A split with `columns`: what else is known of every example, such as its `captions`."""

    known: Mapping[str, Column]

    def __new__(cls, x: Tensor, y: Tensor, columns: Mapping[str, Column]) -> "ColumnSplit":
        split = super().__new__(cls, x, y)
        split.known = dict(columns)
        return split

    @property
    def columns(self) -> Mapping[str, Column]:
        return self.known


class Stream(torch.utils.data.Dataset):
    """Examples that are read on access: stream[i] -> (uint8 [C, H, W], class index).

    An unreadable example is replaced by another one; the class index returned is that of the image returned.

    Attributes:
        y: class index of every example, [N].
        columns: as of a `ColumnSplit`, of a `RowStream` only.
    """

    y: Tensor
    columns: Mapping[str, Column] = NO_COLUMNS

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        raise NotImplementedError


class RowStream(Stream):
    """A stream with columns: stream[i] -> (uint8 [C, H, W], the row in `y` and `columns` of the image returned)."""


class Dataset:
    """Three splits of one data set.

    Arguments:
        train, validation, test: the splits; validation may be empty.
        class_names: one name per class; () = no classes.
        size: side of the network's input, pixels, at most the stored side: random windows in training, else the central
            one. None = as stored.
        flip: whether training mirrors every second image, left to right.
        workers: processes that read a `Stream` ahead.

    Attributes:
        shape: shape of one example as the network gets it.
        unreadable: (path, reason) of each skipped file.
        folder: the folder of the data; None = they come with the program.
        synthetic: whether the examples are drawn from a seed. Such a data set reads no file, so that a foreign checkpoint
            may name it.

    Raises:
        ValueError: a size above the stored side.
    """

    unreadable: Sequence[tuple[Path, str]] = ()
    folder: Path | None = None
    synthetic = False

    def __init__(
        self,
        train: Split | Stream,
        validation: Split | Stream,
        test: Split | Stream,
        class_names: Sequence[str],
        size: int | None = None,
        flip: bool = False,
        workers: int = 0,
    ):
        self.train, self.validation, self.test = train, validation, test
        self.class_names = tuple(class_names)
        self.size, self.flip, self.workers = size, flip, workers
        first = train.x[0] if isinstance(train, Split) else train[0][0]
        if size is not None and size > min(first.shape[1:]):
            raise ValueError(f"dataset.size is {size}, but the images are stored as {list(first.shape)}")
        self.shape = tuple(self.preprocess(first[None]).shape[1:])

    def preprocess(self, x: Tensor, chance: Tensor | None = None) -> Tensor:
        """The network's input from stored examples x [B, ...]: float32, bytes u as u / 127.5 - 1, on the device of x.

        Arguments:
            chance: [B, 3] uniform numbers in [0, 1) that select mirroring and window of each example; None = not mirrored,
                the central window.
        """
        if x.ndim == 4 and self.size is not None and self.size < max(x.shape[2:]):
            x = self.crop_window(x, self.size, chance)  # before the cast: bytes are a quarter of the memory of floats
        if x.ndim == 4 and self.flip and chance is not None:
            x = torch.where((chance[:, 0] < 0.5)[:, None, None, None], x.flip(-1), x)
        return x.float() / 127.5 - 1 if x.dtype == torch.uint8 else x

    @staticmethod
    def crop_window(x: Tensor, size: int, chance: Tensor | None) -> Tensor:
        """A square window of side `size` of each image: at random positions, or the central one for chance None."""
        height, width = x.shape[2:]
        margin = torch.tensor([height - size, width - size], device=x.device)
        corner = margin // 2 if chance is None else (chance[:, 1:] * (margin + 1)).long()
        corner = corner.expand(len(x), 2)
        side = torch.arange(size, device=x.device)
        rows, columns = corner[:, :1] + side, corner[:, 1:] + side
        x = x.gather(2, rows[:, None, :, None].expand(-1, x.shape[1], -1, width))
        return x.gather(3, columns[:, None, None, :].expand(-1, x.shape[1], size, -1))

    def summary(self) -> list[str]:
        """Lines of the data sheet."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        lines = [f"{name}: {len(split.y)} examples" for name, split in splits.items()]
        if not len(self.validation.y):
            lines.append("the validation split is empty: held-out losses are computed on training examples")
        members = [split.y[split.y >= 0].bincount(minlength=len(self.class_names)) for split in splits.values()]
        for index, (name, *counts) in enumerate(zip(self.class_names, *(counts.tolist() for counts in members))):
            shares = " / ".join(f"{count} {split}" for count, split in zip(counts, splits))
            lines.append(f"class {index} {name}: {shares}")
        return lines

    def warnings(self) -> list[str]:
        """Lines for the log of a training run on data that are not used."""
        if not self.unreadable:
            return []
        first = ", ".join(f"{path} ({reason})" for path, reason in self.unreadable[:3])
        return [f"{len(self.unreadable)} unreadable images are skipped: {first}"]

    @property
    def held_out_split(self) -> tuple[str, Split | Stream]:
        """The split for held-out losses with its name: validation, or train if validation is empty."""
        return ("validation", self.validation) if len(self.validation.y) else ("train", self.train)

    def fingerprint(self) -> Fingerprint:
        """The hash of the labels and of the examples in memory, which identifies the data.

        Examples drawn from a seed are not hashed, since their last bits differ between processors.
        """
        splits = self.train, self.validation, self.test
        examples = [split.x for split in splits if isinstance(split, Split) and not self.synthetic]
        return fingerprint_tensors([*(split.y for split in splits), *examples], sum(len(split.y) for split in splits))


def check_dataset_facts(name: str, **facts: tuple[int | None, int | None]) -> None:
    """Raises ValueError for the first fact, (as configured, of the data), in which the two differ."""
    for fact, (configured, found) in facts.items():
        if configured != found:
            raise ValueError(f"dataset.{fact} is {configured}, but {name} has {found}")


def check_draws(name: str, counts: Sequence[int], seed: int) -> None:
    """Raises ValueError for a number of examples drawn per split outside 1 to 10^7, or a negative seed."""
    if min(counts) < 1 or max(counts) > 10**7 or seed < 0:
        raise ValueError(f"{name} needs 1 to 10^7 examples per split and seed >= 0, got {list(counts)} and seed {seed}")


def fetch_examples(split: Split | Stream, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The stored examples (x, y) at some rows of a split, read in this process."""
    if isinstance(split, Split):
        return split.x[rows], split.y[rows]
    x, y = zip(*(split[row] for row in rows.tolist()))
    return torch.stack(x), split.y[list(y)] if isinstance(split, RowStream) else torch.tensor(y)
