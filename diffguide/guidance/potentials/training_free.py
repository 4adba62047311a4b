"""Guidance by potentials that were trained on clean data: universal guidance, MPGD, FreeDoM, LGD, and TFG, their union.

Some move x_0 and keep eps: the step then re-noises along the network's own direction. With the DDIM step from t to s,
x_0 + d and eps as it is move x_s by alpha_s d.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...backbones.conditions import Condition
from ...models.protocols import Denoiser, Prediction
from .base import PotentialGuidanceBase, over_rows, per_sample
from .steps import EvenSteps, StepWeights
from .values import LogPotential

__all__ = ["FreeDoM", "LGD", "MPGD", "Smoothed", "TFG", "UniversalGuidance"]

DRAWS = 2**36  # the first of the draws that smoothing uses: neither samplers nor their visits count so far


EVEN = EvenSteps()


def whole(name: str, value: int, least: int) -> int:
    """A whole number from `least` to 1000.

    Raises:
        ValueError: any other number.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= 1000:
        raise ValueError(f"{name} must be a whole number from {least} to 1000, got {value!r}")
    return value


class MPGD(PotentialGuidanceBase):
    """x_0 + w grad_{x_0} f(x0_hat), eps as it is: a gradient step on the clean estimate, no gradient of the network.

    He et al., "Manifold Preserving Guided Diffusion", 2024, arXiv 2311.16424, algorithm 1 (without its autoencoder), whose
    c_t is w.

    Arguments:
        denoiser: any.
        potential: f(x0_hat, y) -> [B].
        scale: w, the step; 0 = off. With a measurement of noise s (inpaint, ...), s^2 puts A x_0 on the measurement.
        interval: (lo, hi] in noise level sigma / alpha.

    Raises:
        ValueError: see `PotentialGuidanceBase`.
    """

    def guided(self, x_t: Tensor, t: Tensor, y: Condition | None, graph: bool) -> tuple[Prediction, Prediction]:
        prediction = self.denoiser(x_t, t, y)
        shift = self.scale * self.slope(prediction.x_0, t, y, graph)
        return prediction, Prediction(prediction.x_0 + shift, prediction.eps)


class FreeDoM(PotentialGuidanceBase):
    """x_0 + w grad_{x_t} f(x0_hat), eps as it is: x_s moves by alpha w grad, with the step rho_t = w alpha_t.

    Yu et al., "FreeDoM: Training-Free Energy-Guided Conditional Diffusion Model", 2023, arXiv 2303.09833, algorithm 1, with
    f = -energy. Its time travel is a sampler: sampler=time_travel.

    Arguments:
        denoiser: one whose prediction can be differentiated.
        potential: f(x0_hat, y) -> [B].
        scale: w, the step; 0 = off.
        interval: (lo, hi] in noise level sigma / alpha.

    Raises:
        ValueError: see `PotentialGuidanceBase`.
    """

    def guided(self, x_t: Tensor, t: Tensor, y: Condition | None, graph: bool) -> tuple[Prediction, Prediction]:
        prediction, gradient = self.through(x_t, t, y, graph)
        return prediction, Prediction(prediction.x_0 + self.scale * gradient, prediction.eps)


class UniversalGuidance(PotentialGuidanceBase):
    """Forward guidance through the network, and m gradient steps on x_0 (backward guidance), both told to eps.

        x_0 + w (sigma^2 / alpha) g + D,  eps - w sigma g - (alpha / sigma) D,  D from D + backward_rate grad f(x0_hat + D)

    Bansal et al., "Universal Guidance for Diffusion Models", 2023, arXiv 2302.07121, algorithm 1, with f =
    -loss. Their self-recurrence is sampler=time_travel.

    Arguments:
        denoiser: one whose prediction can be differentiated, unless scale is 0.
        potential: f(x0_hat, y) -> [B].
        scale: w, of the forward guidance; 0 = backward steps alone.
        interval: (lo, hi] in noise level sigma / alpha.
        backward_steps: m, gradient steps from D = 0; 0 = forward guidance alone.
        backward_rate: length of such a step, times the gradient; positive.

    Raises:
        ValueError: see `PotentialGuidanceBase`; steps or a rate out of range.
    """

    def __init__(
        self, denoiser: Denoiser, potential: LogPotential, scale: float, interval: Sequence[float], backward_steps: int,
        backward_rate: float,
    ):  # fmt: skip
        super().__init__(denoiser, potential, scale, interval)
        if not 0 < backward_rate < math.inf:
            raise ValueError(f"backward_rate must be positive, got {backward_rate}")
        self.backward_steps = whole("backward_steps", backward_steps, 0)
        self.backward_rate = float(backward_rate)

    @property
    def off(self) -> bool:
        return self.scale == 0 and self.backward_steps == 0

    def guided(self, x_t: Tensor, t: Tensor, y: Condition | None, graph: bool) -> tuple[Prediction, Prediction]:
        if self.scale == 0:
            plain = guided = self.denoiser(x_t, t, y)
        else:
            plain, gradient = self.through(x_t, t, y, graph)
            guided = self.bayes(plain, t, gradient)
        moved = climbed(self, plain.x_0, t, y, self.backward_steps, self.backward_rate, graph) - plain.x_0
        alpha, sigma = self.scales(t, moved)
        return plain, Prediction(guided.x_0 + moved, guided.eps - alpha / sigma * moved)


