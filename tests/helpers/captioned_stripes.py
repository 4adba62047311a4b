"""Pictures of 8 x 8 pixels of two kinds, bright above or bright below, each kind with two names: captions quickly learned."""

import torch

from diffguide.datasets import Dataset
from diffguide.datasets.base import ColumnSplit

NAMES = [["above", "on top"], ["below", "at the bottom"]]


def draw_stripes(n: int, seed: int) -> ColumnSplit:
    rng = torch.Generator().manual_seed(seed)
    kind = torch.randint(2, (n,), generator=rng)
    x = torch.randint(60, (n, 1, 8, 8), generator=rng, dtype=torch.uint8)
    for row, below in enumerate(kind.tolist()):
        x[row, :, 4 * below : 4 * below + 4] += 150
    return ColumnSplit(x, kind, {"captions": [NAMES[k] for k in kind.tolist()]})


def striped(train: ColumnSplit) -> Dataset:
    """Data with 40 held-out pictures."""
    return Dataset(train, draw_stripes(40, 1), draw_stripes(40, 2), ("above", "below"))
