"""KID, the squared distance of two sets of features by a polynomial kernel, and the inception score."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Estimate", "inception_score", "kernel_distance", "squared_mmd"]


class Estimate(NamedTuple):
    """A number and its standard error, None = unknown."""

    value: float
    error: float | None


def polynomial_kernel(x: Tensor, y: Tensor) -> Tensor:
    """k(x, y) = (x . y / D + 1)^3, [n, m]."""
    return (x @ y.mT / x.shape[1] + 1) ** 3


def squared_mmd(x: Tensor, y: Tensor) -> float:
    """mean_(i != j) k(x_i, x_j) + mean_(i != j) k(y_i, y_j) - 2 mean_ij k(x_i, y_j): unbiased, so it may be negative.

    Binkowski, Sutherland, Arbel & Gretton, "Demystifying MMD GANs", 2018, arXiv 1801.01401, eq. 4 and section 4.

    Arguments:
        x, y: features [n, D] and [m, D], n and m at least 2.
    """
    x, y = x.double(), y.double()
    return float(mean_kernel(x) + mean_kernel(y) - 2 * polynomial_kernel(x, y).mean())


def mean_kernel(x: Tensor) -> Tensor:
    """mean_(i != j) k(x_i, x_j)."""
    table = polynomial_kernel(x, x)
    return (table.sum() - table.trace()) / (len(x) * (len(x) - 1))


def kernel_distance(x: Tensor, y: Tensor, subsets: int, size: int, seed: int) -> Estimate:
    """The mean of `squared_mmd` over random subsets of both sets, as in the literature.

    The squared standard error is V / (1 - s/N) (s/N) + V / subsets, with V the variance over the subsets, which are drawn from
    one finite set: if the value of s examples has the variance v over sets, it has v (1 - s/N) over the subsets of a set of
    N, and the value of the whole set has v s/N. For two sets of one distribution, where the estimate is degenerate, the
    error is too large by a factor of up to (N/s)^(1/2).

    Arguments:
        x, y: features [n, D] and [m, D].
        subsets: number of subsets, at least 1; the error needs 2, and s < N.
        size: examples of each set in a subset, at least 2 and at most n and m.
        seed: of the subsets.

    Raises:
        ValueError: a subset larger than a set, or of fewer than two.
    """
    n = min(len(x), len(y))
    if not 2 <= size <= n or subsets < 1:
        raise ValueError(
            f"KID needs subsets of 2 to {n} examples, the size of the smaller set, got {subsets} of {size}"
        )
    rng = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(subsets):
        values.append(squared_mmd(*(part[torch.randperm(len(part), generator=rng)[:size]] for part in (x, y))))
    distances, share = torch.tensor(values, dtype=torch.float64), size / n
    if subsets < 2 or size == n:
        return Estimate(float(distances.mean()), None)
    variance = float(distances.var())
    return Estimate(float(distances.mean()), math.sqrt(variance / (1 - share) * share + variance / subsets))


def inception_score(logits: Tensor, splits: int) -> Estimate:
    """exp mean_x KL(p(y | x) | mean_x p(y | x)), the mean over consecutive splits, with its standard error.

    Salimans et al., "Improved Techniques for Training GANs", 2016, arXiv 1606.03498, section 4, with 10 splits of 5000. It
    grows with the size of a split, up to the number of classes. The error is the unbiased std over the splits divided by
    sqrt(splits); torch-fidelity and papers state the biased std itself.

    Arguments:
        logits: [n, K], not sorted by class.
        splits: at least 1, at most n.

    Raises:
        ValueError: more splits than samples.
    """
    if not 1 <= splits <= len(logits):
        raise ValueError(f"the inception score needs 1 to {len(logits)} splits, the number of samples, got {splits}")
    scores = []
    for index in range(splits):
        part = logits[index * len(logits) // splits : (index + 1) * len(logits) // splits]
        log_p = part.double().log_softmax(1)
        log_mean = log_p.logsumexp(0) - math.log(len(log_p))
        scores.append((log_p.exp() * (log_p - log_mean)).sum(1).mean().exp())
    values = torch.stack(scores)
    error = float(values.std()) / math.sqrt(splits) if splits > 1 else None
    return Estimate(float(values.mean()), error)