def climbed(
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
        x_0 = x_0 + rate * guidance.slope(x_0, t, y, graph)
    return x_0


class Smoothed(PotentialGuidanceBase):
    """f~(x_0) = log (1/n) sum_i exp f(x_0 + r z_i): a potential smoothed by n noised copies of x0_hat.

    The z_i are drawn once per sample and run: f~ is then a smooth function of x_t and t, which every solver can follow.
    Subclasses say r, `width`.
    """

    copies: int
    draws: tuple[Tensor, ...] | None = None

    def start(self, noise, times: Tensor) -> "Smoothed":
        fresh = super().start(noise, times)
        if self.copies and not self.off:
            if noise is None:
                raise ValueError(f"{type(self).__name__} smooths with noise: the run must have some")
            fresh.draws = tuple(noise.normal(times[0], DRAWS + i) for i in range(self.copies))
        return fresh

    def width(self, t: Tensor) -> Tensor:
        """r, in the shape of t."""
        raise NotImplementedError

    def value(self, x_0: Tensor, t: Tensor, y: Condition | None) -> Tensor:
        if not self.copies:
            return super().value(x_0, t, y)
        if self.draws is None:
            raise ValueError(f"{type(self).__name__} smooths with noise of a run: call start(noise, times) first")
        r = over_rows(self.width(t), x_0)
        drawn = (per_sample(z, x_0, type(self).__name__) for z in self.draws)
        values = [self.asked(x_0 + r * z, y) for z in drawn]
        return torch.stack(values).logsumexp(0) - math.log(self.copies)


class LGD(Smoothed):
    """Bayes' rule with log (1/n) sum_i exp f(x0_hat + r_t z_i), r_t = sigma / sqrt(alpha^2 + sigma^2), through the network.

    Song, Zhang, Yin, Mardani, Liu, Kautz, Chen, Vahdat, "Loss-Guided Diffusion Models for Plug-and-Play Controllable
    Generation", ICML 2023 (LGD-MC): N(x0_hat, r_t^2) in the place of p(x_0 | x_t), exact for data N(m, I) as n
    grows.

    Arguments:
        denoiser: one whose prediction can be differentiated.
        potential: f(x_0, y) -> [B].
        scale: w; 0 = off, 1 = Bayes.
        interval: (lo, hi] in noise level sigma / alpha.
        copies: n, evaluations of the potential; at least 1.

    Raises:
        ValueError: see `PotentialGuidanceBase`; a number of copies out of range.
    """

    def __init__(
        self, denoiser: Denoiser, potential: LogPotential, scale: float, interval: Sequence[float], copies: int
    ):
        super().__init__(denoiser, potential, scale, interval)
        self.copies = whole("copies", copies, 1)

    def width(self, t: Tensor) -> Tensor:
        return torch.sigmoid(-self.schedule.log_snr(t)).sqrt()

    def guided(self, x_t: Tensor, t: Tensor, y: Condition | None, graph: bool) -> tuple[Prediction, Prediction]:
        prediction, gradient = self.through(x_t, t, y, graph)
        return prediction, self.bayes(prediction, t, gradient)


class TFG(Smoothed):
    """x_0 + rho grad_{x_t} f~(x0_hat) / alpha + D, eps as it is: variance guidance and mean guidance of one smoothed f~.

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
        mu: step of the gradient on x_0, at least 0, likewise.
        iterations: steps on x_0, at least 0.
        copies: of x0_hat that f~ averages over; 0 = f itself.
        smoothing: width of their noise at pure noise, at least 0.
        rho_steps, mu_steps: how rho and mu are shared out among the steps of a run.

    Raises:
        ValueError: see `PotentialGuidanceBase`; a step, count or width out of range.
    """

    def __init__(
        self, denoiser: Denoiser, potential: LogPotential, scale: float, interval: Sequence[float], rho: float,
        mu: float, iterations: int, copies: int, smoothing: float, rho_steps: StepWeights = EVEN,
        mu_steps: StepWeights = EVEN,
    ):  # fmt: skip
        super().__init__(denoiser, potential, scale, interval)
        for name, value in {"rho": rho, "mu": mu, "smoothing": smoothing}.items():
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be a finite number of at least 0, got {value}")
        self.rho, self.mu, self.smoothing = float(rho), float(mu), float(smoothing)
        self.iterations, self.copies = whole("iterations", iterations, 0), whole("copies", copies, 0)
        self.rho_steps, self.mu_steps = rho_steps, mu_steps

    def start(self, noise, times: Tensor) -> "TFG":
        fresh = super().start(noise, times)
        fresh.rho_steps, fresh.mu_steps = (part.start(self.schedule, times) for part in (self.rho_steps, self.mu_steps))
        return fresh

    @property
    def off(self) -> bool:
        return self.scale == 0 or (self.rho == 0 and (self.mu == 0 or self.iterations == 0))

    def width(self, t: Tensor) -> Tensor:
        return self.smoothing * torch.sigmoid(-self.schedule.log_snr(t)).sqrt()

    def guided(self, x_t: Tensor, t: Tensor, y: Condition | None, graph: bool) -> tuple[Prediction, Prediction]:
        if self.rho == 0:
            plain = self.denoiser(x_t, t, y)
            x_0 = plain.x_0
        else:
            plain, gradient = self.through(x_t, t, y, graph)
            rho = self.scale * self.rho * over_rows(self.rho_steps(t), gradient)
            x_0 = plain.x_0 + rho / self.scales(t, gradient)[0] * gradient
        steps = self.iterations if self.mu else 0
        mu = self.scale * self.mu * over_rows(self.mu_steps(t), x_0) if steps else 0.0
        moved = climbed(self, plain.x_0, t, y, steps, mu, graph) - plain.x_0
        return plain, Prediction(x_0 + moved, plain.eps)
