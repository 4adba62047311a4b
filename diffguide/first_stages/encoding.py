"""Encoding a data set once, into shards on the disk.

The folder of the shards is named by a hash of the first stage, of the data and of the settings of the data set, so that other
latents are never read. A shard is written atomically with a checksum; a run that was stopped continues with the next shard, and
a damaged shard is encoded again.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..datasets import Dataset, Split, Stream
from ..datasets.base import ColumnSplit, RowStream
from ..files import safetensors as archives
from ..files.run_folders import convert_write_errors
from ..files.safetensors import CheckpointError
from ..runtime.progress import Progress
from .base import FirstStage
from .latent_data import LATENTS, LatentDataset, LatentRowStream, LatentStream, check_encodable
from .space import LatentFacts, LatentSpace, hash_stage

__all__ = ["DEFAULT_MEMORY", "Encoder", "cache_key", "encode_dataset"]

VERSION = 1  # of the shards; increase it with every change of what they hold
SHARD_BYTES, SHARD_ROWS = 2**26, 1024  # at most, of latents
SMALLEST_STD = 1e-6  # of a channel, relative to the largest; below, it holds nothing
DEFAULT_MEMORY = 2e9  # bytes
SPLITS = ("train", "validation", "test")


class Encoded(NamedTuple):
    """The latents of some examples: x [n, V, C, H, W], y [n], and the rows of their columns [n]."""

    x: Tensor
    y: Tensor
    rows: Tensor


class Moments:
    """Sums of latents per channel in float64, for their mean and variance."""

    def __init__(self) -> None:
        self.count: int = 0
        self.sums: Tensor = torch.zeros(2, 1, dtype=torch.float64)

    def add(self, x: Tensor) -> None:
        """Adds latents [n, V, C, H, W]."""
        values = x.double().transpose(2, 0).flatten(1)
        self.sums = self.sums + torch.stack([values.sum(1), values.square().sum(1)])
        self.count += values.shape[1]

    def read(self) -> tuple[list[float], list[float]]:
        """(Means, standard deviations); ValueError for a channel that is constant."""
        mean = self.sums[0] / self.count
        std = (self.sums[1] / self.count - mean.square()).clamp(min=0).sqrt()
        if not std.isfinite().all() or std.min() <= SMALLEST_STD * std.max() or std.max() == 0:
            raise ValueError(
                f"the latents of the training data have the standard deviations {[round(s, 6) for s in std.tolist()]} per "
                "channel: a channel without information cannot be normalized; train the first stage longer, or with fewer "
                "channels"
            )
        return mean.tolist(), std.tolist()


class Encoder:
    """Encodes the splits of a data set.

    Arguments:
        stage: the first stage, on the device that encodes.
        data: of the pictures.
        folder: of the shards; None = nothing is read or written.
        batch_size: pictures at a time.
        memory: bytes up to which a split is kept in memory; only with a folder.
        limit: encodes at most so many examples of every split; None = all.
        silent: whether to show no progress.
    """

    def __init__(
        self,
        stage: FirstStage,
        data: Dataset,
        folder: Path | None = None,
        batch_size: int = 64,
        memory: float = DEFAULT_MEMORY,
        limit: int | None = None,
        silent: bool = True,
    ):
        check_encodable(data)
        self.stage, self.data, self.folder = stage.eval().requires_grad_(False), data, folder
        self.batch_size, self.memory, self.limit, self.silent = batch_size, memory, limit, silent
        self.shape = stage.latent_shape(data.shape)
        self.device = next(stage.parameters()).device

    def views(self, name: str) -> int:
        """2 for training pictures that may be mirrored, else 1."""
        return 1 + (name == "train" and self.data.flip)

    def encode_split(self, name: str, moments: Moments | None = None) -> Split | Stream:
        """The latents of a split, in memory or as a stream; adds them to the moments."""
        split = getattr(self.data, name)
        count = len(split.y) if self.limit is None else min(self.limit, len(split.y))
        size = 4 * self.views(name) * torch.Size(self.shape).numel()
        rows = max(1, min(SHARD_BYTES // size, SHARD_ROWS))
        kept = self.folder is None or count * size <= self.memory
        progress = Progress(f"encoding {name}", count, "images", silent=self.silent)
        parts: list[Encoded] = []
        shards: list[Path] = []
        for first in range(0, count, rows):
            last = min(first + rows, count)
            part = self.shard(name, first, last, shards)
            if moments is not None:
                moments.add(part.x)
            parts.append(part if kept else part._replace(x=part.x.new_empty(0, *part.x.shape[1:])))
            progress.advance(last - first)
            progress.show()
        progress.close()
        return self.join(split, name, parts, shards if not kept else None, rows)

    def join(
        self, split: Split | Stream, name: str, parts: Sequence[Encoded], shards: list[Path] | None, rows: int
    ) -> Split | Stream:
        """The split of encoded parts; `shards` = it reads its latents from these files of `rows` latents each."""
        nothing = Encoded(torch.empty(0, self.views(name), *self.shape), torch.empty(0).long(), torch.empty(0).long())
        x, y, places = (torch.cat(part) for part in zip(nothing, *parts))
        columns = {key: pick_rows(values, places) for key, values in split.columns.items()}
        if shards is None:
            return ColumnSplit(x, y, columns) if columns else Split(x, y)
        return LatentRowStream(shards, rows, y, columns) if columns else LatentStream(shards, rows, y, columns)

    def shard(self, name: str, first: int, last: int, shards: list[Path]) -> Encoded:
        """The latents of examples first .. last - 1, from their shard if there is one; adds its file to `shards`."""
        if self.folder is None:
            return self.encode_rows(name, first, last)
        path = self.folder / f"{name}-{first:010d}.safetensors"
        shards.append(path)
        found = self.read_shard(path, name, last - first)
        if found is None:
            found = self.encode_rows(name, first, last)
            archives.write_sealed(
                path, {LATENTS: found.x, "y": found.y, "rows": found.rows}, {"latents": self.folder.name}
            )
        return found

    def read_shard(self, path: Path, name: str, count: int) -> Encoded | None:
        """The contents of a shard; None where it is missing, damaged, or of other latents."""
        try:
            tensors, metadata = archives.read_sealed(path)
        except CheckpointError:
            return None
        assert self.folder is not None
        shapes = {key: tuple(value.shape) for key, value in tensors.items()}
        wanted = {LATENTS: (count, self.views(name), *self.shape), "y": (count,), "rows": (count,)}
        if metadata.get("latents") != self.folder.name or shapes != wanted:
            return None
        return Encoded(tensors[LATENTS], tensors["y"], tensors["rows"])

    @torch.no_grad()
    def encode_rows(self, name: str, first: int, last: int) -> Encoded:
        """Encodes examples first .. last - 1."""
        split = getattr(self.data, name)
        latents, ys, places = [], [], []
        for x, y, rows in self.batches(split, first, last):
            pictures = self.data.preprocess(x.to(self.device))
            seen = [pictures, pictures.flip(-1)][: self.views(name)]
            latents.append(torch.stack([self.stage.encode(view).float().cpu() for view in seen], dim=1))
            ys.append(y)
            places.append(rows)
        return Encoded(torch.cat(latents), torch.cat(ys), torch.cat(places))

    def batches(self, split: Split | Stream, first: int, last: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(Stored examples, classes, rows of their columns) in batches; a stream is read ahead by worker processes."""
        indices = list(torch.arange(first, last).split(self.batch_size))
        if isinstance(split, Split):
            yield from ((split.x[rows], split.y[rows], rows) for rows in indices)
            return
        order = [rows.tolist() for rows in indices]
        loader = DataLoader(split, batch_sampler=order, num_workers=self.data.workers, generator=torch.Generator())
        for rows, (x, y) in zip(indices, loader):
            yield (x, split.y[y], y) if isinstance(split, RowStream) else (x, y, rows)


