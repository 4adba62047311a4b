"""Weights of the denoising objective over noise levels.

weight(log_snr, rows, density) -> [B] multiplies the squared error of the *network's output*. A weight on the error of x_0
is multiplied by c_out^2, one on the error of eps by e_out^2: x0_hat - x_0 = c_out (F - F*), eps_hat - eps = e_out (F - F*).
"""

import math

import torch
from torch import Tensor, nn

from ..models.parameterizations import Rows
from ..runtime.ranges import check_range, check_whole

__all__ = [
    "EDM",
    "P2",
    "UNIFORM_WEIGHT",
    "LearnedUncertainty",
    "Likelihood",
    "MinSNR",
    "SoftMinSNR",
    "Uniform",
    "UniformEps",
    "Weight",
]


class Weight:
    """Base of the weights. log_snr [B] and density [B] float64; rows as broadcast over the data."""

    def __call__(self, log_snr: Tensor, rows: Rows, density: Tensor) -> Tensor:
        raise NotImplementedError

    def weigh(self, error: Tensor, log_snr: Tensor, rows: Rows, density: Tensor) -> Tensor:
        """The loss [B] from squared errors [B], in their dtype."""
        return self(log_snr, rows, density).to(error) * error


def square_row(row: Tensor) -> Tensor:
    """The square of a row, [B] for rows that broadcast over the data."""
    return row.reshape(-1) ** 2


class Uniform(Weight):
    """1 on the network's own error: L_simple for eps (arXiv 2006.11239, eq. 14), EDM's lambda(sigma) for edm."""

    def __call__(self, log_snr: Tensor, rows: Rows, density: Tensor) -> Tensor:
        return torch.ones_like(log_snr)


UNIFORM_WEIGHT = Uniform()


class UniformEps(Weight):
    """1 on the error of eps, for every parameterization: L_simple (arXiv 2006.11239, eq. 14), which is sigma^2 on the
    error of the score (Song et al. 2021, arXiv 2011.13456, eq. 7)."""

    def __call__(self, log_snr: Tensor, rows: Rows, density: Tensor) -> Tensor:
        return square_row(rows.e_out)


class MinSNR(Weight):
    """min(SNR, gamma) on the error of x_0. Hang et al., "Efficient Diffusion Training via Min-SNR Weighting Strategy",
    2023, arXiv 2303.09556, eq. 8.

    Arguments:
        gamma: upper bound of the signal-to-noise ratio, positive; 5 in the paper.
    """

    def __init__(self, gamma: float = 5.0):
        self.gamma = check_range("gamma", gamma, "(0, inf]")

    def __call__(self, log_snr: Tensor, rows: Rows, density: Tensor) -> Tensor:
        return torch.exp(log_snr).clamp(max=self.gamma) * square_row(rows.c_out)


class SoftMinSNR(Weight):
    """1 / (1 / SNR + 1 / gamma) on the error of x_0: a smooth MinSNR. Crowson et al., "Scalable High-Resolution
    Pixel-Space Image Synthesis with Hourglass Diffusion Transformers", 2024, arXiv 2401.11605, section 3.4.

    Arguments:
        gamma: upper bound of the weight, positive; 4 in the paper.
    """

    def __init__(self, gamma: float = 4.0):
        self.gamma = check_range("gamma", gamma, "(0, inf)")

    def __call__(self, log_snr: Tensor, rows: Rows, density: Tensor) -> Tensor:
        return square_row(rows.c_out) / (torch.exp(-log_snr) + 1 / self.gamma)


class P2(Weight):
    """1 / (k + SNR)^gamma on the error of eps. Choi et al., "Perception Prioritized Training of Diffusion Models", 2022,
    arXiv 2204.00227, eq. 8.

    Arguments:
        gamma: exponent, positive; larger values weight low noise levels less; 0.5 or 1 in the paper.
        k: bounds the weight at high noise levels, positive; 1 in the paper.
    """

    def __init__(self, gamma: float = 1.0, k: float = 1.0):
        self.gamma, self.k = check_range("gamma", gamma, "(0, inf)"), check_range("k", k, "(0, inf)")

    def __call__(self, log_snr: Tensor, rows: Rows, density: Tensor) -> Tensor:
        return square_row(rows.e_out) / (self.k + torch.exp(log_snr)) ** self.gamma


class EDM(Weight):
    """(s^2 + d^2) / (s d)^2 on the error of x_0 at noise level s = sigma / alpha. Karras et al. 2022, arXiv 2206.00364,
    table 1. It is 1 on the error of a network that predicts edm with the same d.

    Arguments:
        sigma_data: standard deviation d of the data, positive; 0.5 in the paper.
    """

    def __init__(self, sigma_data: float = 0.5):
        self.sigma_data = check_range("sigma_data", sigma_data, "(0, inf)")

    def __call__(self, log_snr: Tensor, rows: Rows, density: Tensor) -> Tensor:
        return (self.sigma_data**-2 + torch.exp(log_snr)) * square_row(rows.c_out)


class Likelihood(Weight):
    """1 / (2 density) on the error of eps: the bound's diffusion term, 1/2 int ||eps_hat - eps||^2 dlog_snr.

    Kingma et al. 2021, arXiv 2107.00630, eq. 17; Kingma & Gao, "Understanding Diffusion Objectives as the ELBO with Simple
    Data Augmentation", 2023, arXiv 2303.00848, eq. 2 with w = 1. In nats per dimension, over the levels that are
    drawn; its mean is the same for every distribution of them.
    """

    def __call__(self, log_snr: Tensor, rows: Rows, density: Tensor) -> Tensor:
        return square_row(rows.e_out) / (2 * density)


class LearnedUncertainty(nn.Module, Weight):
    """weight / exp(u(log_snr)) * error + u(log_snr): the loss of each level divided by a learned estimate of its size.

    Karras, Aittala, Lehtinen, Hellsten, Aila, Laine, "Analyzing and Improving the Training Dynamics of Diffusion Models",
    2024, arXiv 2312.02696, eq. 21 and appendix B.3: u is linear in Fourier features of log(sigma / alpha) / 4,
    0 at first, and used in training only.

    Arguments:
        weight: the fixed weight.
        features: Fourier features, at least 1; 128 in the paper.
    """

    frequency: Tensor
    phase: Tensor

    def __init__(self, weight: Weight = UNIFORM_WEIGHT, features: int = 128):
        super().__init__()
        check_whole("features", features, 1)
        if isinstance(weight, LearnedUncertainty):
            raise ValueError("weight must not be LearnedUncertainty itself")
        self.weight = weight
        self.register_buffer("frequency", 2 * math.pi * torch.randn(features))
        self.register_buffer("phase", 2 * math.pi * torch.rand(features))
        self.coefficients = nn.Parameter(torch.zeros(features))

    def uncertainty(self, log_snr: Tensor) -> Tensor:
        """u [B], in the coefficients' dtype: the logarithm of the expected weighted error."""
        place = (-log_snr / 8).to(self.coefficients)[:, None]
        features = math.sqrt(2) * torch.cos(place * self.frequency + self.phase)
        return features @ self.coefficients / math.sqrt(len(self.coefficients))

    def weigh(self, error: Tensor, log_snr: Tensor, rows: Rows, density: Tensor) -> Tensor:
        u = self.uncertainty(log_snr).to(error)
        return self.weight.weigh(error, log_snr, rows, density) * torch.exp(-u) + u
