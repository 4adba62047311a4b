"""Base of the data sets: three splits, class names, facts, and the preprocessing of stored examples.

A split is a `Split`, whole in memory, or a `Stream`, read example by example by worker
processes; training supports both.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .fingerprints import Fingerprint, fingerprint_tensors

__all__ = ["Dataset", "Split", "Stream", "check_dataset_facts"]


class Split(NamedTuple):
    """Examples in memory: x [N, C, H, W], float32 in [-1, 1] or uint8 in 0..255, or vectors [N, D]; y [N] class indices.

    y is -1 where there is no class.
    """

    x: Tensor
    y: Tensor


class Stream(torch.utils.data.Dataset):
    """Examples that are read on access: stream[i] -> (uint8 [C, H, W], class index).

    The class index that comes with an example is the one to use: where an example cannot be read another takes its place.

    Attributes:
        y: class index of every example, [N], known without reading one.
    """

    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        raise NotImplementedError


class Dataset:
    """Three splits of one data set, and its facts.

    Arguments:
        train, validation, test: choices are made on validation, which may be empty; test is touched once.
        class_names: one name per class, none = no classes.
        size: side of what the network sees, pixels, at most the stored side: training sees random windows of that side,
            everything else the central one. None = as stored.
        flip: whether training mirrors every second image, left to right.
        workers: processes that read ahead where a split is a `Stream`.

    Attributes:
        shape: of one example as the network sees it.
        unreadable: (path, reason) of skipped files.
        folder: where the data lie, None = they come with the program.
        synthetic: whether the examples are drawn from a seed: such a data set reads no file and may be built for a stranger.

    Raises:
        ValueError: a size above the stored side.
    """

    unreadable: Sequence[tuple[Path, str]] = ()
    folder: Path | None = None
    synthetic = False

    def __init__(
        self, train: Split | Stream, validation: Split | Stream, test: Split | Stream, class_names: Sequence[str],
        size: int | None = None, flip: bool = False, workers: int = 0,
    ):  # fmt: skip
        self.train, self.validation, self.test, self.class_names = train, validation, test, tuple(class_names)
        self.size, self.flip, self.workers = size, flip, workers
        first = train.x[0] if isinstance(train, Split) else train[0][0]
        if size is not None and size > min(first.shape[1:]):
            raise ValueError(f"dataset.size is {size}, but the images are stored as {list(first.shape)}")
        self.shape = tuple(self.preprocess(first[None]).shape[1:])

    def preprocess(self, x: Tensor, chance: Tensor | None = None) -> Tensor:
        """What the network sees of stored examples x [B, ...]: float32, bytes u as u / 127.5 - 1, on the device of x.

        Arguments:
            chance: [B, 3] uniform numbers in [0, 1) that decide the mirroring and the window of each example; None = not
                mirrored, the central window.
        """
        if x.ndim == 4 and self.size is not None and self.size < max(x.shape[2:]):
            x = self.window(x, self.size, chance)  # of bytes, a quarter of the traffic of floats
        if x.ndim == 4 and self.flip and chance is not None:
            x = torch.where((chance[:, 0] < 0.5)[:, None, None, None], x.flip(-1), x)
        return x.float() / 127.5 - 1 if x.dtype == torch.uint8 else x

    @staticmethod
    def window(x: Tensor, size: int, chance: Tensor | None) -> Tensor:
        """A square window of side `size` of each image: at random places, or the central ones."""
        height, width = x.shape[2:]
        room = torch.tensor([height - size, width - size], device=x.device)
        corner = room // 2 if chance is None else (chance[:, 1:] * (room + 1)).long()
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
            lines.append("the validation split is empty: held-out losses are on training examples")
        members = [split.y[split.y >= 0].bincount(minlength=len(self.class_names)) for split in splits.values()]
        for index, (name, *counts) in enumerate(zip(self.class_names, *(counts.tolist() for counts in members))):
            shares = " / ".join(f"{count} {split}" for count, split in zip(counts, splits))
            lines.append(f"class {index} {name}: {shares}")
        return lines

    def warnings(self) -> list[str]:
        """Lines for the log of a training run: which data are not used."""
        if not self.unreadable:
            return []
        first = ", ".join(f"{path} ({reason})" for path, reason in self.unreadable[:3])
        return [f"{len(self.unreadable)} unreadable images are skipped: {first}"]

    @property
    def held_out(self) -> tuple[str, Split | Stream]:
        """The split for held-out losses and its name: validation, or train where that is empty."""
        return ("validation", self.validation) if len(self.validation.y) else ("train", self.train)

    def fingerprint(self) -> Fingerprint:
        """The hash of labels and examples in memory, which identifies the data.

        Of what is drawn from a seed the labels alone: the last bits of the draws are each processor's own.
        """
        splits = self.train, self.validation, self.test
        held = [split.x for split in splits if isinstance(split, Split) and not self.synthetic]
        return fingerprint_tensors([*(split.y for split in splits), *held], sum(len(split.y) for split in splits))


def check_dataset_facts(name: str, stated: Mapping[str, int | None], found: Mapping[str, int | None]) -> None:
    """Compares what the configuration states about the data with the data.

    Raises:
        ValueError: naming the first fact that differs.
    """
    for fact, value in found.items():
        if stated[fact] != value:
            raise ValueError(f"dataset.{fact} is {stated[fact]}, but {name} has {value}")


def fetch_examples(split: Split | Stream, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Some stored examples (x, y) of a split, read here and now."""
    if isinstance(split, Split):
        return split.x[rows], split.y[rows]
    x, y = zip(*(split[row] for row in rows.tolist()))
    return torch.stack(x), torch.tensor(y)
