"""What the tests of potentials share: white data whose posteriors are closed forms, potentials, points."""

import math

import torch

from diffguide.guidance.potentials import Potential
from diffguide.guidance.potentials.pictures import Picture
from diffguide.models.protocols import Denoiser, Prediction
from diffguide.schedules import EDM, Cosine

EVERYWHERE = (0.0, math.inf)
COSINE, VE = Cosine(12.0, -10.0), EDM(12.4, -8.7)
T = torch.tensor(0.45, dtype=torch.float64)


class White(Denoiser):
    """Data N(mean, variance I) of any shape: x0_hat = mean + alpha v (x - alpha mean) / (alpha^2 v + sigma^2)."""

    has_null = True

    def __init__(self, mean, variance, schedule=COSINE):
        self.mean, self.variance, self.schedule = mean, variance, schedule

    def __call__(self, x_t, t, y=None):
        alpha, sigma = self.schedule.alpha_sigma(t, x_t.ndim)
        pull = (x_t - alpha * self.mean) / (alpha**2 * self.variance + sigma**2)
        return Prediction(self.mean + alpha * self.variance * pull, sigma * pull)

    def spread(self, t) -> float:
        """Variance of x_0 given x_t."""
        level = float(self.schedule.noise_level(t)) ** 2
        return self.variance * level / (self.variance + level)


class Given(Picture):
    """A picture from numbers."""

    def __init__(self, values, measured=False):
        self.values, self.measured = torch.as_tensor(values, dtype=torch.float64), measured


class Towards(Potential):
    """-|x - point|^2 / (2 width^2)."""

    def __init__(self, point, width):
        self.point, self.width, self.calls = point, width, 0

    def __call__(self, x, y):
        self.calls += 1
        return -((x - self.point) ** 2).flatten(1).sum(1) / (2 * self.width**2)


def points(*shape, seed=0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
