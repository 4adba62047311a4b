"""Batches for training: a function of (seed, images seen), however they are divided and wherever they come from."""

import os
import time
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..datasets import Dataset, Split, Stream
from ..randomness import Share, fold, uniform

__all__ = ["Batches", "DataOrder", "make_loader"]

ORDER_PURPOSE, NOISE_PURPOSE, LAYERS_PURPOSE = range(3)  # purposes of a folded seed
OBJECTIVE, VIEW = range(2)  # who uses a step's noise
PREFETCH = 4  # batches that each worker reads ahead


class DataOrder:
    """The endless order in which examples are shown: every epoch its own permutation, a function of (seed, epoch)."""

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
    """This device's share of every batch, in micro-batches, and the randomness that belongs to it.

    Iterating from `images` on yields, without end, (x, y, rng): what the network sees [share, ...], class indices, the
    share's part of the step's random numbers. The layers' own generators (dropout) are seeded on the way.

    Arguments:
        data: whose training split is shown; a `Split` lives on the device, a `Stream` is read ahead by workers.
        seed: of order and noise.
        fabric: launched Fabric; its rank takes its part of each batch.
        batch_size: images per optimiser step, over all devices.
        share: images per device and micro-step.
        images: images seen before the first step.

    Attributes:
        waited: seconds spent waiting for data.
    """

    def __init__(self, data: Dataset, seed: int, fabric, batch_size: int, share: int, images: int = 0):
        self.data, self.seed, self.batch_size, self.share, self.images = data, seed, batch_size, share, images
        self.device, self.rank = torch.device(fabric.device), fabric.global_rank
        self.local = batch_size // fabric.world_size
        self.waited = 0.0
        self.generators = [torch.Generator(self.device) for _ in (OBJECTIVE, VIEW)]

    def micro_batches(self) -> Iterator[tuple[int, int, Tensor]]:
        """(images before the step, row in the batch, indices) of each micro-batch."""
        order, images = DataOrder(len(self.data.train.y), self.seed), self.images
        while True:
            indices = order.indices(images, self.batch_size)
            for first in range(self.rank * self.local, (self.rank + 1) * self.local, self.share):
                yield images, first, indices[first : first + self.share]
            images += self.batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Share]]:
        for (images, first, _), (x, y) in zip(self.micro_batches(), self.stored()):
            step = images // self.batch_size
            objective, view = (
                Share(generator.manual_seed(fold(self.seed, NOISE_PURPOSE, user, step)), first, self.batch_size)
                for user, generator in enumerate(self.generators)
            )
            torch.manual_seed(
                fold(self.seed, LAYERS_PURPOSE, self.rank, step, first // self.share % (self.local // self.share))
            )
            yield self.data.preprocess(x, uniform((len(y), 3), view, torch.float32)), y, objective

    def stored(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Stored examples and their labels, on the device."""
        train = self.data.train
        if isinstance(train, Stream):
            batches = iter(
                make_loader(
                    train, self.data.workers, (rows.tolist() for _, _, rows in self.micro_batches()), self.device
                )
            )
        else:
            resident = Split(*(tensor.to(self.device) for tensor in train))
            batches = (tuple(part[rows.to(self.device)] for part in resident) for _, _, rows in self.micro_batches())
        while True:
            started = time.monotonic()
            x, y = (part.to(self.device, non_blocking=True) for part in next(batches))
            self.waited += time.monotonic() - started
            yield x, y


def make_loader(stream: Stream, workers: int, indices: Iterable[list[int]], device: torch.device) -> DataLoader:
    """Batches (x, y) of a stream at given indices, read ahead by worker processes."""
    workers = min(workers, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else workers)
    return DataLoader(
        stream, batch_sampler=indices, num_workers=workers, prefetch_factor=PREFETCH if workers else None,
        pin_memory=device.type == "cuda", generator=torch.Generator(),
    )  # fmt: skip
