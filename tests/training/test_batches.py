"""Batches: a function of (seed, images seen), however they are divided and wherever they come from."""

from typing import NamedTuple

import torch

from diffguide.datasets import Dataset, Split, Stream
from diffguide.randomness import normal
from diffguide.training.batches import Batches, DataOrder

FLOAT = torch.float32


class Rank(NamedTuple):
    """What `Batches` asks of a Fabric."""

    global_rank: int
    world_size: int
    device: str = "cpu"


class Bytes(Stream):
    """The examples of a split, one by one."""

    def __init__(self, split: Split):
        self.x, self.y = split

    def __getitem__(self, index):
        return self.x[index], int(self.y[index])


def pictures(n: int = 20) -> Split:
    rng = torch.Generator().manual_seed(0)
    return Split(torch.randint(256, (n, 3, 6, 6), generator=rng, dtype=torch.uint8), torch.arange(n))


def dataset(split, **options) -> Dataset:
    return Dataset(split, split, split, (), **options)


def test_data_order_shows_every_example_once_an_epoch():
    order = DataOrder(10, seed=3)
    shown = torch.cat([order.indices(position, 4) for position in range(0, 40, 4)])
    assert all(sorted(shown[k : k + 10].tolist()) == list(range(10)) for k in range(0, 40, 10))
    assert not torch.equal(shown[:10], shown[10:20])
    assert torch.equal(DataOrder(10, seed=3).indices(17, 9), shown[17:26])  # position alone decides


def step(data: Dataset, rank: Rank, share: int, images: int = 16, batch: int = 8):
    """x, y and an objective's noise of one step on one rank."""
    batches = Batches(data, 0, rank, batch, share, images)
    parts = [
        (x, y, normal((len(y), 3), rng, FLOAT))
        for _, (x, y, rng) in zip(range(batch // rank.world_size // share), batches)
    ]
    return tuple(torch.cat(field) for field in zip(*parts))


def test_a_divided_batch_is_the_batch():
    """Two ranks, or four micro-steps, together see the examples, the views and the noise of one."""
    data = dataset(pictures(), size=4, flip=True)
    whole = step(data, Rank(0, 1), 8)
    for world, share in [(1, 2), (2, 4), (2, 2), (4, 2), (8, 1)]:
        shares = [step(data, Rank(rank, world), share) for rank in range(world)]
        for name, alone, parts in zip(("x", "y", "noise"), whole, zip(*shares)):
            assert torch.equal(torch.cat(parts), alone), name
    assert len({tuple(row.tolist()) for row in whole[2]}) == 8  # no two examples share their noise


def test_the_next_step_draws_other_noise_and_other_views():
    data = dataset(Split(pictures().x[:1].expand(8, -1, -1, -1), torch.arange(8)), size=4, flip=True)
    first, second = (step(data, Rank(0, 1), 8, images) for images in (0, 8))
    assert not torch.equal(first[2], second[2])
    assert len({tuple(x.flatten().tolist()) for x in torch.cat([first[0], second[0]])}) > 6  # of 18 possible


def test_a_stream_shows_what_memory_shows():
    split = pictures()
    resident, streamed = (dataset(part, size=4, flip=True, workers=2) for part in (split, Bytes(split)))
    for rank in (Rank(0, 1), Rank(1, 2)):
        for a, b in zip(step(resident, rank, 2), step(streamed, rank, 2)):
            assert torch.equal(a, b)


def test_layers_draw_what_rank_and_step_say():
    """Dropout draws from the global generator."""

    def dropout(rank: Rank, images: int) -> list[float]:
        return [torch.rand(()).item() for _ in zip(range(2), Batches(dataset(pictures()), 0, rank, 8, 2, images))]

    assert dropout(Rank(0, 2), 16) == dropout(Rank(0, 2), 16)
    assert len({*dropout(Rank(0, 2), 16), *dropout(Rank(1, 2), 16), *dropout(Rank(0, 2), 24)}) == 6
