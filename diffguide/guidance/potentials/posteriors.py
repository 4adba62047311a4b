"""Posterior sampling for linear inverse problems: DPS, pseudo-inverse guidance, RePaint."""

from collections import Counter
from collections.abc import Sequence
from typing import Self, TypeVar

import torch
from torch import Tensor

from ...backbones.conditions import Condition
from ...models.protocols import Denoiser, Prediction, SamplingError
from ...randomness import Noise
from ...runtime.ranges import check_range
from ...schedules import EVERYWHERE, Schedule
from ..base import per_row_float, repeat_noise
from .base import BayesGuidance, PotentialGuidanceBase
from .inverse import Inpaint, LinearProblem
from .values import SMOOTHING_DRAW, LogPotential, build_potential, get_name

__all__ = ["DPS", "PiGDM", "RePaint"]

Problem = TypeVar("Problem", bound=LogPotential)


def choose_problem(guidance: str, potential: LogPotential | None, kind: type[Problem]) -> Problem:
    """The inverse problem that is given, `Inpaint()` for None; ValueError for one of another kind than the method needs."""
    chosen = Inpaint() if potential is None else potential
    if not isinstance(chosen, kind):
        raise ValueError(
            f"{guidance} needs a potential that is {kind.__name__}, got {get_name(build_potential(chosen))}; take "
            "guidance/potential=inpaint, super_resolution or deblur, or another guidance, such as mpgd"
        )
    return chosen


def denoised_variance(schedule: Schedule, t: Tensor, v: float, x: Tensor) -> Tensor:
    """v n^2 / (v + n^2), n = sigma / alpha: the variance of x_0 given x_t for data N(m, v I), shaped to multiply x."""
    level = schedule.noise_level(t) ** 2
    return per_row_float(v * level / (v + level), x)


class DPS(PotentialGuidanceBase):
    """x_0 - zeta grad_{x_t} |y - A x0_hat| / alpha, eps unchanged: every step shifts x by -zeta times a unit-free gradient.

    Chung, Kim, McCann, Klasky, Ye, "Diffusion Posterior Sampling for General Noisy Inverse Problems", 2023, arXiv
    2209.14687, algorithm 1 with a step divided by |y - A x0_hat|, as in the authors' code: the gradient of the residual's
    norm (that of its square, divided by the norm, is twice as large). The measurement noise does not enter. There x_s moves
    by zeta grad, here by zeta (alpha_s / alpha_t) grad, which does not require s. Bayes' rule with p(y | x0_hat) is
    guidance=potential.

    Arguments:
        denoiser: one whose prediction can be differentiated.
        potential: the inverse problem; None = `Inpaint()`.
        scale: zeta, per step; 0 = off; 0.3 to 1 in the paper, with 1000 steps.
        interval: (lo, hi] in noise level sigma / alpha.

    Raises:
        ValueError: a potential that is not a linear inverse problem.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        potential: LinearProblem | None = None,
        scale: float = 0.5,
        interval: Sequence[float] = EVERYWHERE,
    ):
        potential = choose_problem("guidance=dps", potential, LinearProblem)
        super().__init__(denoiser, potential, scale, interval)
        self.problem = potential

    def value(self, x_0: Tensor, t: Tensor, y: Condition | None) -> Tensor:
        return -self.problem.distance(x_0)

    def guide(self, x_t: Tensor, t: Tensor, y: Condition | None, graph: bool) -> tuple[Prediction, Prediction]:
        prediction, gradient = self.differentiate_network(x_t, t, y, graph)
        shift = self.scale / self.scales(t, gradient)[0] * gradient
        return prediction, Prediction(prediction.x_0 + shift, prediction.eps)


class PiGDM(BayesGuidance):
    """Bayes' rule with p(y | x_t) = N(y; A x0_hat, r^2 A A^T + s^2), r^2 = v n^2 / (v + n^2), n = sigma / alpha.

    Song, Vahdat, Mardani, Kautz, "Pseudoinverse-Guided Diffusion Models for Inverse Problems", ICLR 2023,
    section 3, where v = 1. Exact on data N(m, v I), where r^2 is the variance of x_0 given x_t.

    Arguments:
        denoiser: one whose prediction can be differentiated.
        potential: the inverse problem; None = `Inpaint()`.
        scale: w; 0 = off, 1 = Bayes.
        interval: (lo, hi] in noise level sigma / alpha.
        data_variance: v, prior variance of the data; positive, 1 in the paper.

    Raises:
        ValueError: a potential that is not a linear inverse problem.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        potential: LinearProblem | None = None,
        scale: float = 1.0,
        interval: Sequence[float] = EVERYWHERE,
        data_variance: float = 1.0,
    ):
        potential = choose_problem("pseudo-inverse guidance", potential, LinearProblem)
        super().__init__(denoiser, potential, scale, interval)
        self.problem = potential
        self.data_variance = check_range("data_variance", data_variance, "(0, inf)")

    def value(self, x_0: Tensor, t: Tensor, y: Condition | None) -> Tensor:
        return self.problem.log_likelihood(x_0, denoised_variance(self.schedule, t, self.data_variance, x_0))


