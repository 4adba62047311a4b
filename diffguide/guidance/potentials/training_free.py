"""Guidance by potentials of clean data: universal guidance, MPGD, FreeDoM, LGD, and TFG, which unifies them.

Some methods change x_0 and keep eps: in a DDIM step from t to s, x_0 + d and unchanged eps shift x_s by alpha_s d.
"""

import math
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from ...backbones.conditions import Condition
from ...models.protocols import Denoiser, Prediction
from ...randomness import Noise
from ...runtime.ranges import check_range, check_whole
from ...schedules import EVERYWHERE
from ..base import per_row_float, repeat_noise
from .base import BRIGHTNESS, BayesGuidance, PotentialGuidanceBase
from .steps import INCREASING_STEPS, StepWeights
from .values import SMOOTHING_DRAW, LogPotential

__all__ = ["FreeDoM", "LGD", "MPGD", "SmoothedPotentialGuidance", "TFG", "UniversalGuidance"]


class MPGD(PotentialGuidanceBase):
    """x_0 + w grad_{x_0} f(x0_hat), eps unchanged: a gradient step on the clean estimate, no gradient of the network.

    He et al., "Manifold Preserving Guided Diffusion", 2024, arXiv 2311.16424, algorithm 1 (without its autoencoder), whose
    c_t is w.

    Arguments:
        denoiser: any.
        potential: f(x0_hat, y) -> [B].
        scale: w, the step; 0 = off. With a measurement of noise s (inpaint, ...), s^2 puts A x_0 on the measurement.
        interval: (lo, hi] in noise level sigma / alpha.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        potential: LogPotential = BRIGHTNESS,
        scale: float = 0.1,
        interval: Sequence[float] = EVERYWHERE,
    ):
        super().__init__(denoiser, potential, scale, interval)

    def guide(self, x_t: Tensor, t: Tensor, y: Condition | None, graph: bool) -> tuple[Prediction, Prediction]:
        prediction = self.denoiser(x_t, t, y)
        shift = self.scale * self.differentiate(prediction.x_0, t, y, graph)
        return prediction, Prediction(prediction.x_0 + shift, prediction.eps)


class FreeDoM(PotentialGuidanceBase):
    """x_0 + w grad_{x_t} f(x0_hat), eps unchanged: x_s moves by alpha w grad, with the step rho_t = w alpha_t.

    Yu et al., "FreeDoM: Training-Free Energy-Guided Conditional Diffusion Model", 2023, arXiv 2303.09833, algorithm 1, with
    f = -energy. Its time travel is a sampler: sampler=time_travel.

    Arguments:
        denoiser: one whose prediction can be differentiated.
        potential: f(x0_hat, y) -> [B].
        scale: w, the step; 0 = off.
        interval: (lo, hi] in noise level sigma / alpha.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        potential: LogPotential = BRIGHTNESS,
        scale: float = 0.2,
        interval: Sequence[float] = EVERYWHERE,
    ):
        super().__init__(denoiser, potential, scale, interval)

    def guide(self, x_t: Tensor, t: Tensor, y: Condition | None, graph: bool) -> tuple[Prediction, Prediction]:
        prediction, gradient = self.differentiate_network(x_t, t, y, graph)
        return prediction, Prediction(prediction.x_0 + self.scale * gradient, prediction.eps)


