"""Weights of the denoising objective over noise levels.

weight(log_snr, rows, density) -> [B] multiplies the squared error of the *network's output*. A paper's weight on the
error of x_0 is converted by the squared row gain c_out^2, one on the error of eps by e_out^2, since
x0_hat - x_0 = c_out (F - F*) and eps_hat - eps = e_out (F - F*).
"""

import torch
from torch import Tensor

from ..parameterizations import Rows

__all__ = ["Weight", "Uniform", "MinSNR"]


class Weight:
    """Base of the weights. log_snr [B] and density [B] float64; rows as broadcast over the data."""

    def __call__(self, log_snr: Tensor, rows: Rows, density: Tensor) -> Tensor:
        raise NotImplementedError


class Uniform(Weight):
    """1 on the network's own error: L_simple for eps (arXiv 2006.11239, eq. 14), EDM's lambda(sigma) for edm."""

    def __call__(self, log_snr: Tensor, rows: Rows, density: Tensor) -> Tensor:
        return torch.ones_like(log_snr)


class MinSNR(Weight):
    """min(SNR, gamma) on the error of x_0. Hang et al., "Efficient Diffusion Training via Min-SNR Weighting Strategy",
    2023, arXiv 2303.09556, eq. 8.

    Arguments:
        gamma: ceiling of the signal-to-noise ratio, positive; 5 in the paper.
    """

    def __init__(self, gamma: float):
        if not gamma > 0:
            raise ValueError(f"gamma must be positive, got {gamma}")
        self.gamma = float(gamma)

    def __call__(self, log_snr: Tensor, rows: Rows, density: Tensor) -> Tensor:
        return torch.exp(log_snr).clamp(max=self.gamma) * rows.c_out.reshape(-1) ** 2