class RePaint(PotentialGuidanceBase):
    """Known values are the measurement, noised to every level: x_t[m] = alpha y + sigma z.

    Lugmayr et al., "RePaint: Inpainting using Denoising Diffusion Probabilistic Models", 2022, arXiv 2201.09865, eq. 8: the
    denoiser gets x_t with the known values replaced, and x_0 = y and eps = z are returned there. Their resampling is
    sampler=time_travel. The final known values are those of the measurement, with its noise.

    Arguments:
        denoiser: any.
        potential: an inpainting problem; None = `Inpaint()`.
        interval: (lo, hi] in noise level sigma / alpha; below lo the known values are free.
        fresh: whether z is drawn anew at every level, as in the paper, for samplers of one evaluation per step (ddim, ddpm);
            otherwise each sample keeps its z, and every ODE solver gets a smooth path.

    Raises:
        ValueError: a potential that is not an inpainting problem.
        SamplingError: fresh noise with a sampler that evaluates at t [B] (dopri5).
    """

    noise: Noise | None = None
    top: Tensor
    visits: Counter[float]

    def __init__(
        self,
        denoiser: Denoiser,
        potential: Inpaint | None = None,
        interval: Sequence[float] = EVERYWHERE,
        fresh: bool = True,
    ):
        potential = choose_problem("guidance=repaint", potential, Inpaint)
        super().__init__(denoiser, potential, 1.0, interval)
        self.problem, self.fresh = potential, fresh

    def start(self, noise: Noise | None, times: Tensor) -> Self:
        begun = super().start(noise, times)
        if noise is None:
            raise ValueError("RePaint noises the known values: pass noise to the run")
        begun.noise = noise
        begun.top = times[0]
        begun.visits = Counter()
        return begun

    def next_draw(self, t: Tensor) -> tuple[Tensor, int]:
        """Level and number of the draw for an evaluation at t; time travel visits a level more than once."""
        if not self.fresh:
            return self.top, SMOOTHING_DRAW
        self.visits[float(t)] += 1
        return t, SMOOTHING_DRAW + self.visits[float(t)]

    def guide(self, x_t: Tensor, t: Tensor, y: Condition | None, graph: bool) -> tuple[Prediction, Prediction]:
        if self.noise is None:
            raise ValueError("RePaint draws noise per run: call start(noise, times) first")
        if self.fresh and t.ndim:
            raise SamplingError(
                "guidance=repaint draws fresh noise at every level, so it has no ODE: set guidance.fresh=false, or take "
                "sampler=ddim or ddpm"
            )
        self.problem.residual(x_t)  # raises SamplingError for another shape
        z = repeat_noise(self.noise.normal(*self.next_draw(t)), x_t, "guidance=repaint")
        alpha, sigma = self.scales(t, x_t)
        known = self.problem.known.to(x_t.device)
        data = self.problem.measurement.to(x_t)
        prediction = self.denoiser(torch.where(known, alpha * data + sigma * z, x_t), t, y)
        return prediction, Prediction(torch.where(known, data, prediction.x_0), torch.where(known, z, prediction.eps))
