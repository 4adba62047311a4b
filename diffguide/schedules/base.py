"""Noise schedules: a curve log_snr(t) and a normalisation.

The log signal-to-noise ratio is the primitive, as in VDM (Kingma, Salimans, Poole, Ho, 2021, arXiv 2107.00630):

    x_t = alpha_t x_0 + sigma_t eps,    log_snr(t) = log(alpha_t^2 / sigma_t^2),    strictly decreasing in t,

and the normalisation fixes their common scale. Time t lies in [0, 1]: 0 = data, 1 = noise.

The ends are finite by default: log_snr(0) = log_snr_max and log_snr(1) = log_snr_min, exactly. A fixed curve is truncated
to that range and rescaled in time, so no value is clipped and no epsilon is added.

All results are float64 (t may be a Python number, a 0-d tensor or [B]). The constants are Python floats, so `.to(bfloat16)`
of a network does not change its schedule.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

__all__ = [
    "KEPT_TABLE",
    "Levels",
    "Schedule",
    "TruncatedCurve",
    "as_time",
    "broadcast_rows",
    "check_finite_ends",
    "default_end",
    "linear",
    "sub_variance_preserving",
    "time_key",
    "variance_exploding",
    "variance_preserving",
]

KEPT_TABLE = "kept_table"  # attribute of a schedule: its values at the times of the last grid (`tabulated`)


def as_time(t) -> Tensor:
    """t as float64, on its own device if that supports float64, else on the CPU."""
    if not isinstance(t, Tensor):
        return torch.tensor(t, dtype=torch.float64)
    return (t.cpu() if t.device.type == "mps" else t).double()


def time_key(t: Any) -> float | None:
    """A single time as a number; None for times [B], on another device, or where the time is differentiated or mapped."""
    if type(t) is Tensor:
        if t.ndim or not t.is_cpu or t.requires_grad or torch._C._functorch.is_functorch_wrapped_tensor(t):
            return None
        return t.item()
    return float(t) if isinstance(t, int | float) else None


def broadcast_rows(value: Tensor, ndim: int) -> Tensor:
    """One number per row [B] as [B, 1, ...] with `ndim` dimensions; a 0-d number stays 0-d."""
    return value.reshape(value.shape + (1,) * (ndim - 1)) if value.ndim else value


def variance_preserving(log_snr: Tensor) -> tuple[Tensor, Tensor]:
    """alpha^2 + sigma^2 = 1."""
    return torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()


def variance_exploding(log_snr: Tensor) -> tuple[Tensor, Tensor]:
    """alpha = 1: sigma is the noise level of Karras et al. 2022."""
    return torch.ones_like(log_snr), torch.exp(-log_snr / 2)


def linear(log_snr: Tensor) -> tuple[Tensor, Tensor]:
    """alpha + sigma = 1: the straight lines of flow matching."""
    return torch.sigmoid(log_snr / 2), torch.sigmoid(-log_snr / 2)


def sub_variance_preserving(log_snr: Tensor) -> tuple[Tensor, Tensor]:
    """alpha^2 + sigma = 1: alpha = exp(-B/2), sigma = 1 - exp(-B) of Song et al. 2021, arXiv 2011.13456, eq. 27-29."""
    level = torch.exp(-log_snr / 2)
    return 2 / (level + torch.sqrt(level**2 + 4)), 2 / (1 + torch.sqrt(1 + 4 * torch.exp(log_snr)))


def default_end(log_snr_min: float | None, last: float, source: str) -> float:
    """log_snr_min; None = the last log-SNR of the curve.

    Raises:
        ValueError: log_snr_min below the last log-SNR of the curve; `source` says what defines the curve.
    """
    if log_snr_min is not None and log_snr_min < last:
        raise ValueError(
            f"log_snr_min must be at least the lowest log-SNR of the {source}, {last:.4g}, got {log_snr_min}"
        )
    return last if log_snr_min is None else log_snr_min


def check_finite_ends(what: str, log_snr_max: float, log_snr_min: float) -> None:
    """Raises ValueError for an infinite log-SNR at an end; `what` needs finite ones."""
    if math.isinf(log_snr_max) or math.isinf(log_snr_min):
        raise ValueError(
            f"log_snr_max and log_snr_min must be finite for {what}, got {log_snr_max:g} and {log_snr_min:g}"
        )


class Levels(NamedTuple):
    """The values of a schedule at a time or at times, float64, in the shape of t."""

    log_snr: Tensor
    alpha: Tensor
    sigma: Tensor
    log_level: Tensor
    noise_level: Tensor


class Schedule(nn.Module):
    """A strictly decreasing curve log_snr(t) on [0, 1] with a normalisation.

    Arguments:
        log_snr_max: log-SNR at t = 0, the data end; `inf` means exact data.
        log_snr_min: log-SNR at t = 1, the noise end; `-inf` means pure noise (zero terminal SNR).

    A subclass defines `log_snr` and, in closed form where there is one, `t_of`.
    """

    normalisation = staticmethod(variance_preserving)
    learned_ends = False  # whether training changes log_snr_max and log_snr_min

    def __init__(self, log_snr_max: float, log_snr_min: float):
        super().__init__()
        log_snr_max, log_snr_min = float(log_snr_max), float(log_snr_min)
        if not log_snr_min < log_snr_max:
            raise ValueError(f"log_snr_min must be below log_snr_max, got {log_snr_min:g} and {log_snr_max:g}")
        self.log_snr_max, self.log_snr_min = log_snr_max, log_snr_min

    def __setattr__(self, name: str, value: Any) -> None:
        self.__dict__.pop(KEPT_TABLE, None)
        super().__setattr__(name, value)

    def extra_repr(self) -> str:
        return f"log_snr_max={float(self.log_snr_max):g}, log_snr_min={float(self.log_snr_min):g}"

    @property
    def is_learned(self) -> bool:
        """Whether the curve has parameters, which an objective trains."""
        return any(True for _ in self.parameters())

    @property
    def zero_terminal_snr(self) -> bool:
        """Whether x_1 is pure noise, so that eps and the score carry no information on x_0."""
        return self.log_snr_min == -math.inf

    def check_fixed(self, what: str) -> None:
        """Raises ValueError for a learned schedule; `what` needs a fixed one."""
        if self.is_learned:
            raise ValueError(f"{what} needs a fixed schedule, got {type(self).__name__}, which is learned")

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

    def log_snr_and_rate(self, t: Tensor, hook: Callable[[Tensor], Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """(log_snr(t), rate(t)) of times [B].

        Arguments:
            hook: maps the gradient [B] that reaches a learned curve between its ends.
        """
        return self.log_snr(t), self.rate(t)

    def pin_ends(self, t: Tensor, log_snr: Tensor) -> Tensor:
        """log_snr with log_snr_max at t = 0 and log_snr_min at t = 1: exact ends in spite of rounding."""
        time = time_key(t)
        if time is None or time in (0, 1):
            return torch.where(t == 1, self.log_snr_min, torch.where(t == 0, self.log_snr_max, log_snr))
        return log_snr

    def alpha_sigma(self, t, ndim: int = 1) -> tuple[Tensor, Tensor]:
        """(alpha_t, sigma_t) in float64: 0-d for a 0-d t; for t of shape [B] shaped [B, 1, ...] with `ndim` dimensions."""
        return self.scales(self.log_snr(t), ndim)

    def scales(self, log_snr: Tensor, ndim: int = 1) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at a log-SNR, shaped as `alpha_sigma` shapes them."""
        alpha, sigma = self.normalisation(log_snr)
        return broadcast_rows(alpha, ndim), broadcast_rows(sigma, ndim)

    def noise_level(self, t) -> Tensor:
        """sigma_t / alpha_t: the sigma of Karras et al. 2022, under every normalisation."""
        return torch.exp(-self.log_snr(t) / 2)

    def noise_fall(self, t, s) -> float:
        """The factor by which the noise level falls from t to s; inf to or from an infinite log-SNR."""
        return float(torch.exp((self.log_snr(s) - self.log_snr(t)) / 2))

    def levels(self, t) -> Levels:
        """All values at a time; log_level is the logarithm of the noise level."""
        log_snr = self.log_snr(t)
        log_level = -log_snr / 2
        return Levels(log_snr, *self.scales(log_snr), log_level, torch.exp(log_level))

    @property
    def finest_log_snr(self) -> float:
        """The log-SNR of the cleanest level of a grid: log_snr_max, or of discrete betas to exact data that of the first."""
        return self.log_snr_max

    @property
    def noise_level_range(self) -> tuple[float, float]:
        """The lowest and the highest noise level sigma / alpha."""
        return math.exp(-self.log_snr_max / 2), math.exp(-self.log_snr_min / 2)


