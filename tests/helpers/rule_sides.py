"""Two sides of a contrast at one level, drawn, for the tests of rules."""

import pytest
import torch

from diffguide.models.protocols import Prediction
from diffguide.schedules import EDM, Cosine, Flow

SCHEDULES = {"vp": Cosine(12.0, -10.0), "ve": EDM(12.4, -8.7), "flow": Flow(12.0, -12.0)}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
TIME = torch.tensor(0.55, dtype=torch.float64)
SHAPE = (3, 2, 6, 8)


def numbers(schedule) -> tuple[float, float]:
    return tuple(float(a) for a in schedule.alpha_sigma(TIME))


def sides(schedule, shape=SHAPE, seed=0):
    """x_t and two predictions that agree with it."""
    alpha, sigma = numbers(schedule)
    rng = torch.Generator().manual_seed(seed)
    x_t, a, b = (torch.randn(shape, generator=rng, dtype=torch.float64) for _ in range(3))
    return x_t, Prediction(a, (x_t - alpha * a) / sigma), Prediction(b, (x_t - alpha * b) / sigma)
