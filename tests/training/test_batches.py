"""Batches are functions of (seed, images seen), for any division and any storage."""

import torch
from one_rank import Rank, pictures

from diffguide.conditions.examples import Examples
from diffguide.datasets import Dataset, Split, Stream
from diffguide.randomness import normal
from diffguide.training.batches import Batches, DataOrder

FLOAT = torch.float32


class Bytes(Stream):
    """The examples of a split, one by one."""

    def __init__(self, split: Split):
        self.x, self.y = split

    def __getitem__(self, index):
        return self.x[index], int(self.y[index])


def dataset(split, **options) -> Dataset:
    return Dataset(split, split, split, (), **options)


def test_data_order_shows_every_example_once_an_epoch():
    order = DataOrder(10, seed=3)
    shown = torch.cat([order.indices(position, 4) for position in range(0, 40, 4)])
    assert all(sorted(shown[k : k + 10].tolist()) == list(range(10)) for k in range(0, 40, 10))
    assert not torch.equal(shown[:10], shown[10:20])
    assert torch.equal(DataOrder(10, seed=3).indices(17, 9), shown[17:26])  # only the position matters


def step(data: Dataset, rank: Rank, share: int, images: int = 16, batch: int = 8):
    """x, y and the noise of the objective, for one step on one rank."""
    batches = Batches(Examples(data, data.train), 0, rank, batch, share, images)
    parts = [
        (x, y, normal((len(y), 3), rng, FLOAT))
        for _, (x, y, rng) in zip(range(batch // rank.world_size // share), batches)
    ]
    return tuple(torch.cat(field) for field in zip(*parts))


def test_a_divided_batch_is_the_batch():
    """Two ranks, or four micro-steps, have the examples, flips, crops and noise of one."""
    data = dataset(pictures(), size=4, flip=True)
    whole = step(data, Rank(0, 1), 8)
    for world, share in [(1, 2), (2, 4), (2, 2), (4, 2), (8, 1)]:
        shares = [step(data, Rank(rank, world), share) for rank in range(world)]
        for name, alone, parts in zip(("x", "y", "noise"), whole, zip(*shares)):
            assert torch.equal(torch.cat(parts), alone), name
    assert len({tuple(row.tolist()) for row in whole[2]}) == 8  # every example has its own noise


def test_the_next_step_draws_other_noise_and_other_views():
    data = dataset(Split(pictures().x[:1].expand(8, -1, -1, -1), torch.arange(8)), size=4, flip=True)
    first, second = (step(data, Rank(0, 1), 8, images) for images in (0, 8))
    assert not torch.equal(first[2], second[2])
    assert len({tuple(x.flatten().tolist()) for x in torch.cat([first[0], second[0]])}) > 6  # of 18 possible


def test_a_stream_has_the_batches_of_data_in_memory():
    split = pictures()
    resident, streamed = (dataset(part, size=4, flip=True, workers=2) for part in (split, Bytes(split)))
    for rank in (Rank(0, 1), Rank(1, 2)):
        for a, b in zip(step(resident, rank, 2), step(streamed, rank, 2)):
            assert torch.equal(a, b)


def test_random_numbers_of_layers_are_functions_of_rank_and_step():
    """Dropout uses the global generator."""

    data = dataset(pictures())
    examples = Examples(data, data.train)

    def dropout(rank: Rank, images: int) -> list[float]:
        return [torch.rand(()).item() for _ in zip(range(2), Batches(examples, 0, rank, 8, 2, images))]

    assert dropout(Rank(0, 2), 16) == dropout(Rank(0, 2), 16)
    assert len({*dropout(Rank(0, 2), 16), *dropout(Rank(1, 2), 16), *dropout(Rank(0, 2), 24)}) == 6
