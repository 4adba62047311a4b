"""Single-step methods with evaluations between the times of the grid."""

import torch
from torch import Tensor

from ..backbones.conditions import Condition
from ..models.protocols import Denoiser, Prediction
from ..schedules import Schedule
from .ancestral import renoise
from .base import Memory, Sampler
from .grids import UNIFORM_LOG_SNR, Grid
from .multistep import ADAMS_BASHFORTH, accumulate
from .noise import StepNoise
from .step_limits import MAX_FALL

__all__ = ["DPM2", "DPMpp2S", "PNDM"]


class Midpoint(Sampler):
    """x_s = alpha_s x_0 + sigma_s eps + w (f(u) - f(t)): DDIM and a correction by f at u, the middle in log-SNR.

    Two evaluations per step, the second off the grid.
    """

    order = 2
    off_grid = True
    corrects = True
    max_fall = MAX_FALL

    def __init__(self, steps: int = 20, grid: Grid = UNIFORM_LOG_SNR):
        super().__init__(steps, grid)

    def step(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, y: Condition | None, noise: StepNoise, memory: Memory
    ) -> Tensor:
        schedule = denoiser.schedule
        middle = schedule.t_of((schedule.log_snr(t) + schedule.log_snr(s)) / 2)
        prediction = memory["first"] = denoiser(x, t, y)
        x = renoise(prediction, schedule, s, 0.0)
        corrected = denoiser(renoise(prediction, schedule, middle, 0.0), middle, y)
        weights = [0.0, self.correction(schedule, t, s)]
        return accumulate(x, weights, [self.value(prediction), self.value(corrected)])

    def correction(self, schedule: Schedule, t: Tensor, s: Tensor) -> float:
        """w."""
        raise NotImplementedError

    def value(self, prediction: Prediction) -> Tensor:
        """f."""
        raise NotImplementedError


class DPM2(Midpoint):
    """The midpoint rule for d(x / alpha) = eps d(sigma / alpha), the midpoint taken in log-SNR.

    DPM-Solver-2 of Lu et al., 2022, arXiv 2206.00927, algorithm 1 with r = 1/2. The middle is the geometric mean in
    sigma / alpha, as in k-diffusion's DPM2.
    """

    def correction(self, schedule: Schedule, t: Tensor, s: Tensor) -> float:
        return float(schedule.alpha_sigma(s)[0] * (schedule.noise_level(s) - schedule.noise_level(t)))

    def value(self, prediction: Prediction) -> Tensor:
        return prediction.eps


class DPMpp2S(Midpoint):
    """x_s = (sigma_s / sigma_t) x_t + alpha_s (1 - e^-h) x_0(u), with u at the middle of the step in log-SNR.

    Lu et al., "DPM-Solver++", 2022, arXiv 2211.01095, algorithm 1 with r = 1/2.
    """

    def correction(self, schedule: Schedule, t: Tensor, s: Tensor) -> float:
        alpha = schedule.alpha_sigma(s)[0]
        h = (schedule.log_snr(s) - schedule.log_snr(t)) / 2
        return float(-alpha * torch.expm1(-h))

    def value(self, prediction: Prediction) -> Tensor:
        return prediction.x_0


class PNDM(Sampler):
    """Three pseudo Runge-Kutta steps, then the pseudo linear multistep method of four values.

    Liu et al., "Pseudo Numerical Methods for Diffusion Models on Manifolds", 2022, arXiv 2202.09778, section 3: every
    transfer is DDIM's, phi(e, r) = alpha_r x_0 + sigma_r eps + alpha_r (rho_r - rho_t) (e - eps) with rho = sigma / alpha, and
    e the classical weights of equal steps. Order 2 (4 where the grid is uniform in rho and rho linear in t).

    Four evaluations in each of the first three steps: at t, twice half-way in time (off the grid), and at s; then one. n
    steps are n + 9 evaluations.
    """

    order = 2
    off_grid = True
    corrects = True
    max_fall = MAX_FALL

    def __init__(self, steps: int = 41, grid: Grid = UNIFORM_LOG_SNR):
        super().__init__(steps, grid)

    def step(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, y: Condition | None, noise: StepNoise, memory: Memory
    ) -> Tensor:
        schedule = denoiser.schedule
        history = memory.setdefault("history", [])
        prediction = memory["first"] = denoiser(x, t, y)
        start = schedule.noise_level(t)

        def phi(weights: list[float], e: list[Tensor], r: Tensor) -> Tensor:
            """x at r by a mean of directions, the first of which is eps at t."""
            scale = float(schedule.alpha_sigma(r)[0] * (schedule.noise_level(r) - start))
            return accumulate(renoise(prediction, schedule, r, 0.0), [scale * weight for weight in weights], e)

        history.insert(0, prediction.eps)
        if len(history) == 4:
            x = phi(ADAMS_BASHFORTH[3], history, s)
            history.pop()
            return x
        middle = (t + s) / 2
        e = [prediction.eps]
        for r in (middle, middle, s):
            e.append(denoiser(phi([0.0, 1.0][: len(e)], [e[0], e[-1]], r), r, y).eps)
        return phi([1 / 6, 1 / 3, 1 / 3, 1 / 6], e, s)
