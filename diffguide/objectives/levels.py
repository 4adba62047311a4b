"""Noise-level distributions: which times an objective trains on.

levels(schedule, n, rng) -> (t [n], density [n]), both float64 on the device of rng; density is that of log_snr(t) with
respect to log-SNR, the quantity that importance weights and the likelihood weight divide by.
"""

import math

import torch
from torch import Tensor

from ..randomness import Share, normal, uniform
from ..schedules import Schedule

__all__ = ["NoiseLevels", "UniformTime", "LogNormal"]


class NoiseLevels:
    """Base of the noise-level distributions."""

    def __call__(self, schedule: Schedule, n: int, rng: torch.Generator | Share) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


class UniformTime(NoiseLevels):
    """t uniform on [0, 1], density 1 / |d log_snr / dt|.

    Arguments:
        stratified: whether the n times share one offset, t_i = (u + i / n) mod 1: each still uniform, their spread even
            (Kingma et al. 2021, arXiv 2107.00630, appendix I.1).
    """

    def __init__(self, stratified: bool):
        self.stratified = bool(stratified)

    def __call__(self, schedule: Schedule, n: int, rng: torch.Generator | Share) -> tuple[Tensor, Tensor]:
        if self.stratified:
            first, total = (rng.first, rng.total) if isinstance(rng, Share) else (0, n)
            place = torch.arange(first, first + n, device=rng.device, dtype=torch.float64)
            t = (uniform((), rng, torch.float64) + place / total) % 1
        else:
            t = uniform((n,), rng, torch.float64)
        return t, 1 / schedule.rate(t).abs()


class LogNormal(NoiseLevels):
    """log(sigma / alpha) normal, so log_snr ~ N(-2 mean, (2 std)^2), clamped to the ends of the schedule.

    Karras et al. 2022, arXiv 2206.00364, table 1. The density is that of the normal before clamping.

    Arguments:
        mean, std: of the natural logarithm of the noise level sigma / alpha; the paper has -1.2 and 1.2.
    """

    def __init__(self, mean: float, std: float):
        if not std > 0:
            raise ValueError(f"std must be positive, got {std}")
        self.mean, self.std = float(mean), float(std)

    def __call__(self, schedule: Schedule, n: int, rng: torch.Generator | Share) -> tuple[Tensor, Tensor]:
        z = normal((n,), rng, torch.float64)
        log_snr = -2 * (self.mean + self.std * z)
        density = torch.exp(-(z**2) / 2) / (2 * self.std * math.sqrt(2 * math.pi))
        return schedule.t_of(log_snr.clamp(schedule.log_snr_min, schedule.log_snr_max)).clamp(0, 1), density
