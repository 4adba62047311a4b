"""Weights over log-SNR in an integral of squared errors, and the log-SNRs at which the integral is evaluated.

The integral of w(log_snr) E||eps - eps_hat||^2 over log-SNR is the mean of (w / q) ||eps - eps_hat||^2 over log-SNRs of
density q, for any q. The weighting w defines the integral; the spacing q only changes the noise of its estimate.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from ...runtime.ranges import check_finite, check_range
from ...schedules import Schedule

__all__ = ["Bell", "Even", "Exact", "Piecewise", "Spacing", "UniformTimeWeighting", "Weighting"]


class Weighting:
    """Base of the weights. w = 1: half a squared error is one nat per unit of log-SNR."""

    def support(self, schedule: Schedule) -> tuple[float, float]:
        """The range (low, high) of log-SNR in which the weight is not 0; ValueError if it is empty or infinite."""
        low, high = schedule.log_snr_min, schedule.log_snr_max
        if not -torch.inf < low < high < torch.inf:
            raise ValueError(
                f"weighting {type(self).__name__} needs a schedule with finite ends, got log_snr_max {high:g} and "
                f"log_snr_min {low:g}: use metric/weighting=window"
            )
        return low, high

    def __call__(self, log_snr: Tensor, schedule: Schedule) -> Tensor:
        """w at log-SNRs within the support, float64, in their shape."""
        raise NotImplementedError


class Exact(Weighting):
    """w = 1: half the integral is the difference of two log-likelihoods, so temperature 1 is Bayes' rule.

    Kingma et al. 2021, arXiv 2107.00630, eq. 17-18; exact if the denoiser is E[eps | x_t, y] and the SNR at the ends of the
    schedule is (almost) infinite and (almost) 0.
    """

    def __call__(self, log_snr: Tensor, schedule: Schedule) -> Tensor:
        return torch.ones_like(log_snr)


class UniformTimeWeighting(Weighting):
    """w = (log_snr_max - log_snr_min) / |d log_snr / dt|: uniform in time, with mean 1 over log-SNR.

    Li et al. 2023, arXiv 2303.16203; their logits, the mean squared error over times, have the temperature
    (log_snr_max - log_snr_min) / 2. It is not the likelihood: the predictions depend on the schedule.
    """

    def __call__(self, log_snr: Tensor, schedule: Schedule) -> Tensor:
        low, high = self.support(schedule)
        return (high - low) / schedule.rate(schedule.t_of(log_snr).clamp(0, 1)).abs()


class Piecewise(Weighting):
    """w linear between given points, 0 outside, as of Clark & Jaini 2023, arXiv 2303.15233.

    Arguments:
        log_snrs: increasing, at least 2.
        weights: w there, at least 0; 1 is the likelihood's.

    Raises:
        ValueError: different lengths, log-SNRs that do not increase, weights below 0 or all 0.
    """

    def __init__(self, log_snrs: Sequence[float] = (-6.0, 6.0), weights: Sequence[float] = (1.0, 1.0)):
        points, weights = list(map(float, log_snrs)), list(map(float, weights))
        increasing = all(low < high for low, high in itertools.pairwise([-torch.inf, *points, torch.inf]))
        if len(points) < 2 or len(points) != len(weights) or not increasing:
            raise ValueError(
                f"weighting.log_snrs must be at least 2 increasing finite numbers with a weight each, got log_snrs {points} "
                f"and weights {weights}"
            )
        if not all(0 <= weight < torch.inf for weight in weights) or not any(weights):
            raise ValueError(f"weighting.weights must be finite, at least 0 and not all 0, got {weights}")
        self.log_snrs = torch.tensor(points, dtype=torch.float64)
        self.weights = torch.tensor(weights, dtype=torch.float64)

    def support(self, schedule: Schedule) -> tuple[float, float]:
        low = max(float(self.log_snrs[0]), schedule.log_snr_min)
        high = min(float(self.log_snrs[-1]), schedule.log_snr_max)
        if not low < high:
            raise ValueError(
                f"weighting.log_snrs {self.log_snrs.tolist()} lie outside the schedule's log-SNR "
                f"{schedule.log_snr_min:g} to {schedule.log_snr_max:g}"
            )
        return low, high

    def __call__(self, log_snr: Tensor, schedule: Schedule) -> Tensor:
        after = torch.searchsorted(self.log_snrs, log_snr.contiguous()).clamp(1, len(self.log_snrs) - 1)
        left, right = self.log_snrs[after - 1], self.log_snrs[after]
        share = ((log_snr - left) / (right - left)).clamp(0, 1)
        return (1 - share) * self.weights[after - 1] + share * self.weights[after]


class Spacing:
    """Base of the densities q over log-SNR from which the integral is estimated."""

    def __call__(self, u: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
        """(log_snr, q(log_snr)) float64, the quantiles of q on [low, high] for u in [0, 1]."""
        raise NotImplementedError


class Even(Spacing):
    """q = 1 / (high - low)."""

    def __call__(self, u: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
        return low + (high - low) * u, torch.full_like(u, 1 / (high - low))


class Bell(Spacing):
    """q logistic around a centre, truncated to [low, high]: most evaluations are where the classes differ.

    Far from the centre the predicted noises of two classes differ by about exp(-|log_snr| / 2). With width = 2 q decreases at
    the same rate, so that the noise of the estimate is about the same at every level.

    Arguments:
        centre: log-SNR, finite.
        width: scale of the logistic, in log-SNR, positive; larger is more even.
    """

    def __init__(self, centre: float = 2.0, width: float = 2.0):
        self.centre = check_finite("spacing.centre", centre)
        self.width = check_range("spacing.width", width, "(0, inf)")

    def __call__(self, u: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
        first, last = (torch.tensor((end - self.centre) / self.width).double().sigmoid() for end in (low, high))
        mass = first + (last - first) * u
        density = mass * (1 - mass) / (self.width * (last - first))
        return (self.centre + self.width * torch.logit(mass)).clamp(low, high), density
