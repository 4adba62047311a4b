"""Linear multistep methods: one coefficient routine, w_j = integral of kernel(u) l_j(u) du over a step, for every family.

The probability-flow ODE has two exact linear forms, with rho = sigma / alpha and lambda = log(alpha / sigma):

    x_s / alpha_s = x_t / alpha_t + int eps drho,       x_s / sigma_s = x_t / sigma_t + int x_0 e^lambda dlambda.

A method replaces eps or x_0 by the polynomial through the last few values f_j, in a variable u of its own, and integrates
that exactly. The constant polynomial gives DDIM in both forms, so every step is DDIM plus sum_j w_j (f_j - f_0), where f_0
is the newest value.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy
from torch import Tensor

from ..backbones.conditions import Condition
from ..models.protocols import Denoiser, Prediction
from ..runtime.ranges import check_whole
from ..schedules import Schedule
from .base import Memory, Sampler
from .grids import KARRAS, Grid
from .noise import StepNoise
from .step_limits import MAX_FALL

__all__ = ["ADAMS_BASHFORTH", "IPNDM", "LMS", "Level", "Multistep", "accumulate", "integrals"]

QUADRATURE_POINTS, QUADRATURE_WEIGHTS = numpy.polynomial.legendre.leggauss(24)  # exact for cubic times e^u, 20 wide
ADAMS_BASHFORTH = [  # weights of the newest value first, in steps of equal size
    [1.0],
    [3 / 2, -1 / 2],
    [23 / 12, -16 / 12, 5 / 12],
    [55 / 24, -59 / 24, 37 / 24, -9 / 24],
]


def integrals(nodes: Sequence[float], start: float, end: float, kernel: Callable) -> list[float]:
    """w_j = int_start^end kernel(u) l_j(u) du, where l_j is 1 at nodes[j] and 0 at the others; Gauss-Legendre, float64."""
    u = start + (end - start) / 2 * (QUADRATURE_POINTS + 1)
    mass = kernel(u) * QUADRATURE_WEIGHTS * ((end - start) / 2)
    one = numpy.ones_like(u)
    return [
        float(mass @ math.prod(((u - other) / (node - other) for other in nodes if other != node), start=one))
        for node in nodes
    ]


def accumulate(x: Tensor, weights: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    """x + sum_j w_j (f_j - f_0), in place; w_0 is not used."""
    if len(weights) > 1:
        x.add_(values[0], alpha=-sum(weights[1:]))
        for weight, value in zip(weights[1:], values[1:]):
            x.add_(value, alpha=weight)
    return x


class Level(NamedTuple):
    """A time and the schedule's values there, as floats: coefficients are computed on the CPU, once per step."""

    t: float
    log_snr: float
    alpha: float
    sigma: float

    @classmethod
    def at(cls, schedule: Schedule, t: Tensor) -> "Level":
        return cls(float(t), *map(float, schedule.levels(t)[:3]))

    @property
    def noise_level(self) -> float:
        return math.exp(-self.log_snr / 2)

    def renoise(self, prediction: Prediction) -> Tensor:
        """alpha x_0 + sigma eps, DDIM's x at this level."""
        return (self.alpha * prediction.x_0).add_(prediction.eps, alpha=self.sigma)


class Multistep(Sampler):
    """x_s = alpha_s x_0 + sigma_s eps + sum_j w_j (f_j - f_0), one evaluation per step.

    The first steps have the order that their history allows.

    Arguments:
        order: values that the polynomial goes through, this step's included; 1 is DDIM.
    """

    max_order: int
    corrects = True
    max_fall = MAX_FALL

    def __init__(self, steps: int, grid: Grid, order: int):
        super().__init__(steps, grid)
        self.order = check_whole("order", order, 1, self.max_order)

    def value(self, prediction: Prediction) -> Tensor:
        """f, what the polynomial interpolates."""
        return prediction.eps

    def variable(self, level: Level) -> float:
        """u, what it is a polynomial in."""
        return level.noise_level

    def weights(self, schedule: Schedule, nodes: list[float], end: Level) -> list[float]:
        """w_j of the step from the newest node to `end`; [] = a step of DDIM."""
        raise NotImplementedError

    def step(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, y: Condition | None, noise: StepNoise, memory: Memory
    ) -> Tensor:
        schedule = denoiser.schedule
        history = memory.setdefault("history", [])
        start, end = Level.at(schedule, t), Level.at(schedule, s)
        prediction = memory["first"] = denoiser(x, t, y)
        x = end.renoise(prediction)
        history.insert(0, (self.variable(start), self.value(prediction)))
        if len(history) > 1:
            nodes, values = zip(*history)
            accumulate(x, self.weights(schedule, list(nodes), end), values)
        del history[self.order - 1 :]
        return x


class LMS(Multistep):
    """w_j = alpha_s int l_j(rho) drho: the Adams-Bashforth methods in sigma / alpha, with steps of any size.

    k-diffusion's LMS for the ODE of Karras et al. 2022, arXiv 2206.00364, eq. 4; the same as rho-AB of Zhang & Chen,
    "Fast Sampling of Diffusion Models with Exponential Integrator", 2022, arXiv 2204.13902. Order 1 to 4. As
    published it steps to sigma = 0 with its full order; here that step, as every wide one, is of first order (`step_limits`).
    """

    max_order = 4

    def __init__(self, steps: int = 30, grid: Grid = KARRAS, order: int = 4):
        super().__init__(steps, grid, order)

    def weights(self, schedule: Schedule, nodes: list[float], end: Level) -> list[float]:
        return integrals(nodes, nodes[0], end.noise_level, lambda _: end.alpha)


class IPNDM(Multistep):
    """w_j = alpha_s (rho_s - rho_t) b_j with the Adams-Bashforth weights b_j of equal steps, for steps of any size.

    Zhang & Chen 2022, arXiv 2204.13902: PNDM (Liu et al., arXiv 2202.09778) without its Runge-Kutta start. Order 1 to 4 is
    reached where the grid is uniform in sigma / alpha, elsewhere at most 2.
    """

    max_order = 4

    def __init__(self, steps: int = 30, grid: Grid = KARRAS, order: int = 4):
        super().__init__(steps, grid, order)

    def weights(self, schedule: Schedule, nodes: list[float], end: Level) -> list[float]:
        scale = end.alpha * (end.noise_level - nodes[0])
        return [scale * b for b in ADAMS_BASHFORTH[len(nodes) - 1]]
