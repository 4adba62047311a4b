"""A Gaussian mixture as training data, whose densities and scores have closed forms."""

from collections.abc import Sequence

import torch

from .base import Dataset, check_dataset_facts, check_draws
from .tree import Components, draw_splits

__all__ = ["MIXTURE_COVARIANCES", "MIXTURE_LABELS", "MIXTURE_MEANS", "MIXTURE_WEIGHTS", "Mixture"]

# The anisotropic mixture: two classes of thin, tilted Gaussians in the plane that cross each other.
MIXTURE_WEIGHTS = (2.0, 1.0, 1.0, 2.0)
MIXTURE_MEANS = ((-0.5, 0.3), (0.7, 0.6), (0.5, -0.4), (-0.6, -0.6))
MIXTURE_COVARIANCES = (
    ((0.18125, 0.17875), (0.17875, 0.18125)),
    ((0.01, 0.0), (0.0, 0.36)),
    ((0.185, -0.175), (-0.175, 0.185)),
    ((0.36, 0.0), (0.0, 0.0025)),
)
MIXTURE_LABELS = (0, 0, 1, 1)


class Mixture(Dataset):
    """Exact labelled samples of sum_k pi_k N(mu_k, S_k), the distribution of the oracle with the same arguments.

    Arguments:
        channels, size, num_classes: D (length of a vector), None (no image) and the number of classes; checked.
        weights: pi_k, [K] positive numbers, normalised here.
        means: mu_k, K lists of D numbers.
        covariances: S_k, K symmetric positive definite matrices of D lists of D numbers.
        labels: class of each component, K integers from 0, every class at least once.
        train, validation, test: number of points in each split, 1 to 10^7.
        seed: seed of the points, at least 0.

    Raises:
        ValueError: channels, size or num_classes of another mixture, or a number out of range.
    """

    synthetic = True

    def __init__(
        self,
        channels: int = 2,
        size: int | None = None,
        num_classes: int = 2,
        weights: Sequence[float] = MIXTURE_WEIGHTS,
        means: Sequence[Sequence[float]] = MIXTURE_MEANS,
        covariances: Sequence[Sequence[Sequence[float]]] = MIXTURE_COVARIANCES,
        labels: Sequence[int] = MIXTURE_LABELS,
        train: int = 20000,
        validation: int = 2000,
        test: int = 2000,
        seed: int = 0,
    ):
        check_draws("mixture", (train, validation, test), seed)
        law = read_components(weights, means, covariances, labels)
        if law is None:
            raise ValueError(
                "dataset.weights, means, covariances and labels must be K positive numbers, K vectors, K symmetric positive "
                "definite matrices and K classes from 0 without a gap"
            )
        check_dataset_facts(
            "this mixture",
            channels=(channels, law.means.shape[1]),
            size=(size, None),
            num_classes=(num_classes, int(law.labels.max()) + 1),
        )
        self.law = law
        rng = torch.Generator().manual_seed(seed)
        names = tuple(map(str, range(num_classes)))
        super().__init__(*draw_splits(law, train, validation, test, rng), class_names=names)


def read_components(
    weights: Sequence[float],
    means: Sequence[Sequence[float]],
    covariances: Sequence[Sequence[Sequence[float]]],
    labels: Sequence[int],
) -> Components | None:
    """The mixture as tensors; None for numbers that do not describe one."""
    try:
        weight, mean, covariance = (torch.tensor(part, dtype=torch.float64) for part in (weights, means, covariances))
        count, length = mean.shape
        if weight.shape != (count,) or len(labels) != count or covariance.shape != (count, length, length):
            return None
        if not bool((weight > 0).all() and weight.isfinite().all() and (covariance == covariance.mT).all()):
            return None
        torch.linalg.cholesky(covariance)
    except (ValueError, TypeError, RuntimeError):  # ragged lists, or a matrix that is not positive definite
        return None
    if sorted(set(labels)) != list(range(max(labels) + 1)):
        return None
    return Components(weight, mean, covariance, torch.tensor(labels, dtype=torch.long))
