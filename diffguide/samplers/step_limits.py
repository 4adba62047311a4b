"""Limits of higher-order corrections: which steps are of first order instead.

A step is x_s = (step of first order) + correction. With r = (sigma_t / alpha_t) / (sigma_s / alpha_s), the correction of
Heun's method is alpha_s (r - 1) / 2 times the change of the predicted x_0, and that of DPM-Solver-2
alpha_s (r^(1/2) - r^(-1/2)) times. For large r this extrapolates far beyond the range of x_0, and a run of one or two steps
ends in noise; so do polynomials through earlier values. A step is therefore

r <= MAX_UNCHECKED_FALL   the method's own. Up to r = 2, Heun's step takes a mean of its two predictions of x_0.
r <= MAX_FALL             the method's own in samples whose correction is at most MAX_CORRECTION of the step's length,
                          alpha_s (sigma_t / alpha_t - sigma_s / alpha_s) |eps|; of first order in the others. Near the data,
                          eps is proportional to the noise level and the exact correction is (1 - 1 / r) / 2 of the step:
                          0.37 in the widest of Heun's 18 default steps.
beyond                    of first order, with one evaluation.

scripts/few_steps.py measured the limits over exact laws, schedules, grids and guidance: no solver of the ODE is worse than
Euler's method at 1 to 3 steps, and none by more than 4 % at 5 steps. r <= 2 holds for 18 steps of equal log-SNR, and for 37
on Karras' grid. Small steps are not limited, so no order of convergence changes.
"""

import torch
from torch import Tensor

from ..models.protocols import Prediction
from ..schedules import Schedule, broadcast_rows

__all__ = ["MAX_CORRECTION", "MAX_FALL", "MAX_UNCHECKED_FALL", "limit_corrections"]

MAX_UNCHECKED_FALL = 2.0
MAX_FALL = 5.0
MAX_CORRECTION = 0.4


def limit_corrections(
    x: Tensor, plain: Tensor, prediction: Prediction, schedule: Schedule, t: Tensor, s: Tensor
) -> Tensor:
    """Rows of x where the correction x - plain is at most MAX_CORRECTION of the step, rows of `plain` elsewhere."""
    here, there = schedule.levels(t), schedule.levels(s)
    length = there.alpha * (here.noise_level - there.noise_level)
    correction, way = (torch.linalg.vector_norm(each.flatten(1), dim=1) for each in (x - plain, prediction.eps))
    kept = correction <= MAX_CORRECTION * length.to(way.dtype) * way
    return torch.where(broadcast_rows(kept, x.ndim), x, plain)
