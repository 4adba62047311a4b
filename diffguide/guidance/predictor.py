"""Rectified-CFG++: the guidance at where the conditional model would step to."""

import math
from collections.abc import Sequence
from typing import Self

from torch import Tensor

from ..backbones.conditions import Condition
from ..class_names import ConditionValue
from ..models.protocols import Denoiser, Prediction, keep_variance
from ..randomness import Noise
from ..schedules import EVERYWHERE
from .contrast import CONSTANT_RAMP, LINEAR_RULE, ClassifierFree
from .flow_rules import compute_flow, flow_time, shift_flow
from .ramps import Ramp

__all__ = ["RectifiedCFGPlusPlus"]


class RectifiedCFGPlusPlus(ClassifierFree):
    """u_strong(x_t, t) + (scale - 1) (u_strong - u_weak)(x_s, s), x_s where the conditional model steps to from x_t.

    u = eps - x_0 is the velocity of the flow, s the end of the sampler's step in which t lies, and x_s Euler's step there.
    Saini, Gupta, Bovik, "Rectified-CFG++ for Flow Based Models", NeurIPS 2025, arXiv 2510.07631, algorithm 1, with scale
    = 1 + their weight (4.5 in their code). Three evaluations a step. Where the step ends at the data itself (sigma = 0),
    the difference is that at x_t.

    Arguments:
        denoiser: conditional denoiser that was trained with the null condition.
        scale: 1 = off (conditional), above 1 = guided.
        interval: (lo, hi] in noise level sigma / alpha, of t.
        ramp: factor of (scale - 1) at each noise level, of t.
        negative: condition of the weak side, as in `ClassifierFree`.

    Raises:
        ValueError: as in `ClassifierFree`; from a call: outside a run, which has no steps, or with t [B].
    """

    option = "rectified_cfgpp"
    stateful = True  # it depends on the grid of a run

    def __init__(
        self,
        denoiser: Denoiser,
        scale: float = 2.0,
        interval: Sequence[float] = EVERYWHERE,
        ramp: Ramp = CONSTANT_RAMP,
        negative: ConditionValue = None,
    ):
        super().__init__(denoiser, scale, interval, LINEAR_RULE, ramp, negative)
        self.grid: Tensor | None = None

    def start(self, noise: Noise | None, times: Tensor) -> Self:
        fresh = super().start(noise, times)
        fresh.grid = times
        return fresh

    def predict_rows(self, x_t: Tensor, t: Tensor, y: Condition | None) -> Prediction:
        raise ValueError(
            "guidance=rectified_cfgpp looks at the next step, so all samples must have the same noise level"
        )

    def __call__(self, x_t: Tensor, t: Tensor, y: Condition | None = None) -> Prediction:
        if t.ndim:
            return self.predict_rows(x_t, t, y)
        strong = self.predict_strong(x_t, t, y)
        strength = self.strength_at(t)
        if not strength.acts or strength.number == 1 or y is None and self.negative is None:
            return strong
        if self.grid is None:
            raise ValueError(
                "guidance=rectified_cfgpp needs the steps of a run: use it in sampler(denoiser, x, times, y)"
            )
        s = self.step_end(self.grid, t)
        alpha, sigma = self.schedule.alpha_sigma(s)
        if s == t or float(sigma) == 0:
            there, s = x_t, t
        else:
            there = alpha * strong.x_0 + sigma * strong.eps
        ahead, behind = self.predict_both(there, s, y)
        change = (strength.number - 1) * (compute_flow(ahead) - compute_flow(behind))
        return keep_variance(shift_flow(strong, change, flow_time(t, self.schedule, x_t)), strong)

    @staticmethod
    def step_end(grid: Tensor, t: Tensor) -> Tensor:
        """The first time of the grid below t; t itself after the last one."""
        lower = grid[grid < t - math.ulp(1.0)]
        return lower[0] if len(lower) else t
