"""The Frechet distance of two sets of features, from moments that are accumulated over batches in float64."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Moments", "frechet_distance", "distance_of_halves", "jackknife", "merge_moments", "rescale_floor"]

NUM_DIVISIONS = 16  # divisions into random halves


class Moments:
    """n, mean [D] and scatter sum_i (x_i - mean)(x_i - mean)^T [D, D] of features in batches.

    Batches are merged by the formula of Chan, Golub & LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing
    Sample Variances", 1979, eq. 2.1, which keeps all digits if the mean is far from zero.

    Arguments:
        width: D.
    """

    def __init__(self, width: int):
        self.n = 0
        self.mean = torch.zeros(width, dtype=torch.float64)
        self.scatter = torch.zeros(width, width, dtype=torch.float64)

    def add(self, x: Tensor) -> "Moments":
        """Adds features [b, D]; returns itself."""
        if len(x):
            batch, x = Moments(0), x.double()
            batch.n, batch.mean = len(x), x.mean(0)
            centred = x - batch.mean
            batch.scatter = centred.mT @ centred
            total = self + batch
            self.n, self.mean, self.scatter = total.n, total.mean, total.scatter
        return self

    def __add__(self, other: "Moments") -> "Moments":
        total = Moments(0)
        total.n, shift = self.n + other.n, other.mean - self.mean
        share = other.n / max(total.n, 1)
        total.mean = self.mean + share * shift
        total.scatter = self.scatter + other.scatter + self.n * share * torch.outer(shift, shift)
        return total

    @property
    def covariance(self) -> Tensor:
        """The unbiased covariance, [D, D]; ValueError for fewer than two examples."""
        if self.n < 2:
            raise ValueError(f"a covariance needs two examples at least, got {self.n}")
        return self.scatter / (self.n - 1)

    @property
    def root(self) -> Tensor:
        """The symmetric R with R R = covariance, which may be singular."""
        values, vectors = torch.linalg.eigh(self.covariance)
        return vectors * values.clamp(min=0).sqrt() @ vectors.mT


def frechet_distance(x: Moments, y: Moments) -> float:
    """|m_x - m_y|^2 + tr C_x + tr C_y - 2 tr (C_x C_y)^(1/2), the squared 2-Wasserstein distance of two Gaussians.

    Dowson & Landau, "The Frechet distance between multivariate normal distributions", 1982, eq. 4; on features of a network:
    Heusel et al., "GANs Trained by a Two Time-Scale Update Rule", 2017, arXiv 1706.08500, eq. 6. The last trace is the sum
    of the singular values of R_x R_y, R R = C: no matrix is squared, so a singular C loses no digits.

    Finite sets have an upward bias of about c (1/n + 1/m): compare sets of equal sizes, and see `distance_of_halves`.

    Raises:
        ValueError: fewer than two examples in a set, or different widths.
    """
    if x.mean.shape != y.mean.shape:
        raise ValueError(f"features must be of one width, got {len(x.mean)} and {len(y.mean)}")
    return distance_given_root(x, y, y.root)


def distance_given_root(x: Moments, y: Moments, root: Tensor) -> float:
    """`frechet_distance`, with the root of y."""
    traces = x.covariance.trace() + y.covariance.trace() - 2 * torch.linalg.svdvals(x.root @ root).sum()
    return max(0.0, float((x.mean - y.mean).square().sum() + traces))


def jackknife(groups: Sequence[Moments], reference: Moments) -> tuple[float, float]:
    """The distance of all groups together, and its standard error, from the distances d_(-g) without one of G groups:

        sqrt((G - 1) / G sum_g (d_(-g) - mean d_(-g))^2)

    Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, eq. 11.5, with groups instead of examples. It is the error
    due to the random samples; the reference is fixed.

    Arguments:
        groups: of independent samples, at least two, of about equal sizes.
        reference: moments of the examples that they are compared with.
    """
    root = reference.root
    distances = []
    for left_out in range(len(groups)):
        rest = [group for index, group in enumerate(groups) if index != left_out]
        distances.append(distance_given_root(merge_moments(rest), reference, root))
    return distance_given_root(merge_moments(groups), reference, root), jackknife_error(distances)


def jackknife_error(values: Sequence[float]) -> float:
    """The standard error of a statistic, from its values without one group."""
    mean, count = sum(values) / len(values), len(values)
    return math.sqrt((count - 1) / count * sum((value - mean) ** 2 for value in values))


def merge_moments(groups: Sequence[Moments]) -> Moments:
    """The moments of all examples together."""
    return sum(groups[1:], groups[0])


def distance_of_halves(groups: Sequence[Moments], seed: int) -> tuple[float, float, int]:
    """(distance, standard error, examples in a half) of random halves of real examples, the mean over 16 divisions.

    It is the distance of two sets of one distribution, which is positive for finite sets. All divisions have the same
    examples, so the error is the standard deviation over them, not divided by their number.

    Arguments:
        groups: of examples, drawn at random; an even number, at least 4.
        seed: of the divisions.
    """
    rng = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(NUM_DIVISIONS):
        order = torch.randperm(len(groups), generator=rng).tolist()
        first, second = (merge_moments([groups[index] for index in order[k::2]]) for k in range(2))
        values.append(frechet_distance(first, second))
    distances = torch.tensor(values, dtype=torch.float64)
    return float(distances.mean()), float(distances.std()), sum(group.n for group in groups) // 2


def rescale_floor(floor: float, half: int, n: int, m: int) -> float:
    """The bias of a distance between sets of n and m examples: floor (1/n + 1/m) / (2/half)."""
    return floor * (1 / n + 1 / m) * half / 2
