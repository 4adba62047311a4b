"""Regression on noised data: eps, x0, v, flow and EDM are this class with another parameterization and weight."""

import torch
from torch import Tensor

from ..backbones import Backbone
from ..backbones.conditions import Condition
from ..models.parameterizations import Parameterization, V
from ..models.preconditioned import Preconditioned
from ..randomness import Share, normal
from ..runtime.ranges import check_range
from ..schedules import Schedule
from .base import LevelObjective, Loss, drop_condition
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


class Denoising(LevelObjective):
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

    A learned schedule follows the gradient of the squared loss, which reduces the variance of the bound's estimate
    (Kingma et al. 2021, arXiv 2107.00630, appendix I.2). The mean of the bound does not depend on the schedule; with any
    other weight, a schedule that avoids difficult levels would lower the loss.

    Raises:
        ValueError: a parameterization or levels that the schedule's ends do not allow; a learned schedule with learned
            ends, with another weight than the likelihood's, or with levels that are not drawn in time; a learned
            uncertainty with levels that follow the losses.
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
        self.p_uncond = check_range("p_uncond", p_uncond, "[0, 1]")
        levels.check(schedule)
        if schedule.learned_ends:
            raise ValueError(
                "learned ends need the whole variational bound: take objective=vdm, or schedule.learned_ends=false"
            )
        if schedule.is_learned and not (isinstance(weight, Likelihood) and levels.in_time):
            raise ValueError(
                f"a learned schedule ({type(schedule).__name__}) needs weight=likelihood and levels drawn in time, such as "
                f"levels=uniform_t, got {type(weight).__name__} and {type(levels).__name__}"
            )
        if isinstance(weight, LearnedUncertainty) and isinstance(levels, LossSecondMoment):
            raise ValueError(
                "weight=learned_uncertainty makes losses negative and equal at all levels, so it cannot be combined with "
                "levels=loss_second_moment: take levels=uniform_t, or another weight"
            )
        self.model = Preconditioned(backbone, schedule, parameterization, has_null=p_uncond > 0)
        self.weight, self.levels = weight, levels

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