class TruncatedCurve(Schedule):
    """A fixed curve over its own time u, truncated to the part between the two ends: u = start + (end - start) t."""

    def __init__(self, log_snr_max: float = 12.0, log_snr_min: float = -10.0):
        super().__init__(log_snr_max, log_snr_min)
        self.start = float(self.inverse_curve(torch.tensor(self.log_snr_max, dtype=torch.float64, device="cpu")))
        self.end = float(self.inverse_curve(torch.tensor(self.log_snr_min, dtype=torch.float64, device="cpu")))

    def curve(self, u: Tensor) -> Tensor:
        """log_snr at u."""
        raise NotImplementedError

    def inverse_curve(self, log_snr: Tensor) -> Tensor:
        """u at a log-SNR."""
        raise NotImplementedError

    def slope(self, u: Tensor) -> Tensor:
        """d curve / du."""
        raise NotImplementedError

    def rate(self, t) -> Tensor:
        return self.slope(self.start + (self.end - self.start) * as_time(t)) * (self.end - self.start)

    def log_snr(self, t) -> Tensor:
        time = time_key(t)
        if time is not None and 0 < time < 1:  # the same arithmetic, on numbers
            return self.curve(
                torch.tensor(self.start + (self.end - self.start) * time, dtype=torch.float64, device="cpu")
            )
        t = as_time(t)
        return self.pin_ends(t, self.curve(self.start + (self.end - self.start) * t))

    def t_of(self, log_snr) -> Tensor:
        return (self.inverse_curve(as_time(log_snr)) - self.start) / (self.end - self.start)
