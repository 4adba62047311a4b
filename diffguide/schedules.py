"""Noise schedules: a curve log_snr(t) and a normalisation.

The log signal-to-noise ratio is the primitive, as in VDM (Kingma, Salimans, Poole, Ho, 2021, arXiv 2107.00630):

    x_t = alpha_t x_0 + sigma_t eps,    log_snr(t) = log(alpha_t^2 / sigma_t^2),    strictly decreasing in t,

and a normalisation says how large alpha and sigma are together. Time t lies in [0, 1], 0 = data, 1 = noise.

The ends are finite unless asked otherwise: log_snr(0) = log_snr_max and log_snr(1) = log_snr_min, exactly. A fixed curve
is truncated to that range and rescaled in time, so nothing is clipped and no epsilon is added anywhere.

All answers are float64 (t may be a Python number, a 0-d tensor or [B]); the constants are Python floats, so a schedule
inside a network is untouched by `.to(bfloat16)`.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

__all__ = ["Schedule", "Cosine", "Linear", "Flow", "EDM"]


def as_time(t) -> Tensor:
    """t as float64, on its own device where that device has float64 and on the CPU where it has not."""
    if not isinstance(t, Tensor):
        return torch.tensor(t, dtype=torch.float64)
    return (t.cpu() if t.device.type == "mps" else t).double()


def variance_preserving(log_snr: Tensor) -> tuple[Tensor, Tensor]:
    """alpha^2 + sigma^2 = 1."""
    return torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()


def variance_exploding(log_snr: Tensor) -> tuple[Tensor, Tensor]:
    """alpha = 1, so that sigma is the noise level of Karras et al."""
    return torch.ones_like(log_snr), torch.exp(-log_snr / 2)


def linear(log_snr: Tensor) -> tuple[Tensor, Tensor]:
    """alpha + sigma = 1, the straight lines of flow matching."""
    return torch.sigmoid(log_snr / 2), torch.sigmoid(-log_snr / 2)


class Schedule(nn.Module):
    """A strictly decreasing curve log_snr(t) on [0, 1] with a normalisation.

    Arguments:
        log_snr_max: log-SNR at t = 0, the data end; `inf` means exact data.
        log_snr_min: log-SNR at t = 1, the noise end; `-inf` means pure noise (zero terminal SNR).

    A subclass defines `log_snr` and, in closed form where there is one, `t_of`.
    """

    normalisation = staticmethod(variance_preserving)

    def __init__(self, log_snr_max: float, log_snr_min: float):
        super().__init__()
        log_snr_max, log_snr_min = float(log_snr_max), float(log_snr_min)
        if not log_snr_min < log_snr_max:
            raise ValueError(f"log_snr_min must be below log_snr_max, got {log_snr_min:g} and {log_snr_max:g}")
        self.log_snr_max, self.log_snr_min = log_snr_max, log_snr_min

    @property
    def zero_terminal_snr(self) -> bool:
        """Whether t = 1 holds no signal at all, where eps and the score say nothing about x_0."""
        return self.log_snr_min == -math.inf

    def log_snr(self, t) -> Tensor:
        """log(alpha_t^2 / sigma_t^2), float64, in the shape of t."""
        raise NotImplementedError

    def t_of(self, log_snr) -> Tensor:
        """The inverse of `log_snr`: the time in [0, 1] of a log-SNR within the schedule's ends."""
        raise NotImplementedError

    def rate(self, t) -> Tensor:
        """d log_snr / dt (negative), float64, in the shape of t, by forward-mode differentiation."""
        t = as_time(t)
        return torch.func.jvp(self.log_snr, (t,), (torch.ones_like(t),))[1]

    def alpha_sigma(self, t, ndim: int = 1) -> tuple[Tensor, Tensor]:
        """(alpha_t, sigma_t) in float64: 0-d for a 0-d t; for t of shape [B] shaped [B, 1, ...] with `ndim` dimensions."""
        return self.scales(self.log_snr(t), ndim)

    def scales(self, log_snr: Tensor, ndim: int = 1) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at a log-SNR, shaped as `alpha_sigma` shapes them."""
        alpha, sigma = self.normalisation(log_snr)
        shape = alpha.shape + (1,) * (ndim - 1 if alpha.ndim else 0)
        return alpha.reshape(shape), sigma.reshape(shape)

    def noise_level(self, t) -> Tensor:
        """sigma_t / alpha_t, the sigma of Karras et al., the same quantity for every schedule."""
        return torch.exp(-self.log_snr(t) / 2)


class TruncatedCurve(Schedule):
    """A fixed curve over its own time u, cut to the part between the two ends and rescaled: u = start + (end - start) t."""

    def __init__(self, log_snr_max: float, log_snr_min: float):
        super().__init__(log_snr_max, log_snr_min)
        self.start = float(self.inverse_curve(torch.tensor(self.log_snr_max, dtype=torch.float64)))
        self.end = float(self.inverse_curve(torch.tensor(self.log_snr_min, dtype=torch.float64)))

    def curve(self, u: Tensor) -> Tensor:
        raise NotImplementedError

    def inverse_curve(self, log_snr: Tensor) -> Tensor:
        raise NotImplementedError

    def slope(self, u: Tensor) -> Tensor:
        """d curve / du."""
        raise NotImplementedError

    def rate(self, t) -> Tensor:
        return self.slope(self.start + (self.end - self.start) * as_time(t)) * (self.end - self.start)

    def log_snr(self, t) -> Tensor:
        t = as_time(t)
        inside = self.curve(self.start + (self.end - self.start) * t)
        inside = torch.where(t == 0, self.log_snr_max, inside)  # the ends exactly, whatever the rounding of the curve
        return torch.where(t == 1, self.log_snr_min, inside)

    def t_of(self, log_snr) -> Tensor:
        return (self.inverse_curve(as_time(log_snr)) - self.start) / (self.end - self.start)


class Cosine(TruncatedCurve):
    """log_snr = -2 log tan(pi u / 2), variance preserving: alpha = cos, sigma = sin.

    Nichol & Dhariwal, "Improved Denoising Diffusion Probabilistic Models", 2021, arXiv 2102.09672, eq. 17, in the
    continuous form of Hoogeboom et al., 2023, arXiv 2301.11093. Finite ends take the place of the offset 0.008.
    """

    def curve(self, u: Tensor) -> Tensor:
        return -2 * torch.log(torch.tan(math.pi / 2 * u))

    def inverse_curve(self, log_snr: Tensor) -> Tensor:
        return 2 / math.pi * torch.atan(torch.exp(-log_snr / 2))

    def slope(self, u: Tensor) -> Tensor:
        return -2 * math.pi / torch.sin(math.pi * u)


class Flow(TruncatedCurve):
    """alpha = 1 - u, sigma = u: the straight path of flow matching, log_snr = 2 log((1 - u) / u).

    Lipman et al., "Flow Matching for Generative Modeling", 2023, arXiv 2210.02747; Liu et al., 2022, arXiv 2209.03003.
    `log_snr_min=-inf` is the exact flow whose t = 1 is pure noise.
    """

    normalisation = staticmethod(linear)

    def curve(self, u: Tensor) -> Tensor:
        return 2 * (torch.log1p(-u) - torch.log(u))

    def inverse_curve(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-log_snr / 2)

    def slope(self, u: Tensor) -> Tensor:
        return -2 / (u * (1 - u))


class Linear(TruncatedCurve):
    """The betas of DDPM as a continuous curve: abar_k = prod_{i <= k} (1 - beta_i) at t = k / steps, log abar linear between.

    Ho, Jain, Abbeel, "Denoising Diffusion Probabilistic Models", 2020, arXiv 2006.11239, section 4. abar_0 = 1 would be
    an infinite log-SNR: the value at t = 0 is log_snr_max instead, every other knot is the paper's.

    Arguments:
        log_snr_max: log-SNR at t = 0, above that of the first step.
        log_snr_min: log-SNR at t = 1; None = what the betas give (-10.1 for the default ones).
        beta_start, beta_end: first and last beta, in (0, 1).
        steps: number of betas T.
    """

    def __init__(
        self,
        log_snr_max: float,
        log_snr_min: float | None = None,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        steps: int = 1000,
    ):
        if not 0 < beta_start <= beta_end < 1:
            raise ValueError(f"the betas must satisfy 0 < beta_start <= beta_end < 1, got {beta_start} and {beta_end}")
        if steps < 2:
            raise ValueError(f"steps must be at least 2, got {steps}")
        betas = torch.linspace(beta_start, beta_end, steps, dtype=torch.float64)
        log_abar = torch.cumsum(torch.log1p(-betas), 0)
        first, last = (float(k - torch.log(-torch.expm1(k))) for k in (log_abar[0], log_abar[-1]))
        if not log_snr_max > first:
            raise ValueError(f"log_snr_max must be above the log-SNR of the first step, {first:.4g}, got {log_snr_max}")
        log_snr_min = last if log_snr_min is None else log_snr_min
        if log_snr_min < last:
            raise ValueError(f"log_snr_min must not be below what the betas reach, {last:.4g}, got {log_snr_min}")
        end = logsigmoid(torch.tensor([log_snr_max], dtype=torch.float64))
        self.__dict__["knots"] = torch.cat([end, log_abar])  # a plain attribute: no dtype cast may touch it
        super().__init__(log_snr_max, log_snr_min)

    def segment(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """log abar at u, and its slope there per unit of u."""
        knots = self.knots.to(u.device)
        position = u * (len(knots) - 1)
        k = position.detach().floor().clamp(0, len(knots) - 2).long()
        rise = knots[k + 1] - knots[k]
        return knots[k] + (position - k) * rise, rise * (len(knots) - 1)

    def curve(self, u: Tensor) -> Tensor:
        log_abar = self.segment(u)[0]
        return log_abar - torch.log(-torch.expm1(log_abar))

    def slope(self, u: Tensor) -> Tensor:
        log_abar, slope = self.segment(u)
        return slope / -torch.expm1(log_abar)

    def inverse_curve(self, log_snr: Tensor) -> Tensor:
        knots, log_abar = self.knots.to(log_snr.device), logsigmoid(log_snr)
        k = (torch.searchsorted(-knots, -log_abar.detach().contiguous()) - 1).clamp(0, len(knots) - 2)
        return (k + (log_abar - knots[k]) / (knots[k + 1] - knots[k])) / (len(knots) - 1)


class EDM(Schedule):
    """Variance exploding with the noise levels of EDM: sigma(t)^(1/rho) is linear in t.

    Karras, Aittala, Aila, Laine, "Elucidating the Design Space of Diffusion-Based Generative Models", 2022,
    arXiv 2206.00364, eq. 5. The ends are noise levels, log_snr = -2 log sigma: sigma 0.002 is 12.43, sigma 80 is -8.76.

    Arguments:
        log_snr_max: log-SNR at t = 0; `inf` puts sigma = 0 there.
        log_snr_min: log-SNR at t = 1, finite.
        rho: exponent; 7 in the paper, 1 is linear in sigma.
    """

    normalisation = staticmethod(variance_exploding)

    def __init__(self, log_snr_max: float, log_snr_min: float, rho: float = 7.0):
        super().__init__(log_snr_max, log_snr_min)
        if self.zero_terminal_snr:
            raise ValueError("log_snr_min must be finite for a variance-exploding schedule, got -inf")
        if not rho > 0:
            raise ValueError(f"rho must be positive, got {rho}")
        self.rho = float(rho)
        self.low = math.exp(-self.log_snr_max / (2 * self.rho))
        self.high = math.exp(-self.log_snr_min / (2 * self.rho))

    def log_snr(self, t) -> Tensor:
        t = as_time(t)
        inside = -2 * self.rho * torch.log(self.low + t * (self.high - self.low))
        inside = torch.where(t == 0, self.log_snr_max, inside)
        return torch.where(t == 1, self.log_snr_min, inside)

    def t_of(self, log_snr) -> Tensor:
        return (torch.exp(-as_time(log_snr) / (2 * self.rho)) - self.low) / (self.high - self.low)

    def rate(self, t) -> Tensor:
        return -2 * self.rho * (self.high - self.low) / (self.low + as_time(t) * (self.high - self.low))
