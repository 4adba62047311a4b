"""The Frechet distance of two sets of features, from moments accumulated over batches in float64."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Moments", "frechet_distance", "distance_of_halves", "jackknife", "merge_moments", "rescale_floor"]

NUM_DIVISIONS = 16  # divisions into random halves


class Moments:
    """n, mean [D] and scatter sum_i (x_i - mean)(x_i - mean)^T [D, D] of features that come in batches.

    Batches are merged as Chan, Golub & LeVeque write ("Updating Formulae and a Pairwise Algorithm for Computing Sample
    Variances", 1979, eq. 2.1), so that a mean far from zero costs no digits.

    Arguments:
        width: D.
    """

    def __init__(self, width: int):
        self.n = 0
        self.mean = torch.zeros(width, dtype=torch.float64)
        self.scatter = torch.zeros(width, width, dtype=torch.float64)

    def add(self, x: Tensor) -> "Moments":
        """Adds features [b, D]; returns itself."""
        part, x = Moments(0), x.double()
        part.n, part.mean = len(x), x.mean(0)
        centred = x - part.mean
        part.scatter = centred.mT @ centred
        whole = self + part if len(x) else self
        self.n, self.mean, self.scatter = whole.n, whole.mean, whole.scatter
        return self

    def __add__(self, other: "Moments") -> "Moments":
        whole = Moments(0)
        whole.n, shift = self.n + other.n, other.mean - self.mean
        share = other.n / max(whole.n, 1)
        whole.mean = self.mean + share * shift
        whole.scatter = self.scatter + other.scatter + self.n * share * torch.outer(shift, shift)
        return whole

    @property
    def covariance(self) -> Tensor:
        """Unbiased, [D, D].

        Raises:
            ValueError: fewer than two examples.
        """
        if self.n < 2:
            raise ValueError(f"a covariance needs two examples at least, got {self.n}")
        return self.scatter / (self.n - 1)

    @property
    def root(self) -> Tensor:
        """R with R R = covariance, symmetric; a singular covariance has one too."""
        values, vectors = torch.linalg.eigh(self.covariance)
        return vectors * values.clamp(min=0).sqrt() @ vectors.mT


def frechet_distance(x: Moments, y: Moments) -> float:
    """|m_x - m_y|^2 + tr C_x + tr C_y - 2 tr (C_x C_y)^(1/2), the squared 2-Wasserstein distance of two Gaussians.

    Dowson & Landau, "The Frechet distance between multivariate normal distributions", 1982, eq. 4; on features of a network:
    Heusel et al., "GANs Trained by a Two Time-Scale Update Rule", 2017, arXiv 1706.08500, eq. 6. The last trace is the sum
    of the singular values of R_x R_y, R R = C: no matrix is squared, so a singular C loses no digits.

    Finite sets bias it upwards, by about c (1/n + 1/m): compare sets of equal sizes, and see `distance_of_halves`.

    Raises:
        ValueError: fewer than two examples in a set, or different widths.
    """
    if x.mean.shape != y.mean.shape:
        raise ValueError(f"features must be of one width, got {len(x.mean)} and {len(y.mean)}")
    return distance_given_root(x, y, y.root)


def distance_given_root(x: Moments, y: Moments, root: Tensor) -> float:
    """`frechet_distance`, given the root of y."""
    traces = x.covariance.trace() + y.covariance.trace() - 2 * torch.linalg.svdvals(x.root @ root).sum()
    return max(0.0, float((x.mean - y.mean).square().sum() + traces))


def jackknife(groups: Sequence[Moments], reference: Moments) -> tuple[float, float]:
    """The distance of all groups together, and its standard error by leaving out one of G groups at a time:

        sqrt((G - 1) / G sum_g (d_(-g) - mean d_(-g))^2)

    Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, eq. 11.5, with groups in place of examples. It is the error
    due to the draw of the samples; the reference is fixed.

    Arguments:
        groups: of independent samples, at least two of about one size.
        reference: what they are compared with.
    """
    root, without = reference.root, []
    for left in range(len(groups)):
        rest = [group for index, group in enumerate(groups) if index != left]
        without.append(distance_given_root(merge_moments(rest), reference, root))
    return distance_given_root(merge_moments(groups), reference, root), jackknife_error(without)


def jackknife_error(without: Sequence[float]) -> float:
    """The standard error of a statistic, from its values with one group left out."""
    mean, count = sum(without) / len(without), len(without)
    return math.sqrt((count - 1) / count * sum((value - mean) ** 2 for value in without))


def merge_moments(groups: Sequence[Moments]) -> Moments:
    """The moments of all examples together."""
    return sum(groups[1:], groups[0])


def distance_of_halves(groups: Sequence[Moments], seed: int) -> tuple[float, float, int]:
    """(distance, standard error, examples in a half) between random halves of real examples, the mean over 16 divisions.

    It is the distance of two sets of one law due to the bias of finite sets. The divisions share their examples, so the
    error is the standard deviation over them, not divided by their number.

    Arguments:
        groups: of examples, drawn at random; an even number, at least 4.
        seed: of the divisions.
    """
    rng, found = torch.Generator().manual_seed(seed), []
    for _ in range(NUM_DIVISIONS):
        order = torch.randperm(len(groups), generator=rng).tolist()
        first, second = (merge_moments([groups[index] for index in order[k::2]]) for k in range(2))
        found.append(frechet_distance(first, second))
    distances = torch.tensor(found, dtype=torch.float64)
    return float(distances.mean()), float(distances.std()), sum(group.n for group in groups) // 2


def rescale_floor(floor: float, half: int, n: int, m: int) -> float:
    """The bias of a distance between sets of n and m examples: floor (1/n + 1/m) / (2/half)."""
    return floor * (1 / n + 1 / m) * half / 2
