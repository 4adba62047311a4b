"""Fidelity, diversity and copies: sets of samples against sets of real examples, on features that the caller chooses.

All take features [n, D], any floating dtype, and compute in float64, a slab of the table of distances at a time: 50,000
examples of 2048 features need their own 1.6 GB and little more. Balls are closed, and their squares compared, so that ties
between examples on a lattice, such as pixels of few grey values, are told exactly.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ...figures.curves import MIN_PRECISION

__all__ = [
    "DensityCoverage", "PrecisionRecall", "find_copies", "count_repeated", "density_coverage",
    "distance_ratio", "nearest", "quality_notes", "precision_recall", "squared_radii", "distance_tables", "two_nearest",
]  # fmt: skip

MAX_CELLS = 2**22  # of a table of distances, at a time
SQUARED_ROWS = 1024  # rows that are squared at a time
COPY_RATIO = 3.0  # times as far away is the second training example from a copy of the first


class PrecisionRecall(NamedTuple):
    """The share of samples among the real examples, and of real examples among the samples; both in [0, 1]."""

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """How many real balls hold a sample, on average over k: 1 for one law, more where samples crowd; and the share of real
    balls that hold one, in [0, 1]."""

    density: float
    coverage: float


def precision_recall(real: Tensor, samples: Tensor, k: int) -> PrecisionRecall:
    """mean_s [s in M(real)] and mean_r [r in M(samples)], M(X) = union over x of {z: |z - x| <= |x - NN_k(x)|}.

    Kynkaanniemi, Karras, Laine, Lehtinen, Aila, "Improved Precision and Recall Metric for Assessing Generative Models", 2019,
    arXiv 1904.06991, eq. 1 and 2; there k = 3, and as many samples as real examples: recall grows with samples.

    Two things it does not say. Samples of pure noise lie far from each other, so that their balls may hold every real example:
    recall may be 1 where precision is 0 (`LEAST_PRECISION`). A row that occurs k + 1 times has a ball of radius 0: four
    copies of every sample take recall to 0, four of every real example precision (`count_repeated`).

    Arguments:
        real, samples: features [n, D] and [m, D].
        k: neighbours that make a ball, a point itself not counted; at least 1, below n and m.

    Raises:
        ValueError: too few rows for k, other widths, or features that are not finite.
    """
    real, samples = check_features(real, samples)
    precision, recall = (
        torch.cat([(slab <= radii).any(1) for slab in distance_tables(points, centres)]).double().mean().item()
        for points, centres in ((samples, real), (real, samples))
        for radii in [squared_radii(centres, k)]
    )
    return PrecisionRecall(precision, recall)


def density_coverage(real: Tensor, samples: Tensor, k: int) -> DensityCoverage:
    """sum_sr [s in B(r)] / (k m) and mean_r [some s in B(r)], B(r) = {z: |z - r| <= |r - NN_k(r)|}.

    Naeem, Oh, Uh, Choi, Yoo, "Reliable Fidelity and Diversity Metrics for Generative Models", 2020, arXiv 2002.09797, eq. 5
    and 6; there k = 5, with which coverage is 0.97 for two sets of one law and of one size. Only real examples have
    balls, so that a single sample far away changes little.

    Arguments:
        real, samples: features [n, D] and [m, D].
        k: neighbours that make a ball, a point itself not counted; at least 1, below n.

    Raises:
        ValueError: too few rows for k, other widths, or features that are not finite.
    """
    real, samples = check_features(real, samples)
    radii, inside, covered = squared_radii(real, k), 0, torch.zeros(len(real), dtype=torch.bool, device=real.device)
    for slab in distance_tables(samples, real):
        within = slab <= radii
        inside, covered = inside + int(within.sum()), covered | within.any(0)
    return DensityCoverage(inside / (k * len(samples)), covered.double().mean().item())


def distance_ratio(samples: Tensor, train: Tensor, held_out: Tensor) -> float:
    """median_s min_t |s - t| / median_h min_t |h - t|: 1 = as far from the training examples as new ones are, 0 = copies.

    Arguments:
        samples, train, held_out: features [n, D], [m, D], [l, D].

    Raises:
        ValueError: other widths, features that are not finite, or held-out examples of which half are training examples.
    """
    own, usual = (nearest(*check_features(train, x)[::-1]).quantile(0.5).item() for x in (samples, held_out))
    if usual == 0:
        raise ValueError(
            "half of the held-out examples are training examples: there is no usual distance to compare with"
        )
    return own / usual


def two_nearest(x: Tensor, train: Iterable[Tensor]) -> Tensor:
    """The distances of each row of x [n, D] to the two nearest training examples, which come in batches [b, D]; [n, 2]."""
    two = torch.full((len(x), 2), torch.inf, dtype=torch.float64)
    for part in train:
        slabs = distance_tables(x.double(), part.double())
        found = torch.cat([slab.topk(min(2, len(part)), dim=1, largest=False).values for slab in slabs])
        two = torch.cat([two, found], dim=1).topk(2, dim=1, largest=False).values
    return two.sqrt()


def find_copies(two: Tensor) -> Tensor:
    """Whether each sample is a near copy, 3 |s - NN_1(s)| < |s - NN_2(s)|, or is equal to a training example, [n] bool.

    Yoon, Choi, Kwon & Ryu, "Diffusion Probabilistic Models Generalize when They Fail to Memorize", 2023, section 3. What is
    in the training set twice is told only where a sample equals it.

    Arguments:
        two: `two_nearest` of the samples' pixels.
    """
    first, second = two.T
    return (COPY_RATIO * first < second) | (first == 0)


def count_repeated(x: Tensor) -> int:
    """How many rows of x [n, ...] are equal to an earlier one, bit for bit."""
    return len(x) - len({row.tobytes() for row in x.flatten(1).contiguous().cpu().numpy()})


def quality_notes(precision: float, samples: tuple[int, int], real: tuple[int, int]) -> list[str]:
    """What has to be said beside precision, recall, density and coverage: a sentence each.

    Arguments:
        precision: of the samples.
        samples, real: (repeated rows, all rows) of each set.
    """
    notes = []
    for (repeated, count), what, spoiled in (
        (samples, "samples", "recall"), (real, "real examples", "precision, density and coverage")
    ):  # fmt: skip
        if repeated:
            notes.append(
                f"{repeated} of {count} {what} repeat another one exactly: their neighbours are their copies, which lowers "
                f"{spoiled}"
            )
    if precision < MIN_PRECISION:
        notes.append(
            f"precision is {precision:.3g}: with less than {MIN_PRECISION} of the samples among the real examples recall is "
            "not meaningful (it may be 1 for noise)"
        )
    return notes


def nearest(x: Tensor, others: Tensor) -> Tensor:
    """The distance of each row of x [n, D] to the nearest of others [m, D], [n]."""
    return torch.cat([slab.amin(1) for slab in distance_tables(x.double(), others.double())]).sqrt()


def squared_radii(x: Tensor, k: int) -> Tensor:
    """|x - NN_k(x)|^2 of each row of x [n, D], itself not counted, [n].

    Raises:
        ValueError: no k-th neighbour.
    """
    if not 1 <= k < len(x):
        raise ValueError(f"k={k} neighbours of a point need k of at least 1 and more than k points, got {len(x)}")
    return torch.cat([slab.topk(k + 1, dim=1, largest=False).values[:, k] for slab in distance_tables(x, x)])


def distance_tables(x: Tensor, others: Tensor) -> Iterator[Tensor]:
    """|x_i - y_j|^2, some rows i at a time, [b, m]; exact where the products are, as on a lattice."""
    squares = torch.cat([part.square().sum(1) for part in others.split(SQUARED_ROWS)])
    for part in x.split(max(1, MAX_CELLS // len(others))):
        yield torch.addmm(part.square().sum(1)[:, None] + squares, part, others.mT, alpha=-2).clamp_(min=0)


def check_features(real: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
    """Both as float64.

    Raises:
        ValueError: no features of one width, or some that are not finite.
    """
    if real.ndim != 2 or samples.ndim != 2 or real.shape[1] != samples.shape[1] or not len(real) or not len(samples):
        raise ValueError(f"features must be [n, D] and [m, D], got {list(real.shape)} and {list(samples.shape)}")
    for name, x in {"real": real, "samples": samples}.items():
        if lost := int((~x.isfinite().all(1)).sum()):
            raise ValueError(f"features of {lost} of {len(x)} {name} are not finite")
    return real.double(), samples.double()
