"""Limits of higher-order corrections: where a step falls back to first order.

Every method here is x_s = (step of first order) + correction. With r = (sigma_t / alpha_t) / (sigma_s / alpha_s) the
correction of Heun's method is alpha_s (r - 1) / 2 times the change of the predicted x_0, that of DPM-Solver-2
alpha_s (r^(1/2) - r^(-1/2)) times. Where the noise level falls far in one step, this extrapolates far beyond the range of
x_0, and a run of one or two steps ends in noise. Polynomials through earlier values do the same. So a step is

r <= MAX_UNCHECKED_FALL   the method's own. Up to r = 2 Heun's step ends as if x_0 were a mean of its two predictions.
r <= MAX_FALL   the method's own in samples whose correction is at most MAX_CORRECTION of the step's own length,
                alpha_s (sigma_t / alpha_t - sigma_s / alpha_s) |eps|, of first order in the others: where two predictions
                differ so much, x_0 is still undecided. Near the data eps falls in proportion to the noise level, and the
                right correction is (1 - 1 / r) / 2 of the step: 0.37 in the widest of Heun's 18 default steps.
beyond          of first order, with one evaluation.

The limits were measured with scripts/few_steps.py, over exact laws, schedules, grids and guidance: no solver of the ODE
was worse than Euler's method at 1 to 3 steps, and at 5 steps none by more than 4 %. r <= 2 are runs of 18 steps of equal
log-SNR, of 37 on Karras' grid. Small steps are not limited, so no order of convergence changes.
"""

import torch
from torch import Tensor

from ..models.protocols import Prediction
from ..schedules import Schedule, broadcast_rows

__all__ = ["MAX_CORRECTION", "MAX_FALL", "MAX_UNCHECKED_FALL", "limit_corrections", "noise_fall"]

MAX_UNCHECKED_FALL = 2.0
MAX_FALL = 5.0
MAX_CORRECTION = 0.4


def noise_fall(schedule: Schedule, t: Tensor, s: Tensor) -> float:
    """The factor by which the noise level sigma / alpha falls from t to s; inf to or from an infinite log-SNR."""
    return float(torch.exp((schedule.log_snr(s) - schedule.log_snr(t)) / 2))


def limit_corrections(
    x: Tensor, plain: Tensor, prediction: Prediction, schedule: Schedule, t: Tensor, s: Tensor
) -> Tensor:
    """Rows of x where the correction x - plain is at most MAX_CORRECTION of the step, rows of `plain` elsewhere."""
    length = schedule.alpha_sigma(s)[0] * (schedule.noise_level(t) - schedule.noise_level(s))
    correction, way = (torch.linalg.vector_norm(each.flatten(1), dim=1) for each in (x - plain, prediction.eps))
    kept = correction <= MAX_CORRECTION * length.to(way) * way
    return torch.where(broadcast_rows(kept, x.ndim), x, plain)
