"""The tree of the autoguidance paper: two classes in the plane with branches too thin for a small network to learn."""

import math
from typing import NamedTuple

import numpy
import torch
from torch import Tensor

from .base import Dataset, Split, check_dataset_facts, check_draws

__all__ = ["Components", "Tree", "draw_splits", "grow_trees"]

ORIGIN = numpy.array([0.0030, 0.0325])
STRETCH = numpy.array([1.3136, 1.3844])  # of the coordinates, so that the trees are about as wide as high


class Components(NamedTuple):
    """Gaussians: weights [K] (not normalised), means [K, D], covariances [K, D, D], all float64; labels [K]."""

    weights: Tensor
    means: Tensor
    covariances: Tensor
    labels: Tensor


def grow_trees(depth: int, seed: int) -> Components:
    """The two trees, class A before class B, depth first; every branch is eight Gaussians along a line.

    Arguments:
        depth: generations of branches g, 2 (2^g - 1) branches.
        seed: seed of lengths and angles, 0 to 2^32 - 1.
    """
    rng = numpy.random.RandomState(seed)
    trees = [grow_branch(rng, depth, 0, ORIGIN, math.radians(angle)) for angle in (45, 225)]
    labels = [label for label, tree in enumerate(trees) for _ in tree]
    weights, means, covariances = (torch.from_numpy(numpy.stack(part)) for part in zip(*trees[0], *trees[1]))
    return Components(weights, means, covariances, torch.tensor(labels))


def grow_branch(
    rng: numpy.random.RandomState, depth: int, generation: int, root: numpy.ndarray, angle: float
) -> list[tuple[float, numpy.ndarray, numpy.ndarray]]:
    """(weight, mean, covariance) of the components of a branch, then of the branches that start at its end."""
    length = 0.292 * 0.8**generation * (1 + 0.2 * rng.randn())
    along = numpy.array([math.cos(angle), math.sin(angle)])
    line = numpy.outer(along, along)
    thickness = 0.2 * 0.8**generation / length
    size = 0.06 * length * STRETCH
    covariance = (line + thickness**2 * (numpy.eye(2) - line)) * numpy.outer(size, size)
    positions = numpy.linspace(0.07, 0.93, 8)
    found = [(length * 0.5**generation, STRETCH * (root + p * length * along), covariance) for p in positions]
    if generation + 1 < depth:
        for side in (1, -1):
            turn = side * 0.7**generation * (1 + 0.2 * rng.randn())
            found += grow_branch(rng, depth, generation + 1, root + length * along, angle + turn)
    return found


class Tree(Dataset):
    """Exact samples of two classes A and B, each a fractal tree of 127 branches of eight Gaussians.

    Karras, Aittala, Kynkaanniemi, Lehtinen, Aila, Laine, "Guiding a Diffusion Model with a Bad Version of Itself", 2024,
    arXiv 2406.02507, figure 1 and appendix C. `oracle=autoguidance_tree` is the distribution.

    Arguments:
        channels, size, num_classes: 2 (length of a vector), None (no image) and 2; checked.
        train, validation, test: number of points in each split, 1 to 10^7.
        seed: seed of the points, at least 0.
    """

    synthetic = True

    def __init__(
        self,
        channels: int = 2,
        size: int | None = None,
        num_classes: int = 2,
        train: int = 200000,
        validation: int = 2000,
        test: int = 2000,
        seed: int = 0,
    ):
        check_dataset_facts("tree", channels=(channels, 2), size=(size, None), num_classes=(num_classes, 2))
        check_draws("tree", (train, validation, test), seed)
        law, rng = grow_trees(depth=7, seed=2), torch.Generator().manual_seed(seed)
        super().__init__(*draw_splits(law, train, validation, test, rng), class_names=("A", "B"))


def draw_splits(
    law: Components, train: int, validation: int, test: int, rng: torch.Generator
) -> tuple[Split, Split, Split]:
    """(Training, validation, test) points of a mixture, drawn in this order."""
    return draw_examples(law, train, rng), draw_examples(law, validation, rng), draw_examples(law, test, rng)


def draw_examples(law: Components, n: int, rng: torch.Generator) -> Split:
    """n labelled points of a mixture."""
    component = torch.multinomial(law.weights, n, replacement=True, generator=rng)
    z = torch.randn(n, law.means.shape[1], 1, generator=rng, dtype=torch.float64)
    x: Tensor = law.means[component] + (torch.linalg.cholesky(law.covariances)[component] @ z)[..., 0]
    return Split(x.float(), law.labels[component])
