"""Regression on noised data: eps, x0, v, flow and EDM are this class with another parameterization and weight."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..backbones import Backbone
from ..backbones.conditions import Condition
from ..models.parameterizations import Parameterization, V
from ..models.preconditioned import Preconditioned
from ..randomness import Share, normal
from ..schedules import Schedule
from .base import Loss, Objective, check_dropout, drop_condition
from .levels import UNIFORM_TIME, NoiseLevels
from .resampling import LossSecondMoment
from .weights import UNIFORM_WEIGHT, LearnedUncertainty, Likelihood, Weight

__all__ = ["V_PREDICTION", "Denoising"]

V_PREDICTION = V()


def scale_gradients(factor: Tensor, *parts: Tensor) -> None:
    """Multiplies the gradients [B] that reach a learned schedule through `parts` by a factor [B]."""
    for part in parts:
        if part.requires_grad:
            part.register_hook(lambda gradient: gradient * factor.to(gradient))


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
        p_uncond: probability of dropping the condition of an example; in [0, 1].

    A learned schedule is trained to reduce the variance of the bound's estimate, by the gradient of the squared loss
    (Kingma et al. 2021, arXiv 2107.00630, appendix I.2). The mean of the bound does not depend on the schedule; any other
    weighted loss would be lowered by a schedule that avoids the difficult levels.

    Raises:
        ValueError: p_uncond out of range; a parameterization or levels that the schedule's ends do not allow; a learned
            schedule with learned ends, with a weight other than the likelihood's, or with levels that do not depend on
            it; a learned uncertainty with levels that follow the losses.
    """

    model: Preconditioned

    def __init__(
        self,
        backbone: Backbone,
        schedule: Schedule,
        parameterization: Parameterization = V_PREDICTION,
        weight: Weight = UNIFORM_WEIGHT,
        levels: NoiseLevels = UNIFORM_TIME,
        p_uncond: float = 0.0,
    ):
        super().__init__()
        check_dropout(p_uncond)
        levels.check(schedule)
        if schedule.learned_ends:
            raise ValueError(
                "a schedule with learned_ends needs an objective with every term of the variational bound: "
                "objective=vdm; or take schedule.learned_ends=false"
            )
        if schedule.is_learned and not (isinstance(weight, Likelihood) and levels.in_time):
            raise ValueError(
                f"a learned schedule ({type(schedule).__name__}) needs weight=likelihood and levels that are drawn in time, "
                f"such as uniform_t; got {type(weight).__name__} and {type(levels).__name__}"
            )
        if isinstance(weight, LearnedUncertainty) and isinstance(levels, LossSecondMoment):
            raise ValueError(
                "weight learned_uncertainty cannot be used with levels loss_second_moment: it equalizes the losses of all "
                "levels and makes some negative; take levels=uniform_t or another weight"
            )
        self.model = Preconditioned(backbone, schedule, parameterization, has_null=p_uncond > 0)
        self.weight, self.levels, self.p_uncond = weight, levels, float(p_uncond)

    def forward(self, x_0: Tensor, y: Condition | None, rng: torch.Generator | Share) -> Loss:
        schedule = self.model.schedule
        t, density = self.levels(schedule, len(x_0), rng)
        log_snr = schedule.log_snr(t)
        eps = normal(x_0.shape, rng, x_0.dtype)
        error, rows = self.model.error(x_0, eps, log_snr, drop_condition(y, self.p_uncond, rng))
        error = error.square().flatten(1).mean(1)
        weighted = self.weight.weigh(error, log_snr, rows, density)
        if self.training and torch.is_grad_enabled():
            self.levels.observe(t, weighted, rng)
        loss = self.levels.importance(t).to(weighted) * weighted
        scale_gradients(2 * loss.detach(), log_snr, density)  # a learned schedule minimizes the squared loss
        return Loss(loss, {"mse": error.detach()}, log_snr.detach())

    def finish_step(self, gather: Callable[[Tensor], Tensor]) -> None:
        self.levels.finish_step(gather)
