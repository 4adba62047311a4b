"""Schedules with one closed formula each, truncated to their ends."""

import math

import torch
from torch import Tensor

from ..runtime.ranges import check_range
from .base import TruncatedCurve, linear

__all__ = ["Cosine", "Flow", "Sigmoid", "TRE"]


class Cosine(TruncatedCurve):
    """log_snr = -2 log tan(pi u / 2), variance preserving: alpha = cos, sigma = sin.

    Nichol & Dhariwal, "Improved Denoising Diffusion Probabilistic Models", 2021, arXiv 2102.09672, eq. 17, in the
    continuous form of Hoogeboom et al., 2023, arXiv 2301.11093. Finite ends replace the offset 0.008. It is also GVP, the
    generalised variance-preserving path of SiT (Ma et al., 2024, arXiv 2401.08740, section 2.2).
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
    With `log_snr_min=-inf`, x_1 is pure noise.
    """

    normalisation = staticmethod(linear)

    def __init__(self, log_snr_max: float = 12.0, log_snr_min: float = -12.0):
        super().__init__(log_snr_max, log_snr_min)

    def curve(self, u: Tensor) -> Tensor:
        return 2 * (torch.log1p(-u) - torch.log(u))

    def inverse_curve(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-log_snr / 2)

    def slope(self, u: Tensor) -> Tensor:
        return -2 / (u * (1 - u))


class Sigmoid(TruncatedCurve):
    """abar(u) = (s(end) - s(z)) / (s(end) - s(start)), z = start + (end - start) u, s(z) = 1 / (1 + exp(-z / tau)).

    Jabri, Fleet, Chen, "Scalable Adaptive Computation for Iterative Generation", 2022, arXiv 2212.11972, section 2.3; Chen,
    "On the Importance of Noise Scheduling for Diffusion Models", 2023, arXiv 2301.10972, algorithm 1. (Betas that follow
    a sigmoid are another schedule, `SigmoidBeta`.) Computed without cancellation, with h = (end - start) / (2 tau), as

        log_snr = log sinh((1 - u) h) - log sinh(u h) + log cosh(start / (2 tau)) - log cosh(end / (2 tau)).

    Arguments:
        log_snr_max: log-SNR at t = 0; `inf` means exact data.
        log_snr_min: log-SNR at t = 1; `-inf` means pure noise.
        start, end: arguments z of the sigmoid at u = 0 and 1; -3 and 3 in the papers.
        tau: temperature, positive; lower is steeper in the middle.
    """

    def __init__(
        self,
        log_snr_max: float = 12.0,
        log_snr_min: float = -10.0,
        start: float = -3.0,
        end: float = 3.0,
        tau: float = 1.0,
    ):
        if not start < end:
            raise ValueError(f"start must be below end, got {start:g} and {end:g}")
        check_range("tau", tau, "(0, inf)")
        self.half_width = float(end - start) / (2 * tau)
        if not max(abs(start), abs(end)) / tau < 600:  # no overflow of sinh and cosh
            raise ValueError(f"start / tau and end / tau must be within +-600, got {start / tau:g} and {end / tau:g}")
        self.offset = math.log(math.cosh(start / (2 * tau)) / math.cosh(end / (2 * tau)))
        super().__init__(log_snr_max, log_snr_min)

    def curve(self, u: Tensor) -> Tensor:
        left, right = torch.sinh((1 - u) * self.half_width), torch.sinh(u * self.half_width)
        return torch.log(left) - torch.log(right) + self.offset

    def inverse_curve(self, log_snr: Tensor) -> Tensor:
        ratio = torch.exp(log_snr - self.offset)  # sinh((1 - u) h) / sinh(u h)
        excess = 2 * math.sinh(self.half_width) / (ratio + math.exp(-self.half_width))
        return torch.log1p(excess) / (2 * self.half_width)

    def slope(self, u: Tensor) -> Tensor:
        return -self.half_width * (1 / torch.tanh((1 - u) * self.half_width) + 1 / torch.tanh(u * self.half_width))


class TRE(TruncatedCurve):
    """sigma = u, alpha = sqrt(1 - u^2): sqrt(1 - abar_t) = t / (T + 1) at the levels t = 0 .. T + 1.

    Rhodes, Xu, Gutmann, "Telescoping Density-Ratio Estimation", 2020, arXiv 2006.12204, section 3.3, as Yadin, Elata,
    Michaeli, "Classification Diffusion Models", 2024, arXiv 2402.10095, use it for likelihoods.
    """

    def curve(self, u: Tensor) -> Tensor:
        return torch.log1p(-u) + torch.log1p(u) - 2 * torch.log(u)

    def inverse_curve(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-log_snr).sqrt()

    def slope(self, u: Tensor) -> Tensor:
        return -2 / (u * (1 - u) * (1 + u))
