"""Log-densities tilted by a potential: log p + w f."""

import torch
from torch import Tensor

from ...backbones.conditions import Condition, has_condition
from ...models.protocols import Energy, LogDensity
from ...runtime.ranges import check_finite
from .values import LogPotential, build_potential, evaluate, reads_class

__all__ = ["PotentialDensity", "PotentialEnergy"]


class PotentialDensity(LogDensity):
    """log p(x | y) + w f(x, y), up to a constant: a log-density tilted by a potential.

    Arguments:
        density: log p.
        potential: f(x, y) -> [B].
        scale: w, finite; 0 = off.
    """

    def __init__(self, density: LogDensity, potential: LogPotential, scale: float = 1.0):
        self.density = density
        self.potential = build_potential(potential)
        self.scale = check_finite("scale", scale)
        self.normalized = density.normalized and scale == 0

    def log_density(self, x: Tensor, t: Tensor | None, y: Condition | None = None) -> Tensor:
        result = self.density.log_density(x, t, y)
        of_class = reads_class(self.potential)
        if self.scale == 0 or (of_class and y is None):
            return result
        tilt = self.scale * self.evaluate(x, y)
        return result + (torch.where(has_condition(y), tilt, 0.0) if of_class and y is not None else tilt)

    def evaluate(self, x: Tensor, y: Condition | None) -> Tensor:
        """f(x, y), [B]."""
        return evaluate(self.potential, x, y)


class PotentialEnergy(PotentialDensity, Energy):
    """log p(x | y) + w f(x, y) of an energy without noise levels: `guidance=potential` around objective=jem.

    Arguments:
        density: log p.
        potential: f(x, y) -> [B].
        scale: w, finite; 0 = off.
    """

    def __init__(self, density: Energy, potential: LogPotential, scale: float = 1.0):
        super().__init__(density, potential, scale)
        self.tally, self.num_classes, self.has_null = density.tally, density.num_classes, density.has_null
        self.class_names, self.shape = density.class_names, density.shape

    def evaluate(self, x: Tensor, y: Condition | None) -> Tensor:
        if self.tally is not None:
            self.tally.potential_evaluations += len(x)
        return super().evaluate(x, y)
