"""Gaussian mixtures with fixed or random parameters."""

import torch

from ..datasets.gmm2d import GMM2D
from ..datasets.tree import grow_trees
from ..schedules import Schedule
from .mixture import GaussianMixture

__all__ = ["AutoguidanceTree", "GMM2DLaw", "HighDimensional"]


class GMM2DLaw(GaussianMixture):
    """The distribution of the data set gmm2d: eight Gaussians on a circle, each neighbouring pair a class.

    Arguments:
        schedule: the noise schedule of t; None = Cosine().
    """

    def __init__(self, schedule: Schedule | None = None):
        means = GMM2D.means().tolist()
        super().__init__([1.0] * len(means), means, GMM2D.std**2, GMM2D.labels().tolist(), schedule)


class HighDimensional(GaussianMixture):
    """Isotropic Gaussians around random means: mu_k = spread z_k with z_k standard normal, S_k = std^2 I.

    Two means lie about spread sqrt(2 D) apart. Guidance in many dimensions: Pavasovic et al., 2025, arXiv 2502.07849.

    Arguments:
        dimensions: D, at least 1.
        classes: number of classes, at least 1.
        components: Gaussians per class, at least 1; all of equal weight.
        spread: standard deviation of every coordinate of the means, at least 0, below 1e15.
        std: standard deviation of every component, above 0, below 1e15.
        seed: seed of the means, 0 to 2^62.
        schedule: the noise schedule of t; None = Cosine().

    Raises:
        ValueError: an argument outside its range.
    """

    def __init__(
        self,
        dimensions: int = 64,
        classes: int = 8,
        components: int = 1,
        spread: float = 0.25,
        std: float = 0.5,
        seed: int = 0,
        schedule: Schedule | None = None,
    ):
        if min(dimensions, classes, components) < 1 or not 0 <= seed <= 2**62:
            raise ValueError(
                f"dimensions, classes and components must be at least 1 and seed 0 to 2^62, got {dimensions}, "
                f"{classes}, {components} and seed {seed}"
            )
        if not (0 <= spread < 1e15 and 0 < std < 1e15):
            raise ValueError(f"spread must be at least 0 and std above 0, both below 1e15, got {spread} and {std}")
        rng = torch.Generator().manual_seed(seed)
        means = spread * torch.randn(classes * components, dimensions, generator=rng, dtype=torch.float64)
        labels = [label for label in range(classes) for _ in range(components)]
        super().__init__([1.0] * len(labels), means.tolist(), std**2, labels, schedule)


class AutoguidanceTree(GaussianMixture):
    """Two classes A and B in the plane, each a fractal tree with branches too thin for a small network to learn.

    Karras, Aittala, Kynkaanniemi, Lehtinen, Aila, Laine, "Guiding a Diffusion Model with a Bad Version of Itself", 2024,
    arXiv 2406.02507, figure 1 and appendix C. Every branch is eight Gaussians along a line and ends in two branches. Its
    length is 0.292 * 0.8^d (1 + 0.2 n) at depth d with n normal, its weight length * 0.5^d. The trees grow depth first,
    class A before class B.

    Arguments:
        depth: generations of branches, 1 to 10; 7 in the paper, 2 * 127 * 8 = 2032 components.
        seed: seed of lengths and angles, 0 to 2^32 - 1; 2 in the paper.
        schedule: the noise schedule of t; None = Cosine().

    Raises:
        ValueError: an argument outside its range.
    """

    def __init__(self, depth: int = 7, seed: int = 2, schedule: Schedule | None = None):
        if not 1 <= depth <= 10 or not 0 <= seed < 2**32:
            raise ValueError(f"depth must be 1 to 10 and seed 0 to 2^32 - 1, got {depth} and {seed}")
        weights, means, covariances, labels = (part.tolist() for part in grow_trees(depth, seed))
        super().__init__(weights, means, covariances, labels, schedule, class_names=["A", "B"])