class UniversalGuidance(PotentialGuidanceBase):
    """Forward guidance through the network, and m gradient steps on x_0 (backward guidance), both consistent with eps.

        x_0 + w (sigma^2 / alpha) g + D,  eps - w sigma g - (alpha / sigma) D,  D from D + backward_rate grad f(x0_hat + D)

    Bansal et al., "Universal Guidance for Diffusion Models", 2023, arXiv 2302.07121, algorithm 1, with f =
    -loss. Their self-recurrence is sampler=time_travel.

    Arguments:
        denoiser: one whose prediction can be differentiated, unless scale is 0.
        potential: f(x0_hat, y) -> [B].
        scale: w, of the forward guidance; 0 = backward steps alone.
        interval: (lo, hi] in noise level sigma / alpha.
        backward_steps: m, gradient steps from D = 0; 0 = forward guidance alone.
        backward_rate: step on x_0, times the gradient; positive.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        potential: LogPotential = BRIGHTNESS,
        scale: float = 1.0,
        interval: Sequence[float] = EVERYWHERE,
        backward_steps: int = 1,
        backward_rate: float = 0.01,
    ):
        super().__init__(denoiser, potential, scale, interval)
        self.backward_steps = check_whole("backward_steps", backward_steps, 0, 1000)
        self.backward_rate = check_range("backward_rate", backward_rate, "(0, inf)")

    @property
    def off(self) -> bool:
        return self.scale == 0 and self.backward_steps == 0

    def guide(self, x_t: Tensor, t: Tensor, y: Condition | None, graph: bool) -> tuple[Prediction, Prediction]:
        if self.scale == 0:
            plain = guided = self.denoiser(x_t, t, y)
        else:
            plain, gradient = self.differentiate_network(x_t, t, y, graph)
            guided = self.apply_bayes(plain, t, gradient)
        moved = ascend(self, plain.x_0, t, y, self.backward_steps, self.backward_rate, graph) - plain.x_0
        alpha, sigma = self.scales(t, moved)
        return plain, Prediction(guided.x_0 + moved, guided.eps - alpha / sigma * moved)


def ascend(
    guidance: PotentialGuidanceBase,
    x_0: Tensor,
    t: Tensor,
    y: Condition | None,
    steps: int,
    rate: Tensor | float,
    graph: bool,
) -> Tensor:
    """x_0 after `steps` steps of gradient ascent on the log-potential."""
    for _ in range(steps):
        x_0 = x_0 + rate * guidance.differentiate(x_0, t, y, graph)
    return x_0


class SmoothedPotentialGuidance(PotentialGuidanceBase):
    """f~(x_0) = log (1/n) sum_i exp f(x_0 + r z_i): a potential smoothed by n noised copies of x0_hat.

    The z_i are drawn once per sample and run, so that f~ is a smooth function of x_t and t for every solver. Subclasses
    define r, `width`.
    """

    copies: int
    draws: tuple[Tensor, ...] | None = None

    def start(self, noise: Noise | None, times: Tensor) -> Self:
        fresh = super().start(noise, times)
        if self.copies and not self.off:
            if noise is None:
                raise ValueError(f"{type(self).__name__} smooths with noise: pass noise to the run")
            fresh.draws = tuple(noise.normal(times[0], SMOOTHING_DRAW + i) for i in range(self.copies))
        return fresh

    def width(self, t: Tensor) -> Tensor:
        """r, in the shape of t."""
        raise NotImplementedError

    def value(self, x_0: Tensor, t: Tensor, y: Condition | None) -> Tensor:
        if not self.copies:
            return super().value(x_0, t, y)
        if self.draws is None:
            raise ValueError(f"{type(self).__name__} draws noise per run: call start(noise, times) first")
        r = per_row_float(self.width(t), x_0)
        drawn = (repeat_noise(z, x_0, type(self).__name__) for z in self.draws)
        values = [self.evaluate(x_0 + r * z, y) for z in drawn]
        return torch.stack(values).logsumexp(0) - math.log(self.copies)


class LGD(SmoothedPotentialGuidance, BayesGuidance):
    """Bayes' rule with log (1/n) sum_i exp f(x0_hat + r_t z_i), r_t = sigma / sqrt(alpha^2 + sigma^2), through the network.

    Song, Zhang, Yin, Mardani, Liu, Kautz, Chen, Vahdat, "Loss-Guided Diffusion Models for Plug-and-Play Controllable
    Generation", ICML 2023 (LGD-MC): N(x0_hat, r_t^2) instead of p(x_0 | x_t), exact for data N(m, I) as n
    grows.

    Arguments:
        denoiser: one whose prediction can be differentiated.
        potential: f(x_0, y) -> [B].
        scale: w; 0 = off, 1 = Bayes.
        interval: (lo, hi] in noise level sigma / alpha.
        copies: n, evaluations of the potential; at least 1.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        potential: LogPotential = BRIGHTNESS,
        scale: float = 1.0,
        interval: Sequence[float] = EVERYWHERE,
        copies: int = 8,
    ):
        super().__init__(denoiser, potential, scale, interval)
        self.copies = check_whole("copies", copies, 1, 1000)

    def explain_no_law(self) -> str | None:
        return "guidance=lgd draws noise for each value; take guidance=potential"

    def width(self, t: Tensor) -> Tensor:
        return torch.sigmoid(-self.schedule.log_snr(t)).sqrt()


