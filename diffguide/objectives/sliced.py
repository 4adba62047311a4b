"""Sliced score matching: the divergence of the score, estimated along random directions."""

import torch
from torch import Tensor

from ..backbones import Backbone
from ..backbones.conditions import Condition
from ..models.level_classifier import check_twice_differentiable
from ..models.parameterizations import Parameterization
from ..models.preconditioned import Preconditioned
from ..randomness import Share, normal
from ..runtime.ranges import check_range, check_whole
from ..schedules import Schedule
from .base import Loss, Objective, drop_condition
from .denoising import V_PREDICTION
from .levels import UNIFORM_TIME, NoiseLevels
from .resampling import LossSecondMoment

__all__ = ["Sliced"]


class Sliced(Objective):
    """sigma^2 (v . grad_x (v . s) + ||s||^2 / 2) / D  at x_t = alpha x_0 + sigma eps,  s = -eps_hat / sigma,  v ~ N(0, I).

    Song, Garg, Shi, Ermon, "Sliced Score Matching", 2019, arXiv 1905.07868, eq. 8 (the variance-reduced form), over noise
    levels weighted by sigma^2. Its mean is that of ||eps_hat - eps||^2 / (2 D) minus 1/2, so its expected gradient is half
    that of the eps objective, with more variance and two backward passes instead of one. Meant for comparison. D is the
    number of elements of one example.

    Arguments:
        backbone: network (x, log_snr, y) -> F in the shape of x, twice differentiable: not compiled, and with
            double_differentiable: true where it has attention.
        schedule: noise schedule, not a learned one.
        parameterization: what the network predicts.
        levels: distribution of the noise level.
        slices: directions v per example, at least 1.
        p_uncond: probability of dropping the condition of an example; in [0, 1].

    Raises:
        ValueError: a learned schedule, levels that follow the losses, attention that cannot be differentiated twice, or a
            parameterization or levels that the schedule's ends do not allow.
    """

    compilable = False
    model: Preconditioned

    def __init__(
        self,
        backbone: Backbone,
        schedule: Schedule,
        parameterization: Parameterization = V_PREDICTION,
        levels: NoiseLevels = UNIFORM_TIME,
        slices: int = 1,
        p_uncond: float = 0.0,
    ):
        super().__init__()
        self.p_uncond = check_range("p_uncond", p_uncond, "[0, 1]")
        self.slices = check_whole("slices", slices, 1)
        levels.check(schedule)
        if isinstance(levels, LossSecondMoment):
            raise ValueError("levels=loss_second_moment needs a loss that is not negative; take levels=uniform_t")
        if schedule.is_learned:
            raise ValueError(f"objective=sliced needs a fixed schedule, got {type(schedule).__name__}")
        check_twice_differentiable(backbone, "sliced score matching")
        self.model = Preconditioned(backbone, schedule, parameterization, has_null=p_uncond > 0)
        self.levels = levels

    def forward(self, x_0: Tensor, y: Condition | None, rng: torch.Generator | Share) -> Loss:
        schedule = self.model.schedule
        learning = torch.is_grad_enabled()
        t, _ = self.levels(schedule, len(x_0), rng)
        alpha, sigma = (a.to(x_0) for a in schedule.alpha_sigma(t, x_0.ndim))
        x_t = alpha * x_0 + sigma * normal(x_0.shape, rng, x_0.dtype)
        y = drop_condition(y, self.p_uncond, rng)
        with torch.enable_grad():  # the loss holds a gradient, in evaluation too
            x_t.requires_grad_()
            eps = self.model(x_t, t, y).eps
            divergence = torch.zeros((), dtype=eps.dtype, device=eps.device)
            for _ in range(self.slices):
                v = normal(x_0.shape, rng, eps.dtype)
                (slope,) = torch.autograd.grad((v * eps).sum(), x_t, create_graph=learning, retain_graph=True)
                divergence = divergence + (v * slope).flatten(1).mean(1) / self.slices
        sigma = sigma.reshape(-1)
        loss = eps.square().flatten(1).mean(1) / 2 - sigma * divergence
        loss = loss if learning else loss.detach()
        return Loss(loss, {"sliced": loss.detach()}, schedule.log_snr(t).detach())
