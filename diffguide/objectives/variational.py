"""Variational diffusion models: training on the variational bound."""

import math

import torch
from torch import Tensor

from ..backbones import Backbone
from ..backbones.conditions import Condition
from ..models.decoders import Decoder
from ..models.parameterizations import Eps, Parameterization
from ..models.preconditioned import Preconditioned
from ..randomness import Share, normal
from ..runtime.ranges import check_range, check_whole
from ..schedules import Schedule
from .base import LevelObjective, Loss, drop_condition
from .levels import UNIFORM_TIME, NoiseLevels

__all__ = ["Variational"]

EPS_PREDICTION = Eps()


class Variational(LevelObjective):
    """-log p(x) <= KL(q(z_1 | x) || p(z_1)) + E[-log p(x | z_0)] + diffusion, in bits per dimension of x.

        prior           1/2 e^log_snr(1) ||x||^2, for p(z_1) = N(0, sigma_1^2 I), which samplers start from
        reconstruction  E[-log p(x | z_0)], by the decoder
        diffusion       1/2 int ||eps - eps_hat||^2 d log_snr, from log_snr(1) to log_snr(0); of T steps
                        T / 2 E_k[expm1(log_snr(s) - log_snr(t)) ||eps - eps_hat(z_t)||^2], t = k / T, s = (k - 1) / T

    Kingma, Salimans, Poole, Ho, "Variational Diffusion Models", 2021, arXiv 2107.00630, eq. 11, 13-18. There p(z_1) is
    N(0, I), which differs by terms of e^(2 log_snr(1)).

    In continuous time the bound does not depend on the curve between the ends: there a learned schedule follows the
    gradient of the squared diffusion term, which reduces the variance of the estimate (appendix I.2). Learned ends, and a
    learned schedule in T steps, follow the gradient of the bound.

    Arguments:
        backbone: network (x, log_snr, y) -> F in the shape of x.
        schedule: noise schedule with finite ends.
        decoder: p(x | z_0).
        parameterization: what the network predicts.
        levels: distribution of the noise level.
        steps: T, at least 1; None = continuous time.
        p_uncond: probability of dropping the condition of an example; in [0, 1].

    Raises:
        ValueError: infinite ends, levels that the schedule's ends do not allow, a learned schedule with levels that are not
            drawn in time; from `forward`: data that the decoder does not take.
    """

    model: Preconditioned

    def __init__(
        self,
        backbone: Backbone,
        schedule: Schedule,
        decoder: Decoder,
        parameterization: Parameterization = EPS_PREDICTION,
        levels: NoiseLevels = UNIFORM_TIME,
        steps: int | None = None,
        p_uncond: float = 0.0,
    ):
        super().__init__()
        self.p_uncond = check_range("p_uncond", p_uncond, "[0, 1]")
        self.steps = None if steps is None else check_whole("steps", steps, 1)
        if math.isinf(schedule.log_snr_max) or math.isinf(schedule.log_snr_min):
            raise ValueError(
                "objective=vdm needs a schedule with finite ends, got log_snr "
                f"{schedule.log_snr_min:g} to {schedule.log_snr_max:g}"
            )
        levels.check(schedule)
        if (schedule.is_learned or steps is not None) and not levels.in_time:
            what = (
                f"a learned schedule ({type(schedule).__name__})"
                if schedule.is_learned
                else f"a bound of {steps} steps"
            )
            raise ValueError(
                f"{what} needs levels drawn in time, such as levels=uniform_t, got {type(levels).__name__}"
            )
        self.model = Preconditioned(backbone, schedule, parameterization, has_null=p_uncond > 0)
        self.decoder, self.levels = decoder, levels
        self.checked = False  # whether the decoder has checked data

    def check(self, x_0: Tensor) -> None:
        self.decoder.check(x_0)

    def forward(self, x_0: Tensor, y: Condition | None, rng: torch.Generator | Share) -> Loss:
        if not self.checked:
            self.decoder.check(x_0)
            self.checked = True
        schedule = self.model.schedule
        t, density = self.levels(schedule, len(x_0), rng)

        def square_gradient(gradient: Tensor) -> Tensor:
            return gradient * (2 * diffusion.detach()).to(gradient)

        log_snr, rate = schedule.log_snr_and_rate(t, None if self.steps else square_gradient)
        in_time = (density * rate.abs()).detach()  # the density of t
        weight = rate.abs() / (2 * in_time)
        if self.steps:
            k = (torch.floor(t * self.steps) + 1).clamp(max=self.steps)  # the step that holds the drawn t
            log_snr = schedule.log_snr(k / self.steps)
            weight = self.steps * torch.expm1(schedule.log_snr((k - 1) / self.steps) - log_snr) / (2 * in_time)
        eps = normal(x_0.shape, rng, x_0.dtype)
        error, rows = self.model.error(x_0, eps, log_snr, drop_condition(y, self.p_uncond, rng))
        error = (rows.e_out * error).square().flatten(1).mean(1)
        diffusion = weight.to(error) * error  # nats per dimension
        if self.training and torch.is_grad_enabled():
            self.levels.observe(t, diffusion, rng)
        ends = schedule.log_snr(torch.tensor([0.0, 1.0], dtype=torch.float64, device=t.device))
        terms = {
            "prior": 0.5 * torch.exp(ends[1]).to(x_0) * x_0.square().flatten(1).mean(1),
            "reconstruction": -self.decoder.log_prob(x_0, normal(x_0.shape, rng, x_0.dtype), ends[0]) / x_0[0].numel(),
            "diffusion": self.levels.importance(t).to(error) * diffusion,
        }
        terms = {name: value / math.log(2) for name, value in terms.items()}
        parts = {name: value.detach() for name, value in terms.items()}
        total = terms["prior"] + terms["reconstruction"] + terms["diffusion"]
        return Loss(total, parts | {"mse": error.detach()}, log_snr.detach())
