"""The schedules of stochastic differential equations: VP, sub-VP, VE and EDM."""

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ..runtime.ranges import check_range
from .base import (
    Schedule,
    TruncatedCurve,
    as_time,
    check_finite_ends,
    default_end,
    sub_variance_preserving,
    variance_exploding,
)

__all__ = ["EDM", "SubVP", "VE", "VP"]


class IntegratedBeta(TruncatedCurve):
    """A curve of B(u) = beta_min u + (beta_max - beta_min) u^2 / 2, the integral of a rate beta(u) that is linear in u.

    Arguments:
        log_snr_max: log-SNR at t = 0; the paper trains from u = 1e-5 and samples to 1e-3. `inf` means exact data.
        log_snr_min: log-SNR at t = 1; None = that of u = 1.
        beta_min, beta_max: rates at u = 0 and 1, 0 < beta_min <= beta_max; 0.1 and 20 in the paper.
    """

    def __init__(
        self, log_snr_max: float = 12.0, log_snr_min: float | None = None, beta_min: float = 0.1, beta_max: float = 20.0
    ):
        if not 0 < beta_min <= beta_max < math.inf:
            raise ValueError(f"the rates must satisfy 0 < beta_min <= beta_max, got {beta_min:g} and {beta_max:g}")
        self.beta_min, self.beta_max = float(beta_min), float(beta_max)
        last = float(self.curve(torch.tensor(1.0, dtype=torch.float64)))
        super().__init__(log_snr_max, default_end(log_snr_min, last, "rates"))

    def integral(self, u: Tensor) -> Tensor:
        """B(u)."""
        return u * (self.beta_min + (self.beta_max - self.beta_min) / 2 * u)

    def beta(self, u: Tensor) -> Tensor:
        """dB / du."""
        return self.beta_min + (self.beta_max - self.beta_min) * u

    def inverse_integral(self, integral: Tensor) -> Tensor:
        """u where B(u) is `integral`: the root of the quadratic, computed without cancellation."""
        rise = 2 * (self.beta_max - self.beta_min)
        return 2 * integral / (self.beta_min + torch.sqrt(self.beta_min**2 + rise * integral))


class VP(IntegratedBeta):
    """alpha = exp(-B / 2), sigma^2 = 1 - exp(-B): log_snr = -log(exp(B) - 1).

    Song, Sohl-Dickstein, Kingma, Kumar, Ermon, Poole, "Score-Based Generative Modeling through Stochastic Differential
    Equations", 2021, arXiv 2011.13456, eq. 29 and 33.
    """

    def curve(self, u: Tensor) -> Tensor:
        integral = self.integral(u)
        return -integral - torch.log(-torch.expm1(-integral))

    def inverse_curve(self, log_snr: Tensor) -> Tensor:
        return self.inverse_integral(-logsigmoid(log_snr))

    def slope(self, u: Tensor) -> Tensor:
        return self.beta(u) / torch.expm1(-self.integral(u))


class SubVP(IntegratedBeta):
    """alpha = exp(-B / 2), sigma = 1 - exp(-B), less noise than VP: log_snr = -B - 2 log(1 - exp(-B)).

    Song et al. 2021, arXiv 2011.13456, eq. 28 and 29; a normalisation of its own, alpha^2 + sigma = 1.
    """

    normalisation = staticmethod(sub_variance_preserving)

    def __init__(
        self, log_snr_max: float = 18.2, log_snr_min: float | None = None, beta_min: float = 0.1, beta_max: float = 20.0
    ):
        super().__init__(log_snr_max, log_snr_min, beta_min, beta_max)

    def curve(self, u: Tensor) -> Tensor:
        integral = self.integral(u)
        return -integral - 2 * torch.log(-torch.expm1(-integral))

    def inverse_curve(self, log_snr: Tensor) -> Tensor:
        return self.inverse_integral(2 * torch.asinh(torch.exp(-log_snr / 2) / 2))  # sigma / alpha = 2 sinh(B / 2)

    def slope(self, u: Tensor) -> Tensor:
        return -self.beta(u) / torch.tanh(self.integral(u) / 2)


class VE(Schedule):
    """Variance exploding, geometric: sigma(t) = sigma_min (sigma_max / sigma_min)^t, so log_snr is linear in t.

    Song et al. 2021, arXiv 2011.13456, eq. 31, with sigma from 0.01 to 50 on CIFAR-10: log_snr = -2 log sigma.

    Arguments:
        log_snr_max, log_snr_min: log-SNR at t = 0 and 1, finite; sigma 0.01 is 9.21, sigma 50 is -7.82.
    """

    normalisation = staticmethod(variance_exploding)

    def __init__(self, log_snr_max: float = -2 * math.log(0.01), log_snr_min: float = -2 * math.log(50)):
        super().__init__(log_snr_max, log_snr_min)
        check_finite_ends("geometric noise levels", self.log_snr_max, self.log_snr_min)

    def log_snr(self, t) -> Tensor:
        t = as_time(t)
        return (1 - t) * self.log_snr_max + t * self.log_snr_min  # exact at the ends

    def t_of(self, log_snr) -> Tensor:
        return (self.log_snr_max - as_time(log_snr)) / (self.log_snr_max - self.log_snr_min)

    def rate(self, t) -> Tensor:
        return torch.full_like(as_time(t), self.log_snr_min - self.log_snr_max)


class EDM(Schedule):
    """Variance exploding with the noise levels of EDM: sigma(t)^(1/rho) is linear in t.

    Karras, Aittala, Aila, Laine, "Elucidating the Design Space of Diffusion-Based Generative Models", 2022,
    arXiv 2206.00364, eq. 5. The ends are noise levels, log_snr = -2 log sigma: sigma 0.002 is 12.43, sigma 80 is -8.76.

    Arguments:
        log_snr_max: log-SNR at t = 0; `inf` means exact data, sigma = 0.
        log_snr_min: log-SNR at t = 1, finite.
        rho: exponent, at least 0.1; 7 in the paper, 1 is linear in sigma.
    """

    normalisation = staticmethod(variance_exploding)

    def __init__(
        self, log_snr_max: float = -2 * math.log(0.002), log_snr_min: float = -2 * math.log(80), rho: float = 7.0
    ):
        super().__init__(log_snr_max, log_snr_min)
        if self.zero_terminal_snr:
            raise ValueError("log_snr_min must be finite for a variance-exploding schedule, got -inf")
        self.rho = check_range("rho", rho, "[0.1, inf)")  # without overflow of sigma^(1/rho)
        self.low = math.exp(-self.log_snr_max / (2 * self.rho))
        self.high = math.exp(-self.log_snr_min / (2 * self.rho))

    def log_snr(self, t) -> Tensor:
        t = as_time(t)
        return self.pin_ends(t, -2 * self.rho * torch.log(self.low + t * (self.high - self.low)))

    def t_of(self, log_snr) -> Tensor:
        return (torch.exp(-as_time(log_snr) / (2 * self.rho)) - self.low) / (self.high - self.low)

    def rate(self, t) -> Tensor:
        return -2 * self.rho * (self.high - self.low) / (self.low + as_time(t) * (self.high - self.low))
