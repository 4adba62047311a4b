"""Eight Gaussians on a circle: a small data set with modes and classes, whose noised densities have closed forms."""

import math

import torch
from torch import Tensor

from .base import Dataset, Split, check_dataset_facts, check_draws

__all__ = ["GMM2D"]


class GMM2D(Dataset):
    """Eight components of equal weight on the circle of radius 1.3, standard deviation 0.15; class = neighbouring pair.

    Component k lies at the angle 2 pi k / 8 and has class k // 2.

    Arguments:
        channels, size, num_classes, quantization_levels: 2 (length of a vector), None (no image), 4 and 0 (continuous);
            checked.
        train, validation, test: number of points in each split, 1 to 10^7.
        seed: seed of the points, at least 0.
    """

    radius = 1.3
    std = 0.15
    synthetic = True

    def __init__(
        self,
        channels: int = 2,
        size: int | None = None,
        num_classes: int = 4,
        train: int = 20000,
        validation: int = 2000,
        test: int = 2000,
        seed: int = 0,
        quantization_levels: int = 0,
    ):
        check_dataset_facts(
            "gmm2d",
            channels=(channels, 2),
            size=(size, None),
            num_classes=(num_classes, 4),
            quantization_levels=(quantization_levels, 0),
        )
        check_draws("gmm2d", (train, validation, test), seed)
        rng = torch.Generator().manual_seed(seed)
        splits = self.draw(train, rng), self.draw(validation, rng), self.draw(test, rng)
        super().__init__(*splits, class_names=tuple("0123"))

    @classmethod
    def means(cls) -> Tensor:
        """Means of the components, [8, 2] float64."""
        angle = 2 * math.pi / 8 * torch.arange(8, dtype=torch.float64)
        return cls.radius * torch.stack([angle.cos(), angle.sin()], dim=1)

    @staticmethod
    def labels() -> Tensor:
        """Class of each component, [8]."""
        return torch.arange(8) // 2

    def draw(self, n: int, rng: torch.Generator) -> Split:
        """n labelled points."""
        component = torch.randint(8, (n,), generator=rng)
        x = self.means()[component].float() + self.std * torch.randn(n, 2, generator=rng)
        return Split(x, self.labels()[component])
