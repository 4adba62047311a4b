"""A rank of Fabric, and pictures that are known by their class, for tests of batches."""

from typing import NamedTuple

import torch

from diffguide.datasets import Split


class Rank(NamedTuple):
    """The attributes of Fabric that `Batches` needs."""

    global_rank: int
    world_size: int
    device: str = "cpu"


def pictures(n: int = 20) -> Split:
    rng = torch.Generator().manual_seed(0)
    return Split(torch.randint(256, (n, 3, 6, 6), generator=rng, dtype=torch.uint8), torch.arange(n))
