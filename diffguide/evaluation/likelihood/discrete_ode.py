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

    For models that cannot be evaluated between their levels: two evaluations per level, and an error of second order in
    their distance.
    """

    text, at_levels = "Heun's rule from level to level", True

    def __call__(
        self, slope: Slope, state: Tensor, start: float, end: float, levels: Sequence[float] = ()
    ) -> tuple[Tensor, int]:
        def along(u: float, state: Tensor) -> Tensor:
            angle = math.atan(math.exp(u))
            place = torch.full((len(state),), u, dtype=state.dtype, device=state.device)
            return slope(place, state) / (math.sin(angle) * math.cos(angle))  # du = d angle / (sin cos)

        for u, then in pairwise(levels):
            h = math.atan(math.exp(then)) - math.atan(math.exp(u))
            first = along(u, state)
            state = state + h / 2 * (first + along(then, state + h * first))
        return state, 2 * (len(levels) - 1)
