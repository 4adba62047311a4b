"""Grids over a discrete schedule of T steps, in the conventions of diffusers: index k - 1 there is t = k / T here.

"leading", "linspace" and "trailing" are named in Lin, Liu, Li, Yang, "Common Diffusion Noise Schedules and Sample Steps Are
Flawed", 2023, arXiv 2305.08891, table 2. Every grid ends with a step to t = 0. Leading does not start at t = 1, but samplers
start from sigma times noise, without the signal alpha x_0 that x_t has at its first time: the flaw that the paper describes.
"""

import torch
from torch import Tensor

from ..runtime.ranges import check_whole
from ..schedules import Schedule
from .grids import Grid

__all__ = ["Leading", "Linspace", "Trailing"]


class DiscreteGrid(Grid):
    """Base: times (index + 1) / T, then 0.

    Arguments:
        timesteps: T, the length of the discrete schedule, at least 1.

    Raises:
        ValueError: from a call: more steps than T, or an index beyond T - 1.
    """

    def __init__(self, timesteps: int = 1000):
        self.timesteps = check_whole("timesteps", timesteps, 1)

    def continuous(self, schedule: Schedule, steps: int) -> Tensor:
        if steps > self.timesteps:
            raise ValueError(f"{steps} steps do not fit into timesteps={self.timesteps} of the discrete schedule")
        times = (self.indices(steps) + 1) / self.timesteps
        return torch.cat([times, times.new_zeros(1)])

    def indices(self, steps: int) -> Tensor:
        """Decreasing whole numbers [steps] within 0 to T - 1, float64."""
        raise NotImplementedError


class Leading(DiscreteGrid):
    """Index offset + k floor(T / steps), k = steps - 1, ..., 0.

    Arguments:
        timesteps: T, the length of the discrete schedule.
        offset: of every index, at least 0; 0 for DDPM, 1 for Stable Diffusion.

    Raises:
        ValueError: from a call: one step, which would start at index `offset`, almost without noise.
    """

    def __init__(self, timesteps: int = 1000, offset: int = 0):
        super().__init__(timesteps)
        self.offset = check_whole("offset", offset, 0)

    def indices(self, steps: int) -> Tensor:
        if steps == 1 and self.offset + 1 < self.timesteps:
            raise ValueError(
                f"grid=leading needs at least 2 steps: one would start at index {self.offset} of {self.timesteps}, almost "
                "without noise; take sampler/grid=trailing"
            )
        return torch.arange(steps - 1, -1, -1, dtype=torch.float64) * (self.timesteps // steps) + self.offset


class Linspace(DiscreteGrid):
    """Indices from T - 1 to 0 at equal distances, rounded."""

    def indices(self, steps: int) -> Tensor:
        if steps == 1:
            raise ValueError("grid=linspace needs at least 2 steps: its first index is T - 1 and its last one 0")
        return torch.linspace(self.timesteps - 1, 0, steps, dtype=torch.float64).round()


class Trailing(DiscreteGrid):
    """Index round(T - k T / steps) - 1, k = 0, ..., steps - 1."""

    def indices(self, steps: int) -> Tensor:
        k = torch.arange(steps, dtype=torch.float64)
        return (self.timesteps - k * (self.timesteps / steps)).round() - 1
