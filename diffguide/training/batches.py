"""Batches for training: functions of (seed, images seen), for any division among devices and any storage."""

import os
import time
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..backbones.conditions import Condition
from ..conditions.examples import Examples
from ..datasets import Split, Stream
from ..randomness import Share, fold, uniform
from ..runtime.engine import Fabric

__all__ = ["Batches", "DataOrder", "make_loader"]

ORDER_PURPOSE, NOISE_PURPOSE, LAYERS_PURPOSE = range(3)  # purposes of a folded seed
OBJECTIVE, VIEW, CONDITION = range(3)  # users of the noise of a step
PREFETCH = 4  # batches that each worker reads in advance


class DataOrder:
    """The endless order of the examples: every epoch has its own permutation, a function of (seed, epoch)."""

    def __init__(self, length: int, seed: int):
        self.length, self.seed, self.epoch = length, seed, -1

    def indices(self, position: int, count: int) -> Tensor:
        """The examples at positions position .. position + count - 1, [count]."""
        parts = []
        while count:
            epoch, offset = divmod(position, self.length)
            if epoch != self.epoch:
                rng = torch.Generator().manual_seed(fold(self.seed, ORDER_PURPOSE, epoch))
                self.epoch, self.permutation = epoch, torch.randperm(self.length, generator=rng)
            parts.append(self.permutation[offset : offset + count])
            position, count = position + len(parts[-1]), count - len(parts[-1])
        return torch.cat(parts)


class Batches:
    """This device's share of every batch, in micro-batches, with its random numbers.

    An endless iterator over (x, y, rng), from `images` on: preprocessed examples [share, ...], their conditions [share],
    and this share of the step's random numbers. It also seeds the global generators, which dropout layers use.

    Arguments:
        examples: of training; a `Split` is stored on the device, a `Stream` is read in advance by worker processes.
        seed: of order and noise.
        engine: launched Fabric; each rank gets its part of every batch.
        batch_size: images per optimiser step, over all devices.
        share: images per device and micro-step.
        images: images seen before the first step.

    Attributes:
        wait_seconds: spent waiting for data.
    """

    def __init__(self, examples: Examples, seed: int, engine: Fabric, batch_size: int, share: int, images: int = 0):
        self.examples = examples
        self.seed, self.batch_size, self.share, self.images = seed, batch_size, share, images
        self.device, self.rank = torch.device(engine.device), engine.global_rank
        self.local = batch_size // engine.world_size
        self.wait_seconds = 0.0
        self.generators = [torch.Generator(self.device) for _ in (OBJECTIVE, VIEW, CONDITION)]

    def micro_batches(self) -> Iterator[tuple[int, int, Tensor]]:
        """(images before the step, row in the batch, indices) of each micro-batch."""
        order, images = DataOrder(len(self.examples.split.y), self.seed), self.images
        while True:
            indices = order.indices(images, self.batch_size)
            for first in range(self.rank * self.local, (self.rank + 1) * self.local, self.share):
                yield images, first, indices[first : first + self.share]
            images += self.batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Condition, Share]]:
        for (images, first, _), (x, keys) in zip(self.micro_batches(), self.load_batches()):
            step = images // self.batch_size
            objective, view, condition = (
                Share(generator.manual_seed(fold(self.seed, NOISE_PURPOSE, user, step)), first, self.batch_size)
                for user, generator in enumerate(self.generators)
            )
            micro = first // self.share % (self.local // self.share)
            torch.manual_seed(fold(self.seed, LAYERS_PURPOSE, self.rank, step, micro))
            chance = uniform((len(x), self.examples.draws), condition, torch.float32) if self.examples.draws else None
            shown = uniform((len(x), 3), view, torch.float32)
            yield *self.examples.complete(x, keys, self.device, shown, chance), objective

    def load_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Stored examples and their keys, on the device; measures the time spent waiting for them."""
        train = self.examples.split
        batches = self.read_stream(train) if isinstance(train, Stream) else self.index_split(train)
        while True:
            started = time.monotonic()
            x, keys = next(batches)
            x, keys = x.to(self.device, non_blocking=True), keys.to(self.device, non_blocking=True)
            self.wait_seconds += time.monotonic() - started
            yield x, keys

    def read_stream(self, train: Stream) -> Iterator[tuple[Tensor, Tensor]]:
        indices = (rows.tolist() for _, _, rows in self.micro_batches())
        for x, found in make_loader(train, self.examples.data.workers, indices, self.device):
            yield x, self.examples.keys_of(found)

    def index_split(self, train: Split) -> Iterator[tuple[Tensor, Tensor]]:
        x = train.x.to(self.device)
        keys = (
            train.y.to(self.device) if self.examples.table is None else torch.arange(len(train.y), device=self.device)
        )
        for _, _, rows in self.micro_batches():
            if self.device.type == "cuda":  # the copy from pinned memory does not wait for the device
                rows = rows.pin_memory()
            rows = rows.to(self.device, non_blocking=True)
            yield x[rows], keys[rows]


def make_loader(stream: Stream, workers: int, indices: Iterable[list[int]], device: torch.device) -> DataLoader:
    """What a stream returns at given indices, in batches, read in advance by worker processes."""
    if hasattr(os, "sched_getaffinity"):
        workers = min(workers, len(os.sched_getaffinity(0)))
    return DataLoader(
        stream,
        batch_sampler=indices,
        num_workers=workers,
        prefetch_factor=PREFETCH if workers else None,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),
    )
