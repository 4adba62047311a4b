"""DPM-Solver++: multistep exponential integrators for x_0."""

import torch
from torch import Tensor

from ..denoisers import Denoiser
from ..randomness import Noise
from .base import Sampler

__all__ = ["DPMpp2M"]


class DPMpp2M(Sampler):
    """x_s = (sigma_s / sigma_t) x_t + alpha_s (1 - e^-h) D,  D = x_0 + (h / 2 h_prev) (x_0 - x_0 of the step before).

    Lu et al., "DPM-Solver++", 2022, arXiv 2211.01095, algorithm 2, with h the step in log(alpha / sigma). The first step
    and one to sigma = 0 are of first order, which is DDIM.
    """

    order = 2

    def step(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, y: Tensor | None, noise: Noise | None, memory: dict
    ) -> Tensor:
        alpha, sigma = denoiser.schedule.alpha_sigma(s)
        h = (denoiser.schedule.log_snr(s) - denoiser.schedule.log_snr(t)) / 2
        prediction = denoiser(x, t, y)
        x = alpha * prediction.x_0 + sigma * prediction.eps
        if memory and sigma > 0:
            slope = (prediction.x_0 - memory["x_0"]) * (h / (2 * memory["h"]))
            x = x - (alpha * torch.expm1(-h)) * slope
        memory.update(x_0=prediction.x_0, h=h)
        return x
