"""Groups of weighted particles: their weights, their resampling and their rows."""

import math
from typing import Any

import torch
from torch import Tensor

from ..models.protocols import Denoiser, Prediction, take_rows
from ..schedules import Schedule

__all__ = ["ConstantNoise", "Given", "Particles", "gather_rows"]


class Particles:
    """Log-weights [B, K] of K particles for each of B samples, up to a constant per sample.

    Arguments:
        samples, particles: B and K.
        threshold: a group is resampled where its effective sample size is below this share of K.
        device: of the weights.
    """

    def __init__(self, samples: int, particles: int, threshold: float, device: torch.device | str):
        self.threshold = threshold
        self.log_weights = torch.zeros(samples, particles, dtype=torch.float64, device=device)

    def add(self, change: Tensor) -> None:
        """Adds to the log-weights, change [B K]; a particle that is not finite gets no weight."""
        total = self.log_weights + change.to(self.log_weights).reshape(self.log_weights.shape)
        self.log_weights = torch.where(total.isfinite(), total, -torch.inf)

    @property
    def shares(self) -> Tensor:
        """The weights [B, K], 1 together in each group; equal in a group without any."""
        top = self.log_weights.amax(1, keepdim=True)
        lost = top == -torch.inf
        weights = torch.where(lost, 1.0, (self.log_weights - torch.where(lost, 0.0, top)).exp())
        return weights / weights.sum(1, keepdim=True)

    def resample(self, uniform: Tensor) -> Tensor | None:
        """Systematic resampling of the groups that need it: the ancestor of each particle, [B K]; None = of no group.

        Douc, Cappe, Moulines, "Comparison of resampling schemes for particle filtering", 2005, arXiv cs/0507025: the k-th
        ancestor is where the sum of the weights passes (k + u) / K.

        Arguments:
            uniform: u in [0, 1), one per sample, [B].
        """
        shares = self.shares
        samples, count = shares.shape
        poor = 1 / shares.square().sum(1) < self.threshold * count
        if not bool(poor.any()):
            return None
        own = torch.arange(count, device=shares.device)
        places = (own + uniform.to(shares)[:, None]) / count
        ancestors = torch.searchsorted(shares.cumsum(1), places, right=True).clamp(max=count - 1)
        ancestors = torch.where(poor[:, None], ancestors, own)
        self.log_weights = torch.where(poor[:, None], 0.0, self.log_weights)
        return (torch.arange(samples, device=shares.device)[:, None] * count + ancestors).flatten()

    def choose(self, uniform: Tensor) -> Tensor:
        """One particle per sample by its weight: its row, [B]."""
        shares = self.shares
        samples, count = shares.shape
        place = uniform.to(shares)[:, None]
        chosen = torch.searchsorted(shares.cumsum(1), place, right=True).clamp(max=count - 1)[:, 0]
        return torch.arange(samples, device=shares.device) * count + chosen


def gather_rows(value: Any, rows: Tensor) -> Any:
    """What a sampler remembers, with other rows: every tensor of as many rows in it, at any depth."""
    if isinstance(value, Tensor):
        return value[rows] if value.ndim and len(value) == len(rows) else value
    if isinstance(value, Prediction):
        return take_rows(value, rows)
    if isinstance(value, dict):
        return {key: gather_rows(part, rows) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(gather_rows(part, rows) for part in value)
    return value


class Given(Denoiser):
    """A prediction that is known already, for the arithmetic of a sampler's step."""

    def __init__(self, prediction: Prediction, schedule: Schedule):
        self.prediction, self.schedule = prediction, schedule

    def __call__(self, x_t: Tensor, t: Tensor, y: Any = None) -> Prediction:
        return self.prediction


class ConstantNoise:
    """Every number of a step's noise is this one: 0 gives the mean of a step, 1 the mean and a standard deviation."""

    def __init__(self, number: float, like: Tensor):
        self.values = torch.full_like(like, number)

    def normal(self, level: Tensor, draw: int) -> Tensor:
        return self.values

    def increment(self, t: Tensor, s: Tensor) -> Tensor:
        return self.values


def to_uniform(z: Tensor) -> Tensor:
    """Uniform numbers in [0, 1) from standard normals."""
    return torch.special.ndtr(z.double()).clamp(max=1 - 2.0**-53)


def level_widths(log_snr: Tensor) -> list[float]:
    """The weight of each evaluation in the trapezoidal rule over the log-SNR of the grid; the last step has its left end.

    Towards pure noise and towards exact data, where the log-SNR is infinite, a spread falls as exp(-|log-SNR|), whose
    integral is its value at the finite end.
    """
    steps = [float(b - a) for a, b in zip(log_snr[:-1], log_snr[1:])]
    halves = [step / 2 if math.isfinite(step) else 1.0 for step in steps]
    right = [0.0, *halves[:-1]]
    if len(steps) > 1 and not math.isfinite(steps[0]):
        halves[0] = 0.0  # the spread at pure noise is 0
    left = [*halves[:-1], steps[-1] if math.isfinite(steps[-1]) else 1.0]
    return [a + b for a, b in zip(right, left)]
