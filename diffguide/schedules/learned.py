"""A schedule whose curve is learned."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ..runtime.ranges import check_whole
from .base import Schedule, as_time, check_finite_ends

__all__ = ["Monotone"]


class Monotone(Schedule):
    """log_snr = log_snr_max + (log_snr_min - log_snr_max) (g(t) - g(0)) / (g(1) - g(0)), variance preserving,

        g(t) = c t + sum_i w_i sigmoid(v_i t + b_i),    c, w, v positive (softplus of what is learned).

    Kingma, Salimans, Poole, Ho, "Variational Diffusion Models", 2021, arXiv 2107.00630, appendix H. It starts close to a
    straight line in t. The parameters are trained and saved with those of the network. They stay in float32 when the
    network is cast to a lower precision; the computation is in float64.

    Arguments:
        log_snr_max, log_snr_min: log-SNR at t = 0 and 1, finite; the paper starts from 13.3 and -5.
        learned_ends: whether the two ends are learned too, which needs an objective with all three terms of the bound.
        width: hidden units, at least 1; 1024 in the paper.
    """

    fixed_max: float
    fixed_min: float

    def __init__(
        self, log_snr_max: float = 13.3, log_snr_min: float = -5.0, learned_ends: bool = False, width: int = 1024
    ):
        check_whole("width", width, 1)
        check_finite_ends("a learned schedule", log_snr_max, log_snr_min)
        super().__init__(log_snr_max, log_snr_min)
        self.learned_ends = bool(learned_ends)
        steep = torch.full((width,), 10.0)
        self.straight = nn.Parameter(torch.zeros(()))  # c
        self.steep = nn.Parameter(steep)  # v
        self.centre = nn.Parameter(-steep * (torch.arange(width) + 0.5) / width)  # b: the sigmoids are evenly spaced
        self.height = nn.Parameter(torch.zeros(width))  # w, in units of 1 / width
        gap = self.fixed_max - self.fixed_min
        if learned_ends:
            self.top = nn.Parameter(torch.tensor(float(log_snr_max)))
            self.gap = nn.Parameter(torch.tensor(gap + math.log(-math.expm1(-gap))))  # inverse of softplus

    def _apply(self, fn, recurse: bool = True):
        """Moves the parameters to another device but keeps their dtype: bfloat16 is too coarse for a noise level."""

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, recurse)

    def ends(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """(log_snr_max, log_snr_min), 0-d, with gradients if they are learned."""
        if not self.learned_ends:
            pair = torch.tensor([self.fixed_max, self.fixed_min], dtype=torch.float64, device=device)
            return pair[0], pair[1]
        top, gap = (part.to(device).double() for part in (self.top, self.gap))
        return top, top - softplus(gap)

    def end(self, which: int) -> float:
        return float(self.ends(torch.device("cpu"))[which].detach())

    log_snr_max = property(lambda self: self.end(0), lambda self, value: setattr(self, "fixed_max", value))
    log_snr_min = property(lambda self: self.end(1), lambda self, value: setattr(self, "fixed_min", value))

    def increase(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(g(t), dg/dt) in float64, on the device of t."""
        parts = (self.straight, self.steep, self.centre, self.height)
        straight, steep, centre, height = (part.to(t.device).double() for part in parts)
        straight, steep, height = softplus(straight), softplus(steep), softplus(height) / len(height)
        step = torch.sigmoid(t[..., None] * steep + centre)
        return straight * t + step @ height, straight + (step * (1 - step)) @ (height * steep)

    def share(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """((g(t) - g(0)) / (g(1) - g(0)), its rate): exactly 0 at t = 0 and 1 at t = 1."""
        first, last = self.increase(torch.tensor([0.0, 1.0], dtype=torch.float64, device=t.device))[0]
        value, rate = self.increase(t)
        share = torch.where(t == 1, 1.0, torch.where(t == 0, 0.0, (value - first) / (last - first)))
        return share, rate / (last - first)

    def log_snr(self, t) -> Tensor:
        return self.log_snr_and_rate(as_time(t))[0]

    def rate(self, t) -> Tensor:
        return self.log_snr_and_rate(as_time(t))[1]

    def log_snr_and_rate(self, t: Tensor, hook: Callable[[Tensor], Tensor] | None = None) -> tuple[Tensor, Tensor]:
        high, low = self.ends(t.device)
        share, rate = self.share(t)
        for part in (share, rate):
            if hook is not None and part.requires_grad:
                part.register_hook(hook)
        log_snr = torch.where(t == 1, low, high + (low - high) * share)  # exactly low at t = 1 in spite of rounding
        return log_snr, (low - high) * rate

    @torch.no_grad()
    def t_of(self, log_snr) -> Tensor:
        """By bisection, to the last digit of t, without gradient."""
        log_snr = as_time(log_snr)
        low, high = torch.zeros_like(log_snr), torch.ones_like(log_snr)
        for _ in range(54):
            middle = (low + high) / 2
            below = self.log_snr(middle) > log_snr  # the time is above the middle
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return torch.where(log_snr >= self.log_snr_max, 0.0, torch.where(log_snr <= self.log_snr_min, 1.0, high))
