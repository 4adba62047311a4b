"""Weights over log-SNR in an integral of squared errors, and the log-SNRs at which the integral is evaluated.

The integral of w(log_snr) E||eps - eps_hat||^2 over log-SNR is the mean of (w / q) ||eps - eps_hat||^2 over log-SNRs of
density q, for any q: the weighting defines the integral, the spacing only changes the noise of its estimate.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from ...schedules import Schedule

__all__ = ["Bell", "Even", "Exact", "Piecewise", "Spacing", "UniformTimeWeighting", "Weighting"]


class Weighting:
    """Base of the weights. Weight 1 is one nat per unit of log-SNR and of half a squared error."""

    def support(self, schedule: Schedule) -> tuple[float, float]:
        """The log-SNRs (low, high) between which the weight is not 0.

        Raises:
            ValueError: an empty or infinite range.
        """
        low, high = schedule.log_snr_min, schedule.log_snr_max
        if not -torch.inf < low < high < torch.inf:
            raise ValueError(
                f"weighting {type(self).__name__} needs a schedule with finite ends, got log_snr_max {high:g} and "
                f"log_snr_min {low:g}, where eps says nothing about the class; use metric/weighting=window"
            )
        return low, high

    def __call__(self, log_snr: Tensor, schedule: Schedule) -> Tensor:
        """w at log-SNRs within the support, float64, in their shape."""
        raise NotImplementedError


class Exact(Weighting):
    """w = 1: half the integral is the difference of two log-likelihoods, so that temperature 1 is Bayes' rule.

    Kingma et al. 2021, arXiv 2107.00630, eq. 17-18; exact if the denoiser is E[eps | x_t, y] and the ends of the schedule
    keep (almost) all and (almost) nothing of x_0.
    """

    def __call__(self, log_snr: Tensor, schedule: Schedule) -> Tensor:
        return torch.ones_like(log_snr)


class UniformTimeWeighting(Weighting):
    """w = (log_snr_max - log_snr_min) / |d log_snr / dt|: uniform in time, with mean 1 over log-SNR.

    Li et al. 2023, arXiv 2303.16203; their logits, the mean squared error over times, are those of temperature
    (log_snr_max - log_snr_min) / 2. It is not the likelihood: the same network with another schedule classifies differently.
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
        places, weights = list(map(float, log_snrs)), list(map(float, weights))
        if (
            len(places) < 2
            or len(places) != len(weights)
            or not all(low < high for low, high in itertools.pairwise([-torch.inf, *places, torch.inf]))
        ):
            raise ValueError(
                f"weighting.log_snrs must be at least 2 increasing finite numbers with a weight each, got log_snrs {places} "
                f"and weights {weights}"
            )
        if not all(0 <= weight < torch.inf for weight in weights) or not any(weights):
            raise ValueError(f"weighting.weights must be finite, at least 0 and not all 0, got {weights}")
        self.places = torch.tensor(places, dtype=torch.float64)
        self.weights = torch.tensor(weights, dtype=torch.float64)

    def support(self, schedule: Schedule) -> tuple[float, float]:
        low, high = max(float(self.places[0]), schedule.log_snr_min), min(float(self.places[-1]), schedule.log_snr_max)
        if not low < high:
            raise ValueError(
                f"weighting.log_snrs {self.places.tolist()} lie outside the schedule's log-SNR "
                f"{schedule.log_snr_min:g} to {schedule.log_snr_max:g}"
            )
        return low, high

    def __call__(self, log_snr: Tensor, schedule: Schedule) -> Tensor:
        after = torch.searchsorted(self.places, log_snr.contiguous()).clamp(1, len(self.places) - 1)
        left, right = self.places[after - 1], self.places[after]
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
    """q logistic around a centre, truncated to [low, high]: most evaluations where classes differ.

    Far from the level at which classes become visible the predicted noises of two classes differ by about
    exp(-|log_snr| / 2), and so does q for a width of 2: the noise of the estimate is then about the same at every level.

    Arguments:
        centre: log-SNR.
        width: scale of the logistic, in log-SNR, positive; larger is more even.

    Raises:
        ValueError: a width that is not positive, a centre that is not finite.
    """

    def __init__(self, centre: float = 2.0, width: float = 2.0):
        if not 0 < width < torch.inf:
            raise ValueError(f"spacing.width must be a positive number, got {width:g}")
        if not -torch.inf < centre < torch.inf:
            raise ValueError(f"spacing.centre must be a finite number, got {centre:g}")
        self.centre, self.width = float(centre), float(width)

    def __call__(self, u: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
        first, last = (torch.tensor((end - self.centre) / self.width).double().sigmoid() for end in (low, high))
        mass = first + (last - first) * u
        density = mass * (1 - mass) / (self.width * (last - first))
        return (self.centre + self.width * torch.logit(mass)).clamp(low, high), density
