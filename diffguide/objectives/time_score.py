"""Conditional time score matching: a regression on how the log-density of one example changes over the noise levels."""

import torch
from torch import Tensor

from ..backbones import Backbone
from ..backbones.conditions import Condition
from ..models.level_energy import TimeScore, unit_scales
from ..randomness import Share, normal
from ..runtime.ranges import check_range
from ..schedules import Schedule
from .base import LevelObjective, Loss, drop_condition
from .levels import UNIFORM_TIME, NoiseLevels

__all__ = ["ConditionalTimeScore"]


class ConditionalTimeScore(LevelObjective):
    """(F - F*)^2,  F* = (a (D - ||eps||^2) + b <eps, x_0>) / sqrt(D (2 a^2 + v b^2)),  z = a x_0 + b eps, a^2 + b^2 = 1.

    F* is the derivative by log-SNR of log N(z; a x_0, b^2 I) divided by its deviation for ||x_0||^2 = v D; its mean given z is
    that of log p. No second derivative, one pass a step. The log-density is the integral over the levels, from N(0, I).

    Yu, Klami, Hyvarinen, Korba, Chehab, "Density Ratio Estimation with Conditional Probability Paths", 2025, arXiv
    2502.02300: CTSM of the variance-preserving path with the weight of the objective's variance, as in the authors' code, where
    the factor v is 1 and a is uniform.

    Arguments:
        backbone: network (z, log_snr, y) -> [B, 1].
        schedule: noise schedule with finite ends that ends in almost pure noise.
        levels: distribution of the noise level.
        nodes: of the integral, 2 to 1000.
        data_variance: v, E ||x_0||^2 / D, above 0.
        p_uncond: probability of dropping the condition of an example; in [0, 1].

    Raises:
        ValueError: a backbone or schedule that `TimeScore` rejects.
    """

    compilable = False
    model: TimeScore

    def __init__(
        self,
        backbone: Backbone,
        schedule: Schedule,
        levels: NoiseLevels = UNIFORM_TIME,
        nodes: int = 32,
        data_variance: float = 1.0,
        p_uncond: float = 0.0,
    ):
        super().__init__()
        self.p_uncond = check_range("p_uncond", p_uncond, "[0, 1]")
        levels.check(schedule)
        self.model = TimeScore(backbone, schedule, p_uncond > 0, nodes, data_variance)
        self.levels = levels

    def forward(self, x_0: Tensor, y: Condition | None, rng: torch.Generator | Share) -> Loss:
        t, _ = self.levels(self.model.schedule, len(x_0), rng)
        log_snr = self.model.schedule.log_snr(t)
        eps = normal(x_0.shape, rng, x_0.dtype)
        y = drop_condition(y, self.p_uncond, rng)
        a, b = unit_scales(log_snr, x_0)
        size = x_0[0].numel()
        target = (a * (1 - eps.square()) + b * eps * x_0).flatten(1).sum(1)
        scale = 2 * self.model.deviation(log_snr, size).to(x_0) / a.flatten()
        loss = (self.model.evaluate(a * x_0 + b * eps, log_snr, y) - target / scale).square()
        if self.training and torch.is_grad_enabled():
            self.levels.observe(t, loss.detach(), rng)
        return Loss(self.levels.importance(t).to(loss) * loss, {}, log_snr)
