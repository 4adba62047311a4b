"""Distances between two sets of samples.

No distance is zero for two finite sets of one distribution: compare it with its floor, the distance between two independent
exact sets of the same sizes (`oracle_distances`). All take x [n, D] and y [m, D], float64, and return a float.
"""

import math

import torch
from torch import Tensor

__all__ = [
    "covariance_error",
    "deviation_ratio",
    "directions",
    "energy_distance",
    "mean_error",
    "sliced_wasserstein",
    "wasserstein",
]

MAX_CELLS = 2**22  # of a table of pairwise distances in memory


def wasserstein(x: Tensor, y: Tensor) -> float:
    """W_2(x, y) = sqrt(min over permutations p of mean_i |x_i - y_p(i)|^2), exactly, in units of x.

    Peyre & Cuturi, "Computational Optimal Transport", 2019, arXiv 1803.00567, eq. 2.3. The time grows as n^3: 0.2 to 2 s at
    n = 1000.

    Arguments:
        x, y: [n, D] both.

    Raises:
        ValueError: sets of different sizes.
    """
    from scipy.optimize import linear_sum_assignment  # half a second to import

    if len(x) != len(y):
        raise ValueError(f"an assignment needs sets of one size, got {len(x)} and {len(y)}")
    squares = torch.cdist(x - x.mean(0), y - y.mean(0)).square()  # a shift changes the time, not the assignment
    rows, columns = linear_sum_assignment(squares.numpy())
    return math.sqrt((x[rows] - y[columns]).square().sum(1).mean())


def directions(dimensions: int, count: int, rng: torch.Generator) -> Tensor:
    """Unit vectors [m, D], uniform on the sphere, in orthonormal frames: m is `count` rounded up to a multiple of D.

    If D is above `count`, they are `count` orthonormal vectors.
    """
    width = min(dimensions, count)
    frames = torch.randn(math.ceil(count / width), dimensions, width, generator=rng, dtype=torch.float64)
    return torch.linalg.qr(frames).Q.mT.reshape(-1, dimensions)


def sliced_wasserstein(x: Tensor, y: Tensor, directions: Tensor) -> float:
    """SW_2(x, y) = sqrt(mean over directions u of W_2(x . u, y . u)^2); in one dimension sorting gives the assignment.

    Bonneel, Rabin, Peyre, Pfister, "Sliced and Radon Wasserstein Barycenters of Measures", 2015, eq. 9, with a mean over the
    sphere: a shift by d has the distance |d| / sqrt(D) (exactly, with complete frames of `directions`).

    Arguments:
        x, y: [n, D] both.
        directions: unit vectors [m, D].

    Raises:
        ValueError: sets of different sizes.
    """
    if len(x) != len(y):
        raise ValueError(f"a sliced distance needs sets of one size, got {len(x)} and {len(y)}")
    total = 0.0
    for u in directions.split(max(1, MAX_CELLS // len(x))):
        differences = (x @ u.mT).sort(0).values - (y @ u.mT).sort(0).values
        total += differences.square().mean(0).sum().item()
    return math.sqrt(total / len(directions))


def energy_distance(x: Tensor, y: Tensor) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'| of the two empirical distributions, in units of x; its square root is a metric.

    Szekely & Rizzo, "Energy statistics", 2013, eq. 5: the V-statistic, with means over all pairs including i = j. It is never
    negative, and 0 for equal sets. Its floor, for two sets of one distribution, is about (1/n + 1/m) E|X - X'|.
    """
    centre = y.mean(0)  # cdist multiplies matrices, which loses digits far from the origin
    x, y = x - centre, y - centre
    return max(0.0, 2 * mean_distance(x, y) - mean_distance(x, x) - mean_distance(y, y))


def mean_distance(x: Tensor, y: Tensor) -> float:
    """mean_ij |x_i - y_j|."""
    slabs = x.split(max(1, MAX_CELLS // len(y)))
    return sum(torch.cdist(slab, y).sum().item() for slab in slabs) / (len(x) * len(y))


def coordinate_scales(truth: Tensor) -> Tensor:
    """The standard deviation of each coordinate, [D]; for constant coordinates the largest one."""
    std = truth.std(0, correction=0)
    return torch.where(std > 1e-6 * std.max(), std, std.max()).clamp(min=torch.finfo(std.dtype).tiny)


def mean_error(x: Tensor, truth: Tensor) -> float:
    """sqrt(mean_d ((E x_d - E y_d) / s_d)^2), s_d the truth's standard deviation of coordinate d."""
    return ((x.mean(0) - truth.mean(0)) / coordinate_scales(truth)).square().mean().sqrt().item()


def covariance_error(x: Tensor, truth: Tensor) -> float:
    """sqrt(mean_de ((Cov[x]_de - Cov[y]_de) / (s_d s_e))^2), s_d the truth's standard deviation of coordinate d."""
    s = coordinate_scales(truth)
    first, second = ((z - z.mean(0)) / s for z in (x, truth))
    return (first.mT @ first / len(x) - second.mT @ second / len(truth)).square().mean().sqrt().item()


def deviation_ratio(x: Tensor, truth: Tensor, y: Tensor, y_truth: Tensor) -> float:
    """sqrt(V(x) / V(truth)), V = sum_i |x_i - mean of its class|^2 / (n - number of classes): below 1 = less diverse.

    V is the unbiased variance within classes, over all coordinates; it does not depend on the class means. The result is
    nan if every class has one sample, or the truth does not vary.

    Arguments:
        y, y_truth: class of each row of x and of truth.
    """
    variance, exact = within_class_variance(x, y), within_class_variance(truth, y_truth)
    return math.sqrt(variance / exact) if exact > 0 else math.nan


def within_class_variance(x: Tensor, y: Tensor) -> float:
    """The V of `deviation_ratio`; nan if every class has one sample."""
    classes, index = y.unique(return_inverse=True)
    if len(x) == len(classes):
        return math.nan
    sums = torch.zeros(len(classes), x.shape[1], dtype=x.dtype).index_add_(0, index, x)
    means = sums / index.bincount()[:, None]
    return ((x - means[index]).square().sum() / (len(x) - len(classes))).item()
