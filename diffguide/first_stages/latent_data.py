"""Data sets of latents, encoded once, and data that are encoded as they are read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from ..datasets import Dataset, Split, Stream
from ..datasets.base import RowStream
from ..datasets.fingerprints import Fingerprint
from .space import LatentSpace

__all__ = ["DirectLatents", "LatentData", "LatentDataset", "LatentStream", "LatentRowStream", "check_encodable"]

LATENTS = "latents"  # name of the tensor in a shard


class LatentData(Dataset):
    """Base of data whose examples are latents. What is known of the data is that of the pictures.

    Attributes:
        pictures: the data set of the pictures.
        space: the latents.
    """

    pictures: Dataset
    space: LatentSpace

    def __init__(
        self,
        pictures: Dataset,
        space: LatentSpace,
        train: Split | Stream,
        validation: Split | Stream,
        test: Split | Stream,
    ):
        self.pictures, self.space = pictures, space
        names, flip, workers = pictures.class_names, pictures.flip, pictures.workers
        super().__init__(train, validation, test, names, flip=flip, workers=workers)
        self.folder, self.unreadable, self.synthetic = pictures.folder, pictures.unreadable, pictures.synthetic

    def summary(self) -> list[str]:
        image, latent = (" x ".join(map(str, shape)) for shape in (self.pictures.shape, self.shape))
        return [*self.pictures.summary(), f"latents: {latent}, of pictures {image}"]

    def warnings(self) -> list[str]:
        return self.pictures.warnings()

    def fingerprint(self) -> Fingerprint:
        return self.pictures.fingerprint()


class LatentDataset(LatentData):
    """Splits of latents x [N, V, C, H, W] of the stage, with V = 2 views where training mirrors pictures, else 1.

    The second view is the latent of the mirrored picture, which is not the mirrored latent.
    """

    def preprocess(self, x: Tensor, chance: Tensor | None = None) -> Tensor:
        """Latents with mean 0 and variance 1 per channel, [B, C, H, W].

        Arguments:
            chance: as for `Dataset`; its first column selects the view.
        """
        view = torch.zeros(len(x), dtype=torch.long, device=x.device)
        if chance is not None and x.shape[1] > 1:
            view = (chance[:, 0] < 0.5).long()
        return self.space.normalize(x[torch.arange(len(x), device=x.device), view].float())


class DirectLatents(LatentData):
    """Latents that are encoded when they are used, from the splits of the pictures."""

    def __init__(self, pictures: Dataset, space: LatentSpace):
        super().__init__(pictures, space, pictures.train, pictures.validation, pictures.test)

    def preprocess(self, x: Tensor, chance: Tensor | None = None) -> Tensor:
        return self.space.encode(self.pictures.preprocess(x, chance))


class LatentStream(Stream):
    """Latents in shards on the disk: stream[i] -> (x [V, C, H, W], class index).

    Arguments:
        shards: files of `rows` latents each, the last one of fewer.
        y: class indices [N].
        columns: as of a `Split`.
    """

    def __init__(self, shards: list[Path], rows: int, y: Tensor, columns: Mapping[str, Any]):
        self.shards, self.rows, self.y, self.columns = shards, rows, y, columns

    def read(self, index: int) -> Tensor:
        """The latents of one example."""
        shard, row = divmod(index, self.rows)
        with safetensors.safe_open(self.shards[shard], framework="pt") as file:
            return file.get_slice(LATENTS)[row]

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.read(index), int(self.y[index])


class LatentRowStream(LatentStream, RowStream):
    """The same with columns: stream[i] -> (x [V, C, H, W], i)."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.read(index), index


def check_encodable(data: Dataset) -> None:
    """Raises ValueError for data without one fixed picture per example: vectors, or random windows."""
    if len(data.shape) != 3:
        raise ValueError(f"a first stage needs pictures, got examples of shape {list(data.shape)}")
    first = data.train.x[0] if isinstance(data.train, Split) else data.train[0][0]
    if tuple(first.shape[1:]) != tuple(data.shape[1:]):
        raise ValueError(
            f"training takes random windows of {data.shape[1]} pixels from pictures of {list(first.shape[1:])}, which cannot "
            "be encoded once: make both equal (dataset.resize=null)"
        )