class TFG(SmoothedPotentialGuidance):
    """x_0 + rho grad_{x_t} f~(x0_hat) / alpha + D, eps unchanged: variance guidance and mean guidance of one smoothed f~.

        D from 0 by `iterations` steps D + mu grad_{x_0} f~(x0_hat + D),  r_t = smoothing sigma_t / sqrt(alpha_t^2 + sigma_t^2)

    Ye et al., "TFG: Unified Training-Free Guidance for Diffusion Models", 2024, arXiv 2409.15761, algorithm 1, where rho and
    mu are those of the step: its DDIM step adds rho grad / sqrt(alpha_t) and sqrt(abar_{t-1}) D to x_{t-1}, which alpha_s
    times this shift is. DPS is mu = 0; MPGD rho = 0, 1 iteration; FreeDoM mu = 0 and sampler=time_travel; all without
    smoothing. Its recurrence is sampler=time_travel.

    Arguments:
        denoiser: one whose prediction can be differentiated, unless rho is 0.
        potential: f(x_0, y) -> [B].
        scale: multiplies rho and mu; 0 = off.
        interval: (lo, hi] in noise level sigma / alpha.
        rho: step of the gradient through the network, at least 0, the mean over the steps of a run.
        mu: step of the gradient on x_0, at least 0, the mean over the steps of a run.
        iterations: steps on x_0, at least 0.
        copies: of x0_hat, over which f~ averages; 0 = f itself.
        smoothing: width of their noise at pure noise, at least 0.
        rho_steps, mu_steps: how rho and mu are distributed over the steps of a run.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        potential: LogPotential = BRIGHTNESS,
        scale: float = 1.0,
        interval: Sequence[float] = EVERYWHERE,
        rho: float = 0.1,
        mu: float = 0.1,
        iterations: int = 4,
        copies: int = 4,
        smoothing: float = 0.01,
        rho_steps: StepWeights = INCREASING_STEPS,
        mu_steps: StepWeights = INCREASING_STEPS,
    ):
        super().__init__(denoiser, potential, scale, interval)
        self.rho, self.mu = check_range("rho", rho, "[0, inf)"), check_range("mu", mu, "[0, inf)")
        self.smoothing = check_range("smoothing", smoothing, "[0, inf)")
        self.iterations = check_whole("iterations", iterations, 0, 1000)
        self.copies = check_whole("copies", copies, 0, 1000)
        self.rho_steps, self.mu_steps = rho_steps, mu_steps

    def start(self, noise: Noise | None, times: Tensor) -> Self:
        fresh = super().start(noise, times)
        fresh.rho_steps = self.rho_steps.start(self.schedule, times)
        fresh.mu_steps = self.mu_steps.start(self.schedule, times)
        return fresh

    @property
    def off(self) -> bool:
        return self.scale == 0 or (self.rho == 0 and (self.mu == 0 or self.iterations == 0))

    def width(self, t: Tensor) -> Tensor:
        return self.smoothing * torch.sigmoid(-self.schedule.log_snr(t)).sqrt()

    def guide(self, x_t: Tensor, t: Tensor, y: Condition | None, graph: bool) -> tuple[Prediction, Prediction]:
        if self.rho == 0:
            plain = self.denoiser(x_t, t, y)
            x_0 = plain.x_0
        else:
            plain, gradient = self.differentiate_network(x_t, t, y, graph)
            rho = self.scale * self.rho * per_row_float(self.rho_steps(t), gradient)
            x_0 = plain.x_0 + rho / self.scales(t, gradient)[0] * gradient
        steps = self.iterations if self.mu else 0
        mu = self.scale * self.mu * per_row_float(self.mu_steps(t), x_0) if steps else 0.0
        moved = ascend(self, plain.x_0, t, y, steps, mu, graph) - plain.x_0
        return plain, Prediction(x_0 + moved, plain.eps)
