"""Multistep exponential integrators for the reverse SDE: DPM-Solver++(2M, 3M) SDE and SA-Solver.

With lambda = log(alpha / sigma), h = lambda_s - lambda_t and a diffusion coefficient tau^2 times that of the forward process
(tau = 0 is the probability-flow ODE, 1 the reverse SDE), the solution is linear in x_0(lambda):

    x_s = (sigma_s / sigma_t) e^(-tau^2 h) x_t + alpha_s int (1 + tau^2) e^(-(1 + tau^2)(lambda_s - lambda)) x_0 dlambda
          + sigma_s sqrt(1 - e^(-2 tau^2 h)) z

(Xue et al., "SA-Solver", 2023, arXiv 2309.05019, proposition 4.2), and a method is a polynomial for x_0(lambda).
"""

import math

import numpy
from torch import Tensor

from ..backbones.conditions import Condition
from ..models.protocols import Denoiser, Prediction
from ..runtime.ranges import check_range, check_whole
from ..schedules import Interval, Schedule
from .base import Memory, Sampler
from .grids import KARRAS, UNIFORM_LOG_SNR, Grid
from .multistep import integrals
from .noise import StepNoise
from .step_limits import MAX_FALL

__all__ = ["DPMpp2MSDE", "DPMpp3MSDE", "SASolver"]


def half_log_snr(schedule: Schedule, t: Tensor) -> float:
    """lambda = log(alpha / sigma)."""
    return float(schedule.log_snr(t)) / 2


def decay_factors(h: float, eta: float) -> tuple[float, float]:
    """e^(-eta h) and sqrt(1 - e^(-2 eta h)), for an infinite h too."""
    return (math.exp(-eta * h), math.sqrt(-math.expm1(-2 * eta * h))) if eta else (1.0, 0.0)


def integrate(
    schedule: Schedule, t: Tensor, s: Tensor, x: Tensor, nodes: list[float], values: list[Tensor], eta: float
) -> Tensor:
    """The mean of x_s from x_t by x_0 from (nodes, values), eta = tau^2; the newest alone if lambda is infinite."""
    start, end = half_log_snr(schedule, t), half_log_snr(schedule, s)
    (alpha, sigma), count = schedule.alpha_sigma(s), len(nodes) if math.isfinite(end - start) else 1
    result = (sigma / schedule.alpha_sigma(t)[1] * decay_factors(end - start, eta)[0]) * x
    weights = [-math.expm1(-(1 + eta) * (end - start))]
    if count > 1:
        weights = integrals(nodes, start, end, lambda u: (1 + eta) * numpy.exp((1 + eta) * (u - end)))
    for weight, value in zip(weights, values):
        result = result + (alpha * weight) * value
    return result


def first_order_mean(prediction: Prediction, schedule: Schedule, t: Tensor, s: Tensor, eta: float) -> Tensor:
    """The mean of x_s by the prediction at t alone."""
    alpha, sigma = schedule.alpha_sigma(t)
    x = alpha * prediction.x_0 + sigma * prediction.eps
    return integrate(schedule, t, s, x, [half_log_snr(schedule, t)], [prediction.x_0], eta)


class ExponentialSDE(Sampler):
    """Base of the methods: one evaluation per step, and the noise of a step."""

    corrects = True
    max_fall = MAX_FALL
    s_noise = 1.0

    def eta_at(self, schedule: Schedule, t: Tensor) -> float:
        """tau(t)^2."""
        raise NotImplementedError

    def first_order(self, prediction: Prediction, schedule: Schedule, t: Tensor, s: Tensor, noise: StepNoise) -> Tensor:
        mean = first_order_mean(prediction, schedule, t, s, self.eta_at(schedule, t))
        return mean + self.draw_noise(schedule, t, s, noise)

    def draw_noise(self, schedule: Schedule, t: Tensor, s: Tensor, noise: StepNoise) -> Tensor | float:
        """s_noise sigma_s sqrt(1 - e^(-2 tau^2 h)) z."""
        sigma = schedule.alpha_sigma(s)[1]
        eta = self.eta_at(schedule, t)
        if eta == 0 or sigma == 0:
            return 0.0
        h = half_log_snr(schedule, s) - half_log_snr(schedule, t)
        return (self.s_noise * sigma * decay_factors(h, eta)[1]) * noise.increment(t, s)


class StochasticDPMpp(ExponentialSDE):
    """Base of the solvers with a constant tau.

    Arguments:
        eta: tau^2, 0 = the ODE, 1 = the reverse SDE; at least 0.
        s_noise: factor of the noise that is added, at least 0.
    """

    gaussian_steps = True

    def __init__(self, steps: int = 50, grid: Grid = UNIFORM_LOG_SNR, eta: float = 1.0, s_noise: float = 1.0):
        super().__init__(steps, grid)
        self.eta = check_range("eta", eta, "[0, inf)")
        self.stochastic = eta > 0
        self.s_noise = check_range("s_noise", s_noise, "[0, inf)")

    def eta_at(self, schedule: Schedule, t: Tensor) -> float:
        return self.eta


