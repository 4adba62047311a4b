"""The probability-flow ODE of a model with discrete noise levels."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from .flow_ode import Slope, Solver

__all__ = ["LevelSteps"]


class LevelSteps(Solver):
    """Heun's rule from each noise level of a model to the next, along the angle atan(sigma / alpha).

    For models that cannot be evaluated between their levels. Two evaluations per level; the error is of second order in
    the distance of the levels.
    """

    text, at_levels = "Heun's rule from level to level", True

    def __call__(self, slope: Slope, state: Tensor, start: float, end: float, levels: Sequence[float] = ()) -> Tensor:
        def slope_by_angle(u: float, state: Tensor) -> Tensor:
            angle = math.atan(math.exp(u))
            u_per_example = torch.full((len(state),), u, dtype=state.dtype, device=state.device)
            return slope(u_per_example, state) / (math.sin(angle) * math.cos(angle))  # du = d angle / (sin cos)

        for u, next_u in pairwise(levels):
            h = math.atan(math.exp(next_u)) - math.atan(math.exp(u))
            first = slope_by_angle(u, state)
            state = state + h / 2 * (first + slope_by_angle(next_u, state + h * first))
        return state
