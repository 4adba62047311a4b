"""Timesteps of foreign networks: what they get in place of the log-SNR, and their sinusoidal features."""

import math

import torch
from torch import Tensor

from ..runtime.ranges import check_range, check_whole
from ..schedules import Linear, Schedule
from ..schedules.base import as_time

__all__ = ["DiscreteTimesteps", "FlowTimesteps", "LogNoiseTimesteps", "TimestepFeatures", "Timesteps"]

ROUNDING = 1e-3  # steps; log-SNRs in float32 miss a trained level by less, and no network tells them apart


class Timesteps:
    """Base: timesteps(log_snr [B]) -> [B] float32, the number that a network was trained with at this log-SNR."""

    def __call__(self, log_snr: Tensor) -> Tensor:
        raise NotImplementedError


class DiscreteTimesteps(Timesteps):
    """scale (k - 1), where k - 1, 0 to T - 1, is the index of the level k / T of discrete betas with this log-SNR.

    Between two levels it is the fraction at which log abar is linear (`schedules.discrete`); levels above the first and
    below the last have theirs.

    Arguments:
        schedule: through the trained levels at the times k / T; None = Linear().
        steps: number of levels T, at least 2.
        whole: whether the network takes whole numbers only (an embedding table): then the nearest level.
        scale: of the index, where it is not whole.
    """

    def __init__(self, schedule: Schedule | None = None, steps: int = 1000, whole: bool = False, scale: float = 1.0):
        self.schedule = Linear() if schedule is None else schedule
        self.schedule.check_fixed("DiscreteTimesteps")
        self.steps, self.whole = check_whole("steps", steps, 2), whole
        self.scale = check_range("scale", scale, "(0, inf)")

    def __call__(self, log_snr: Tensor) -> Tensor:
        ends = self.schedule.log_snr_min, self.schedule.log_snr_max
        time = self.schedule.t_of(as_time(log_snr.detach()).clamp(*ends))
        step = (time * self.steps - 1).clamp(0, self.steps - 1)
        level = step.round()
        if self.whole:
            return level.to(log_snr.device, torch.long)
        index = torch.where((step - level).abs() < ROUNDING, level, step)
        return (self.scale * index).to(log_snr.device, torch.float32)


class FlowTimesteps(Timesteps):
    """scale u, u = sigma / (alpha + sigma): the time of the straight path from data to noise, 0 to scale.

    Arguments:
        scale: timestep of pure noise; 1000 in diffusers' flow matching, 1 in SiT.
        from_noise: whether the time of the network runs from noise to data, scale (1 - u), as in SiT (Ma et al., 2024,
            arXiv 2401.08740).
    """

    def __init__(self, scale: float = 1000.0, from_noise: bool = False):
        self.scale, self.from_noise = check_range("scale", scale, "(0, inf)"), from_noise

    def __call__(self, log_snr: Tensor) -> Tensor:
        half = as_time(log_snr.detach()) / 2
        return (self.scale * torch.sigmoid(half if self.from_noise else -half)).to(log_snr.device, torch.float32)


class LogNoiseTimesteps(Timesteps):
    """c_noise = ln(sigma / alpha) / 4. Karras et al. 2022, arXiv 2206.00364, table 1."""

    def __call__(self, log_snr: Tensor) -> Tensor:
        return (log_snr.detach() / -8).to(torch.float32)


class TimestepFeatures:
    """Features of a timestep tau: [cos(w_i tau), sin(w_i tau)], w_i = max_period^(-i / half), i < half = width // 2.

    Vaswani et al. 2017, arXiv 1706.03762, section 3.5, in the order of ADM and DiT. An odd width ends with a 0.

    Arguments:
        timesteps: from log-SNR to timestep; None = DiscreteTimesteps().
        width: number of features, at least 2.
        max_period: longest wavelength in units of 2 pi, above 1.
    """

    def __init__(self, timesteps: Timesteps | None = None, width: int = 128, max_period: float = 10000.0):
        self.timesteps = DiscreteTimesteps() if timesteps is None else timesteps
        self.width = check_whole("width", width, 2)
        self.max_period = check_range("max_period", max_period, "(1, inf)")

    def __call__(self, log_snr: Tensor) -> Tensor:
        """[B, width] float32 of log_snr [B]."""
        half = self.width // 2
        rates = torch.exp(-math.log(self.max_period) * torch.arange(half, dtype=torch.float32) / half)
        angles = self.timesteps(log_snr).float()[:, None] * rates.to(log_snr.device)
        features = torch.cat([angles.cos(), angles.sin()], dim=1)
        return torch.nn.functional.pad(features, (0, self.width % 2))
