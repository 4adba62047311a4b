"""DEIS: exponential integrators for eps, with a polynomial in t or in log(sigma / alpha).

Zhang & Chen, "Fast Sampling of Diffusion Models with Exponential Integrator", 2022, arXiv 2204.13902. The third of its
polynomials, in rho = sigma / alpha, is `LMS`.
"""

import numpy
import torch

from ..schedules import Schedule
from .grids import UNIFORM_LOG_SNR, UNIFORM_T, Grid
from .multistep import Level, Multistep, integrals

__all__ = ["DEIS", "LogRhoDEIS"]


class DEIS(Multistep):
    """w_j = alpha_s int l_j(t) (drho / dt) dt: t-AB of arXiv 2204.13902, eq. 14 and 15.

    Its tAB(r) with a polynomial of degree r is order r + 1 here. Order 1 to 4.
    """

    max_order = 4

    def __init__(self, steps: int = 20, grid: Grid = UNIFORM_T, order: int = 3):
        super().__init__(steps, grid, order)

    def variable(self, level: Level) -> float:
        return level.t

    def weights(self, schedule: Schedule, nodes: list[float], end: Level) -> list[float]:
        def kernel(times: numpy.ndarray) -> numpy.ndarray:
            t = torch.from_numpy(times)
            return (-end.alpha / 2 * schedule.noise_level(t) * schedule.rate(t)).numpy()

        return integrals(nodes, nodes[0], end.t, kernel)


class LogRhoDEIS(Multistep):
    """w_j = alpha_s int l_j(log rho) drho, the polynomial in log(sigma / alpha) that diffusers' DEIS has.

    Order 1 to 4, counted as for `DEIS`.
    """

    max_order = 4

    def __init__(self, steps: int = 20, grid: Grid = UNIFORM_LOG_SNR, order: int = 3):
        super().__init__(steps, grid, order)

    def variable(self, level: Level) -> float:
        return -level.log_snr / 2

    def weights(self, schedule: Schedule, nodes: list[float], end: Level) -> list[float]:
        return integrals(nodes, nodes[0], self.variable(end), lambda u: end.alpha * numpy.exp(u))
