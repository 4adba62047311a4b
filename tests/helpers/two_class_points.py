"""Eight points, their classes, a time, and the exact denoiser of two classes: what guidance is tried on."""

import math

import pytest
import torch
from closed_forms import ExactMixture, two_classes

from diffguide.schedules import Cosine

EVERYWHERE = (0.0, math.inf)
COSINE = Cosine(12.0, -10.0)
x = 1.5 * torch.randn(8, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
y = torch.tensor([0, 1, 0, 1, 1, 0, 0, 1])
t = torch.tensor(0.45, dtype=torch.float64)
either_time = pytest.mark.parametrize("t", [t, t.expand(8)], ids=["0-d", "[B]"])


def exact(schedule=COSINE, **facts) -> ExactMixture:
    """With attributes that a model may have."""
    denoiser = ExactMixture(two_classes(), schedule)
    for name, value in facts.items():
        setattr(denoiser, name, value)
    return denoiser
