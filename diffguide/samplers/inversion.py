"""DDIM inversion: the noise from which DDIM generates given data."""

import torch
from torch import Tensor

from ..backbones.conditions import Condition
from ..models.protocols import Denoiser
from ..runtime.ranges import check_whole
from .ancestral import renoise
from .base import check_decreasing

__all__ = ["DDIMInversion"]


class DDIMInversion:
    """x_t = alpha_t x_0 + sigma_t eps with the prediction at the cleaner time s: the ODE of DDIM from data to noise.

    Song, Meng, Ermon 2021, arXiv 2010.02502, section 4.3. DDIM over the same times returns the data up to O(1 / steps).
    It follows the grid of a sampler backwards and evaluates on the grid only.

    Corrections move x_t until DDIM's step from it arrives at x_s, x_t += (alpha_t / alpha_s)(x_s - step(x_t)): the fixed
    point of Pan et al. 2023, arXiv 2309.04907, from which DDIM returns the data exactly. Guidance that changes eps (CFG++)
    can be inverted only with corrections.

        times = DDIM(50, UniformT(), eta=0.0).times(denoiser)
        noise = DDIMInversion()(denoiser, x_0, times, y)
        x_0 = DDIM(50, UniformT(), eta=0.0)(denoiser, noise, times, y)

    Arguments:
        corrections: per step, one evaluation each, at least 0.
    """

    def __init__(self, corrections: int = 0):
        self.corrections = check_whole("corrections", corrections, 0)

    @torch.no_grad()
    def __call__(self, denoiser: Denoiser, x: Tensor, times: Tensor, y: Condition | None = None) -> Tensor:
        """x at times[0] from x [B, ...] at times[-1].

        Arguments:
            times: decreasing float64 CPU tensor of at least two, as a sampler takes it.
            y: class indices [B], -1 = no condition, an Embedding, or None.

        Raises:
            ValueError: times that do not decrease strictly, or end at sigma = 0, where x does not determine the noise.
        """
        check_decreasing(times)
        if denoiser.schedule.alpha_sigma(times[-1])[1] == 0:
            raise ValueError(
                f"times must end above sigma = 0 for an inversion, got t = {float(times[-1]):g}: "
                "drop the last time, or give the schedule a finite log_snr_max"
            )
        denoiser = denoiser.start(None, times)
        upwards = times.flip(0)
        for s, t in zip(upwards[:-1], upwards[1:]):
            if denoiser.skips_step(t):  # so DDIM leaves x there
                continue
            arrived = x
            x = renoise(denoiser(x, s, y), denoiser.schedule, t, 0.0)
            ratio = denoiser.schedule.alpha_sigma(t)[0] / denoiser.schedule.alpha_sigma(s)[0]
            for _ in range(self.corrections):
                x = x + ratio * (arrived - renoise(denoiser(x, t, y), denoiser.schedule, s, 0.0))
        return x
