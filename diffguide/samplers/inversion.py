"""DDIM backwards: the noise that DDIM turns into given data."""

import torch
from torch import Tensor

from ..backbones.conditions import Condition
from ..models.protocols import Denoiser
from .ancestral import move

__all__ = ["DDIMInversion"]


class DDIMInversion:
    """x_t = alpha_t x_0 + sigma_t eps with the prediction at the cleaner time s: the ODE of DDIM from data to noise.

    Song, Meng, Ermon 2021, arXiv 2010.02502, section 4.3. DDIM over the same times returns the data up to O(1 / steps).
    It walks the grid of a sampler from its end to its beginning, evaluating on the grid only.

    With corrections x_t is moved until DDIM's step from it arrives at x_s, x_t += (alpha_t / alpha_s)(x_s - step(x_t)): the
    fixed point of Pan et al. 2023, arXiv 2309.04907, which returns the data exactly. Guidance that re-noises
    with another eps (CFG++) jumps at every step, and only so can be undone.

        times = DDIM(50, UniformT(), eta=0.0).times(denoiser)
        noise = DDIMInversion()(denoiser, x_0, times, y)
        x_0 = DDIM(50, UniformT(), eta=0.0)(denoiser, noise, times, y)

    Arguments:
        corrections: of each step, one evaluation each, at least 0.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(self, corrections: int = 0):
        if not isinstance(corrections, int) or corrections < 0:
            raise ValueError(f"corrections must be a whole number of at least 0, got {corrections!r}")
        self.corrections = corrections

    @torch.no_grad()
    def __call__(self, denoiser: Denoiser, x: Tensor, times: Tensor, y: Condition | None = None) -> Tensor:
        """x at times[0] from x [B, ...], which lives at times[-1].

        Arguments:
            times: decreasing float64 CPU tensor of at least two, as a sampler takes it.
            y: class indices [B], -1 = no condition, an Embedding, or None.

        Raises:
            ValueError: times that do not decrease strictly, or end at sigma = 0, where data says nothing about its noise.
        """
        if times.ndim != 1 or len(times) < 2 or not bool((times[1:] < times[:-1]).all()):
            raise ValueError(f"times must decrease strictly, got {times.tolist()}")
        if denoiser.schedule.alpha_sigma(times[-1])[1] == 0:
            raise ValueError(
                f"times must end above sigma = 0 for an inversion, got t = {float(times[-1]):g}: "
                "leave out the last time, or give the schedule a finite log_snr_max"
            )
        denoiser = denoiser.start(None, times)
        upwards = times.flip(0)
        for s, t in zip(upwards[:-1], upwards[1:]):
            if denoiser.skips_step(t):  # so DDIM leaves x there
                continue
            arrived, x = x, move(denoiser(x, s, y), denoiser.schedule, t, 0.0)
            ratio = denoiser.schedule.alpha_sigma(t)[0] / denoiser.schedule.alpha_sigma(s)[0]
            for _ in range(self.corrections):
                x = x + ratio * (arrived - move(denoiser(x, t, y), denoiser.schedule, s, 0.0))
        return x
