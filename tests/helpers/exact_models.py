"""What the tests of oracles share: laws, schedules, points."""

import numpy as np
import torch
from closed_forms import Mixture

from diffguide.oracles import GaussianMixture
from diffguide.schedules import EDM, Cosine, Flow, Linear

SCHEDULES = {
    "cosine": Cosine(14.0, -14.0), "linear": Linear(12.0), "flow": Flow(14.0, -14.0), "edm": EDM(12.43, -8.76),
}  # fmt: skip


def time_of(t) -> torch.Tensor:
    return torch.tensor(t, dtype=torch.float64)


def three_dimensional() -> Mixture:
    """Five tilted components in three classes, one of them of weight 0."""
    rng = np.random.default_rng(3)
    root = rng.normal(size=(5, 3, 3)) * 0.5
    covariances = root @ root.transpose(0, 2, 1) + 0.05 * np.eye(3)
    return Mixture([0.1, 0.4, 0.0, 0.3, 0.2], rng.normal(size=(5, 3)), covariances, [0, 2, 0, 1, 2])


def oracle(law: Mixture, schedule=SCHEDULES["edm"]) -> GaussianMixture:
    return GaussianMixture(law.weights, law.means, law.covariances, law.labels, schedule)


def points(n: int, dimensions: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, dimensions, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