class DPMpp2MSDE(StochasticDPMpp):
    """x_s = (sigma_s / sigma_t) e^(-eta h) x_t + alpha_s (1 - e^(-(1 + eta) h)) D + sigma_s sqrt(1 - e^(-2 eta h)) z.

    D = x_0 + (h / 2 h_prev) (x_0 - x_0 of the step before), as in DPM-Solver++(2M), which eta = 0 is. Lu et al. 2022,
    arXiv 2211.01095, appendix on SDE solvers; eta and s_noise are k-diffusion's, whose solver is its "midpoint". The
    first step and one to sigma = 0 are of first order.
    """

    order = 2

    def step(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, y: Condition | None, noise: StepNoise, memory: Memory
    ) -> Tensor:
        schedule = denoiser.schedule
        prediction = memory["first"] = denoiser(x, t, y)
        h = half_log_snr(schedule, s) - half_log_snr(schedule, t)
        mean = first_order_mean(prediction, schedule, t, s, self.eta)
        if "x_0" in memory and math.isfinite(h):
            gain = schedule.alpha_sigma(s)[0] * -math.expm1(-(1 + self.eta) * h) * (h / (2 * memory["h"]))
            mean = mean + gain * (prediction.x_0 - memory["x_0"])
        memory.update(x_0=prediction.x_0, h=h)
        return mean + self.draw_noise(schedule, t, s, noise)


class DPMpp3MSDE(StochasticDPMpp):
    """The exact integral of the parabola through x_0 at the last three times (two in the second step, one in the first).

    Lu et al. 2022, arXiv 2211.01095; eta and s_noise are k-diffusion's. The term of second differences is that of the
    exact integral, -2 phi_3: k-diffusion's dpmpp_3m_sde has half of it, and is of second order.
    """

    order = 3

    def step(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, y: Condition | None, noise: StepNoise, memory: Memory
    ) -> Tensor:
        schedule = denoiser.schedule
        prediction = memory["first"] = denoiser(x, t, y)
        alpha, sigma = schedule.alpha_sigma(t)
        nodes, values = remember(memory, half_log_snr(schedule, t), prediction.x_0, 3)
        x = alpha * prediction.x_0 + sigma * prediction.eps
        return integrate(schedule, t, s, x, nodes, values, self.eta) + self.draw_noise(schedule, t, s, noise)


def remember(memory: Memory, node: float, value: Tensor, count: int) -> tuple[list[float], list[Tensor]]:
    """The newest `count` nodes and values, this one first."""
    nodes, values = [node, *memory.get("nodes", [])][:count], [value, *memory.get("values", [])][:count]
    memory.update(nodes=nodes[: count - 1], values=values[: count - 1])
    return nodes, values


class SASolver(ExponentialSDE):
    """Stochastic Adams: a predictor through the last values of x_0, and a corrector through the newest as well.

    Xue et al., "SA-Solver", 2023, arXiv 2309.05019, algorithm 1. One evaluation per step: the evaluation at a predicted
    point first corrects it, with the noise of the step that led there. The first steps use fewer values. All coefficients
    are the exact integrals of section 5; the authors' code adds a term of third order to those of order 2.

    Arguments:
        predictor_order: number of values that the predictor goes through, 1 to 4.
        corrector_order: number of values that the corrector goes through, the newest among them, 1 to 4; 0 = none.
        tau: amount of noise within the interval, at least 0; 0 = the ODE, 1 = the reverse SDE.
        tau_min, tau_max: noise levels sigma / alpha: tau applies in (tau_min, tau_max], 0 elsewhere; 0.05 to 1 in the
            paper's experiments on CIFAR-10.
    """

    stochastic = True

    def __init__(
        self,
        steps: int = 30,
        grid: Grid = KARRAS,
        predictor_order: int = 3,
        corrector_order: int = 3,
        tau: float = 1.0,
        tau_min: float = 0.05,
        tau_max: float = 1.0,
    ):
        super().__init__(steps, grid)
        self.predictor_order = check_whole("predictor_order", predictor_order, 1, 4)
        self.corrector_order = check_whole("corrector_order", corrector_order, 0, 4)
        self.tau = check_range("tau", tau, "[0, inf)")
        self.interval = Interval.of([tau_min, tau_max], "tau_min and tau_max")
        self.order = max(predictor_order, corrector_order)

    def eta_at(self, schedule: Schedule, t: Tensor) -> float:
        return self.tau**2 if self.interval.contains(schedule.noise_level(t)) else 0.0

    def step(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, y: Condition | None, noise: StepNoise, memory: Memory
    ) -> Tensor:
        schedule = denoiser.schedule
        prediction = memory["first"] = denoiser(x, t, y)
        alpha, sigma = schedule.alpha_sigma(t)
        x = alpha * prediction.x_0 + sigma * prediction.eps
        before = memory.pop("before", None)
        nodes, values = remember(memory, half_log_snr(schedule, t), prediction.x_0, self.order)
        if before is not None:
            at, start, eta, added = before
            count = self.corrector_order
            corrected = integrate(schedule, at, t, start, nodes[:count], values[:count], eta) + added
            x = x + (corrected - memory["arrived"])  # keeps what guidance or another sampler changed since
        eta = self.eta_at(schedule, t)
        added = self.draw_noise(schedule, t, s, noise)
        count = self.predictor_order
        predicted = integrate(schedule, t, s, x, nodes[:count], values[:count], eta) + added
        if self.corrector_order:
            memory["before"] = (t, x, eta, added)
            memory["arrived"] = predicted
        return predicted
