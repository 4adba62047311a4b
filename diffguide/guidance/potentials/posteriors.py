"""Posterior sampling for linear inverse problems: DPS, pseudo-inverse guidance, RePaint."""

import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from ...backbones.conditions import Condition
from ...models.protocols import Denoiser, Prediction, SamplingError
from .base import PotentialGuidanceBase, over_rows, per_sample
from .inverse import Inpaint, LinearProblem
from .training_free import DRAWS
from .values import made, name_of

__all__ = ["DPS", "PiGDM", "RePaint"]


def checked(guidance: str, potential: object, kind: type) -> None:
    """Raises ValueError where a potential is not of the kind that a method needs."""
    if not isinstance(potential, kind):
        raise ValueError(
            f"{guidance} needs a potential that is {kind.__name__}, got {name_of(made(potential))}; take "
            "guidance/potential=inpaint, super_resolution or deblur, or another guidance, such as mpgd"
        )


class DPS(PotentialGuidanceBase):
    """x_0 - zeta grad_{x_t} |y - A x0_hat| / alpha, eps as it is: every step moves x by -zeta times a unit-free gradient.

    Chung, Kim, McCann, Klasky, Ye, "Diffusion Posterior Sampling for General Noisy Inverse Problems", 2023, arXiv
    2209.14687, algorithm 1 with a step over |y - A x0_hat|, as the authors' code has it: the gradient of the residual's
    norm (that of its square, over it, is twice that). The measurement's noise does not enter. There x_s moves by zeta
    grad, here by zeta (alpha_s / alpha_t) grad, which a denoiser can say without knowing s. The likelihood that it stands
    for, p(y | x0_hat) with Bayes' factor, is guidance=potential.

    Arguments:
        denoiser: one whose prediction can be differentiated.
        potential: the inverse problem.
        scale: zeta, per step; 0 = off; 0.3 to 1 in the paper, with 1000 steps.
        interval: (lo, hi] in noise level sigma / alpha.

    Raises:
        ValueError: see `PotentialGuidanceBase`; a potential that is no linear inverse problem.
    """

    def __init__(self, denoiser: Denoiser, potential: LinearProblem, scale: float, interval: Sequence[float]):
        checked("guidance=dps", potential, LinearProblem)
        super().__init__(denoiser, potential, scale, interval)

    def value(self, x_0: Tensor, t: Tensor, y: Condition | None) -> Tensor:
        return -self.potential.distance(x_0)

    def guided(self, x_t: Tensor, t: Tensor, y: Condition | None, graph: bool) -> tuple[Prediction, Prediction]:
        prediction, gradient = self.through(x_t, t, y, graph)
        shift = self.scale / self.scales(t, gradient)[0] * gradient
        return prediction, Prediction(prediction.x_0 + shift, prediction.eps)


class PiGDM(PotentialGuidanceBase):
    """Bayes' rule with p(y | x_t) = N(y; A x0_hat, r^2 A A^T + s^2), r^2 = v n^2 / (v + n^2), n = sigma / alpha.

    Song, Vahdat, Mardani, Kautz, "Pseudoinverse-Guided Diffusion Models for Inverse Problems", ICLR 2023,
    section 3, where v = 1. Exact on data N(m, v I), where r^2 is the variance of x_0 given x_t.

    Arguments:
        denoiser: one whose prediction can be differentiated.
        potential: the inverse problem.
        scale: w; 0 = off, 1 = Bayes.
        interval: (lo, hi] in noise level sigma / alpha.
        data_variance: v, of the data around what is known of them; positive, 1 in the paper.

    Raises:
        ValueError: see `PotentialGuidanceBase`; a potential that is no linear inverse problem; a variance out of range.
    """

    def __init__(
        self, denoiser: Denoiser, potential: LinearProblem, scale: float, interval: Sequence[float],
        data_variance: float,
    ):  # fmt: skip
        checked("pseudo-inverse guidance", potential, LinearProblem)
        super().__init__(denoiser, potential, scale, interval)
        if not 0 < data_variance < math.inf:
            raise ValueError(f"data_variance must be positive, got {data_variance}")
        self.data_variance = float(data_variance)

    def value(self, x_0: Tensor, t: Tensor, y: Condition | None) -> Tensor:
        v, level = self.data_variance, self.schedule.noise_level(t) ** 2
        return self.potential.log_likelihood(x_0, over_rows(v * level / (v + level), x_0))

    def guided(self, x_t: Tensor, t: Tensor, y: Condition | None, graph: bool) -> tuple[Prediction, Prediction]:
        prediction, gradient = self.through(x_t, t, y, graph)
        return prediction, self.bayes(prediction, t, gradient)


class RePaint(PotentialGuidanceBase):
    """Known values are those of the measurement, noised to every level: x_t[m] = alpha y + sigma z.

    Lugmayr et al., "RePaint: Inpainting using Denoising Diffusion Probabilistic Models", 2022, arXiv 2201.09865, eq. 8: the
    denoiser sees x_t with the known values replaced, and answers x_0 = y and eps = z there. Their resampling is
    sampler=time_travel. At the end the known values are the measurement's, whatever its noise.

    Arguments:
        denoiser: any.
        potential: an inpainting problem.
        interval: (lo, hi] in noise level sigma / alpha; below lo the known values are let go.
        fresh: whether z is another one at every level, as in the paper, which suits samplers of one evaluation a step
            (ddim, ddpm); otherwise each sample keeps its z, and every solver of the ODE sees a smooth path.

    Raises:
        ValueError: see `PotentialGuidanceBase`; a potential that is no inpainting problem. Later: fresh noise under a sampler
            whose rows are at levels of their own (dopri5).
    """

    noise, top, visits = None, None, None

    def __init__(self, denoiser: Denoiser, potential: Inpaint, interval: Sequence[float], fresh: bool):
        checked("guidance=repaint", potential, Inpaint)
        super().__init__(denoiser, potential, 1.0, interval)
        self.fresh = fresh

    def start(self, noise, times: Tensor) -> "RePaint":
        begun = super().start(noise, times)
        if noise is None:
            raise ValueError("RePaint noises what is known: the run must have noise")
        begun.noise, begun.top, begun.visits = noise, times[0], Counter()
        return begun

    def draw(self, t: Tensor) -> tuple[Tensor, int]:
        """Level and number of the draw for an evaluation at t: time travel comes to a level more than once."""
        if not self.fresh:
            return self.top, DRAWS
        self.visits[float(t)] += 1
        return t, DRAWS + self.visits[float(t)]

    def guided(self, x_t: Tensor, t: Tensor, y: Condition | None, graph: bool) -> tuple[Prediction, Prediction]:
        if self.noise is None:
            raise ValueError("RePaint draws noise of a run: call start(noise, times) first")
        if self.fresh and t.ndim:
            raise SamplingError(
                "guidance=repaint draws fresh noise at every level, so it has no ODE: say guidance.fresh=false, or take "
                "sampler=ddim or ddpm"
            )
        self.potential.residual(x_t)  # for its message, should the shapes differ
        z = per_sample(self.noise.normal(*self.draw(t)), x_t, "guidance=repaint")
        alpha, sigma = self.scales(t, x_t)
        known, data = self.potential.known.to(x_t.device), self.potential.measurement.to(x_t)
        prediction = self.denoiser(torch.where(known, alpha * data + sigma * z, x_t), t, y)
        return prediction, Prediction(torch.where(known, data, prediction.x_0), torch.where(known, z, prediction.eps))
