"""Regression on noised data: every objective of the eps, x0, v, flow and EDM kind is this class with another table."""

import torch
from torch import Tensor

from ..backbones import Backbone
from ..backbones.conditions import Condition
from ..denoisers import Preconditioned
from ..parameterizations import Parameterization
from ..randomness import Share, normal
from ..schedules import Schedule
from .base import Loss, Objective, drop_condition
from .levels import NoiseLevels
from .weights import Weight

__all__ = ["Denoising"]


class Denoising(Objective):
    """weight(log_snr) || F(x_t) - F* ||^2 / D  with  x_t = alpha x_0 + sigma eps,  F* = p x_0 + q eps.

    Ho et al. 2020, arXiv 2006.11239, eq. 14; Karras et al. 2022, arXiv 2206.00364, eq. 8. D is the number of
    elements of one example.

    Arguments:
        backbone: network (x, log_snr, y) -> F in the shape of x.
        schedule: noise schedule.
        parameterization: what the network predicts.
        weight: weight over noise levels on the network's own error.
        levels: distribution of the noise level.
        p_uncond: probability, per example, of training without its condition; in [0, 1].

    Raises:
        ValueError: p_uncond out of range, or a parameterization that the schedule's ends do not allow.
    """

    def __init__(
        self, backbone: Backbone, schedule: Schedule, parameterization: Parameterization, weight: Weight,
        levels: NoiseLevels, p_uncond: float,
    ):  # fmt: skip
        super().__init__()
        if not 0 <= p_uncond <= 1:
            raise ValueError(f"p_uncond must be in [0, 1], got {p_uncond}")
        self.model = Preconditioned(backbone, schedule, parameterization, has_null=p_uncond > 0)
        self.weight, self.levels, self.p_uncond = weight, levels, float(p_uncond)

    def forward(self, x_0: Tensor, y: Condition | None, rng: torch.Generator | Share) -> Loss:
        schedule = self.model.schedule
        t, density = self.levels(schedule, len(x_0), rng)
        alpha, sigma = (a.to(x_0) for a in schedule.alpha_sigma(t, x_0.ndim))
        eps = normal(x_0.shape, rng, x_0.dtype)
        output, rows = self.model.output(alpha * x_0 + sigma * eps, t, drop_condition(y, self.p_uncond, rng))
        if output.shape != x_0.shape:
            raise ValueError(
                f"the network's output {list(output.shape)} must have the shape of the data {list(x_0.shape)}"
            )
        error = (output - (rows.p * x_0 + rows.q * eps)).square().flatten(1).mean(1)
        log_snr = schedule.log_snr(t)
        weight = self.weight(log_snr, rows, density).to(error)
        return Loss(weight * error, {"mse": error.detach()}, log_snr.detach())
