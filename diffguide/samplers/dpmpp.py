"""DPM-Solver++: exponential integrators for x_0, with lambda = log(alpha / sigma).

Lu et al., "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models", 2022, arXiv 2211.01095.
"""

import math

import numpy
from torch import Tensor

from ..models.protocols import Prediction
from ..schedules import Schedule
from .grids import UNIFORM_LOG_SNR, Grid
from .multistep import Level, Multistep, integrals

__all__ = ["DPMpp2M", "DPMpp3M", "ExponentialMultistep"]


class ExponentialMultistep(Multistep):
    """w_j = sigma_s int l_j(lambda) e^lambda dlambda, on x_0; a step to sigma = 0 is DDIM, which is x_0 itself.

    Where there are two values, their difference over the step is taken at half of its end, as the papers do:
    w_1 = alpha_s (1 - e^-h) (h / 2) / (lambda_1 - lambda_0), the same up to O(h^3).
    """

    def value(self, prediction: Prediction) -> Tensor:
        return prediction.x_0

    def variable(self, level: Level) -> float:
        return level.log_snr / 2

    def weights(self, schedule: Schedule, nodes: list[float], end: Level) -> list[float]:
        start = nodes[0]
        stop = self.variable(end)
        if math.isinf(stop):
            return []
        if len(nodes) == 2:
            h = stop - start
            return [0.0, -end.alpha * math.expm1(-h) * h / (2 * (nodes[1] - start))]
        return integrals(nodes, start, stop, lambda u: end.alpha * numpy.exp(u - stop))


class DPMpp2M(ExponentialMultistep):
    """x_s = (sigma_s / sigma_t) x_t + alpha_s (1 - e^-h) D,  D = x_0 + (h / 2 h_prev) (x_0 - x_0 of the step before).

    Lu et al., "DPM-Solver++", 2022, arXiv 2211.01095, algorithm 2, with h the step in log(alpha / sigma). The first step
    and one to sigma = 0 are of first order, which is DDIM.
    """

    max_order = 2

    def __init__(self, steps: int = 20, grid: Grid = UNIFORM_LOG_SNR):
        super().__init__(steps, grid, order=2)


class DPMpp3M(ExponentialMultistep):
    """x_s = (sigma_s / sigma_t) x_t + sigma_s int D(lambda) e^lambda dlambda, D the parabola through the last three x_0.

    The multistep form of order 3 of Lu et al., 2022, arXiv 2211.01095. The published code and
    its descendants give the second derivative half of its weight, which is of order 2; here the integral is exact. The
    first two steps are DDIM and 2M; one to sigma = 0 is DDIM.
    """

    max_order = 3

    def __init__(self, steps: int = 20, grid: Grid = UNIFORM_LOG_SNR):
        super().__init__(steps, grid, order=3)