def pick_rows(values: Any, rows: Tensor) -> Any:
    """The entries of a column at some rows."""
    return values[rows] if isinstance(values, Tensor) else [values[row] for row in rows.tolist()]


def cache_key(stage_hash: str, data: Dataset, settings: Mapping[str, Any]) -> str:
    """The name of the folder of the latents of a data set.

    Arguments:
        settings: of the data set, as far as they change its pictures.
    """
    facts = [VERSION, stage_hash, data.fingerprint().sha256, list(data.shape), data.flip, dict(settings)]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


def encode_dataset(
    stage: FirstStage,
    data: Dataset,
    cache: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    facts: LatentFacts | None = None,
    batch_size: int = 64,
    memory: float = DEFAULT_MEMORY,
    limit: int | None = None,
    silent: bool = True,
) -> LatentDataset:
    """The latents of a data set.

    Arguments:
        stage: the first stage, on the device that encodes.
        cache: folder of the encoded data sets; None = they are not stored.
        settings: see `cache_key`.
        facts: with the mean and standard deviation to normalize by; None = those of the training split.
        others: see `Encoder`.

    Raises:
        ValueError: data that cannot be encoded once, or a channel of the latents without information.
        WriteError: a shard cannot be written.
    """
    digest = hash_stage(stage)
    folder = None
    if cache is not None:
        folder = cache / cache_key(digest, data, settings or {})
        with convert_write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
    encoder, moments = Encoder(stage, data, folder, batch_size, memory, limit, silent), Moments()
    splits = [encoder.encode_split(name, moments if name == "train" else None) for name in SPLITS]
    mean, std = (facts.mean, facts.std) if facts is not None else moments.read()
    return LatentDataset(data, LatentSpace(stage, data.shape, mean, std, digest), *splits)
