"""Precision, recall, density, coverage and near copies of a set of samples, against real examples, on given features.

All take features [n, D] of any floating dtype and compute in float64, in slabs of the table of distances: 50,000 examples of
2048 features need little more than their own 1.6 GB. Balls are closed, and squared distances are compared, so that ties
between examples on a lattice, such as pixels with few grey values, are exact.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ...figures.curves import MIN_PRECISION
from .distances import MAX_CELLS

__all__ = [
    "DensityCoverage",
    "PrecisionRecall",
    "count_repeated",
    "density_coverage",
    "distance_ratio",
    "distance_tables",
    "find_copies",
    "nearest",
    "neighbour_shares",
    "precision_recall",
    "quality_notes",
    "squared_radii",
    "two_nearest",
]

PR_NEIGHBOURS, DC_NEIGHBOURS = 3, 5  # of precision and recall, of density and coverage, as in their papers
SQUARED_ROWS = 1024  # rows squared at a time
COPY_RATIO = 3.0  # a copy is closer to a training example than to any other by this factor


class PrecisionRecall(NamedTuple):
    """The fraction of samples within the real manifold, and of real examples within the sample manifold, in [0, 1]."""

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """density: the mean number of real balls around a sample, divided by k; 1 for samples of the real distribution, more for
    samples in dense regions. coverage: the fraction of real balls that contain a sample, in [0, 1]."""

    density: float
    coverage: float


def precision_recall(real: Tensor, samples: Tensor, k: int) -> PrecisionRecall:
    """mean_s [s in M(real)] and mean_r [r in M(samples)], M(X) = union over x of {z: |z - x| <= |x - NN_k(x)|}.

    Kynkaanniemi, Karras, Laine, Lehtinen, Aila, "Improved Precision and Recall Metric for Assessing Generative Models", 2019,
    arXiv 1904.06991, eq. 1 and 2, with k = 3 and as many samples as real examples: recall grows with the number of samples.

    Two limits. Samples of pure noise are far apart, so their balls may contain every real example: recall may be 1 although
    precision is 0 (`MIN_PRECISION`). A row that occurs k + 1 times has a ball of radius 0: if every sample occurs four times
    recall is 0, and if every real example does precision is 0 (`count_repeated`).

    Arguments:
        real, samples: features [n, D] and [m, D].
        k: the radius of a ball is the distance to the k-th neighbour, without the point itself; at least 1, below n and m.

    Raises:
        ValueError: too few rows for k, different widths, or features that are not finite.
    """
    real, samples = check_features(real, samples)
    return PrecisionRecall(fraction_in_balls(samples, real, k), fraction_in_balls(real, samples, k))


def fraction_in_balls(points: Tensor, centres: Tensor, k: int) -> float:
    """The fraction of points within a ball around one of the centres."""
    radii = squared_radii(centres, k)
    inside = [(table <= radii).any(1) for table in distance_tables(points, centres)]
    return torch.cat(inside).double().mean().item()


def density_coverage(real: Tensor, samples: Tensor, k: int) -> DensityCoverage:
    """sum_sr [s in B(r)] / (k m) and mean_r [some s in B(r)], B(r) = {z: |z - r| <= |r - NN_k(r)|}.

    Naeem, Oh, Uh, Choi, Yoo, "Reliable Fidelity and Diversity Metrics for Generative Models", 2020, arXiv 2002.09797, eq. 5
    and 6, with k = 5: then coverage is 0.97 for two sets of one distribution and one size. Only real examples have balls, so
    outliers among the samples have little influence.

    Arguments:
        real, samples: features [n, D] and [m, D].
        k: the radius of a ball is the distance to the k-th neighbour, without the point itself; at least 1, below n.

    Raises:
        ValueError: too few rows for k, different widths, or features that are not finite.
    """
    real, samples = check_features(real, samples)
    radii = squared_radii(real, k)
    inside = 0
    covered = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    for table in distance_tables(samples, real):
        within = table <= radii
        inside += int(within.sum())
        covered |= within.any(0)
    return DensityCoverage(inside / (k * len(samples)), covered.double().mean().item())


def neighbour_shares(real: Tensor, samples: Tensor) -> dict[str, float]:
    """Precision, recall, density and coverage, with the numbers of neighbours of their papers."""
    shares = precision_recall(real, samples, PR_NEIGHBOURS)._asdict()
    return shares | density_coverage(real, samples, DC_NEIGHBOURS)._asdict()


def distance_ratio(samples: Tensor, train: Tensor, held_out: Tensor) -> float:
    """median_s min_t |s - t| / median_h min_t |h - t|: 1 = as far from the training examples as held-out examples, 0 = copies.

    Arguments:
        samples, train, held_out: features [n, D], [m, D], [l, D].

    Raises:
        ValueError: different widths, features that are not finite, or held-out examples of which half are training examples.
    """
    medians = []
    for x in (samples, held_out):
        train, x = check_features(train, x)
        medians.append(nearest(x, train).quantile(0.5).item())
    if medians[1] == 0:
        raise ValueError("half of the held-out examples are training examples, so their median distance is 0")
    return medians[0] / medians[1]


def two_nearest(x: Tensor, train: Iterable[Tensor]) -> Tensor:
    """The distances of each row of x [n, D] to the two nearest training examples, given in batches [b, D]; [n, 2]."""
    two = torch.full((len(x), 2), torch.inf, dtype=torch.float64)
    for batch in train:
        tables = distance_tables(x.double(), batch.double())
        nearest_in_batch = torch.cat([table.topk(min(2, len(batch)), dim=1, largest=False).values for table in tables])
        two = torch.cat([two, nearest_in_batch], dim=1).topk(2, dim=1, largest=False).values
    return two.sqrt()


def find_copies(two: Tensor) -> Tensor:
    """Whether each sample is a near copy, 3 |s - NN_1(s)| < |s - NN_2(s)|, or is equal to a training example, [n] bool.

    Yoon, Choi, Kwon & Ryu, "Diffusion Probabilistic Models Generalize when They Fail to Memorize", 2023, section 3. If an
    example is in the training set twice, only exact copies of it are found.

    Arguments:
        two: `two_nearest` of the pixels of the samples.
    """
    first, second = two.T
    return (COPY_RATIO * first < second) | (first == 0)


def count_repeated(x: Tensor) -> int:
    """The number of rows of x [n, ...] that equal an earlier one, bit for bit."""
    return len(x) - len({row.tobytes() for row in x.flatten(1).contiguous().cpu().numpy()})


def quality_notes(precision: float, samples: tuple[int, int], real: tuple[int, int]) -> list[str]:
    """Remarks for a reader of precision, recall, density and coverage.

    Arguments:
        precision: of the samples.
        samples, real: (repeated rows, all rows) of each set.
    """
    notes = []
    for name, (repeated, count), lowered in [
        ("samples", samples, "recall"),
        ("real examples", real, "precision, density and coverage"),
    ]:
        if repeated:
            notes.append(
                f"{repeated} of {count} {name} repeat another one exactly: their nearest neighbours are copies, which lowers "
                f"{lowered}"
            )
    if precision < MIN_PRECISION:
        notes.append(
            f"precision is {precision:.3g}: below {MIN_PRECISION} recall is not meaningful (it may be 1 for noise)"
        )
    return notes


def nearest(x: Tensor, others: Tensor) -> Tensor:
    """The distance of each row of x [n, D] to the nearest of others [m, D], [n]."""
    return torch.cat([table.amin(1) for table in distance_tables(x.double(), others.double())]).sqrt()


def squared_radii(x: Tensor, k: int) -> Tensor:
    """|x - NN_k(x)|^2 of each row of x [n, D], without the row itself, [n]; ValueError if there is no k-th neighbour."""
    if not 1 <= k < len(x):
        raise ValueError(f"k must be at least 1 and below the number of points, got k={k} and {len(x)} points")
    return torch.cat([table.topk(k + 1, dim=1, largest=False).values[:, k] for table in distance_tables(x, x)])


def distance_tables(x: Tensor, others: Tensor) -> Iterator[Tensor]:
    """|x_i - y_j|^2 in slabs of rows i, [b, m]; exact if the products are exact, as on a lattice."""
    squares = torch.cat([part.square().sum(1) for part in others.split(SQUARED_ROWS)])
    for part in x.split(max(1, MAX_CELLS // len(others))):
        yield torch.addmm(part.square().sum(1)[:, None] + squares, part, others.mT, alpha=-2).clamp_(min=0)


def check_features(real: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
    """Returns both as float64; ValueError unless they are matrices of one width, and finite."""
    if real.ndim != 2 or samples.ndim != 2 or real.shape[1] != samples.shape[1] or not len(real) or not len(samples):
        raise ValueError(f"features must be [n, D] and [m, D], got {list(real.shape)} and {list(samples.shape)}")
    for name, x in {"real": real, "samples": samples}.items():
        if lost := int((~x.isfinite().all(1)).sum()):
            raise ValueError(f"features of {lost} of {len(x)} {name} are not finite")
    return real.double(), samples.double()
