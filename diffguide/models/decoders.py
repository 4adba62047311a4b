"""Decoders p(x | z_0): the distribution of the data given the least noisy latent z_0 = alpha_0 x + sigma_0 eps.

log p(x | z_0) depends on alpha_0 / sigma_0 alone, so it holds under every normalisation. The variational bound needs its
mean over eps, in training and in evaluation.
"""

import math

import torch
from torch import Tensor

__all__ = ["Decoder", "Discretized", "Gaussian", "is_quantized"]

MAX_OFFSET = 20.0  # in units of sigma_0: a value further away has a share below e^-60 for every |eps| < 7


def is_quantized(x: Tensor, quantization_levels: int) -> bool:
    """Whether all elements of x are values 2 k / (K - 1) - 1, k = 0 ... K - 1, within a thousandth of their spacing."""
    index = (x.double() + 1) / 2 * (quantization_levels - 1)
    return bool(index.sub(index.round()).abs().max() <= 1e-3 and x.abs().max() <= 1 + 1e-4)


class Decoder:
    """Base of the decoders.

    Attributes:
        quantization_levels: number of values that an element of x can have; 0 = continuous data, where log_prob is a
            density.
    """

    quantization_levels: int = 0

    def check(self, x: Tensor) -> None:
        """Raises ValueError for data x that are not quantized as the decoder needs."""

    def log_prob(self, x: Tensor, eps: Tensor, log_snr: Tensor) -> Tensor:
        """log p(x | z_0 = alpha_0 x + sigma_0 eps) in nats, [B]; gradients reach log_snr.

        Arguments:
            x, eps: [B, ...].
            log_snr: 0-d, log(alpha_0^2 / sigma_0^2), finite.
        """
        raise NotImplementedError


class Discretized(Decoder):
    """p(x | z_0) = prod_i q(z_0i | x_i) / sum_v q(z_0i | v), where v runs over the values that an element can have.

    Kingma, Salimans, Poole, Ho, "Variational Diffusion Models", 2021, arXiv 2107.00630, section 3.3. With s_v =
    (alpha_0 / sigma_0) (v - x_i), q(z_0i | v) / q(z_0i | x_i) = exp(s_v eps_i - s_v^2 / 2).

    Arguments:
        quantization_levels: K values v = 2 k / (K - 1) - 1, k = 0 ... K - 1: 17 for the digits, 256 for bytes.

    Raises:
        ValueError: fewer than 2 values.
    """

    def __init__(self, quantization_levels: int):
        if quantization_levels < 2:
            raise ValueError(
                f"quantization_levels must be at least 2, got {quantization_levels}: for continuous data use "
                "objective/decoder=gaussian"
            )
        self.quantization_levels = quantization_levels

    def check(self, x: Tensor) -> None:
        if not is_quantized(x, self.quantization_levels):
            raise ValueError(
                f"the data are not quantized to {self.quantization_levels} equally spaced values in [-1, 1]; check "
                "dataset.quantization_levels"
            )

    def log_prob(self, x: Tensor, eps: Tensor, log_snr: Tensor) -> Tensor:
        spacing = 2 / (self.quantization_levels - 1)
        step = torch.exp(log_snr / 2).to(x) * spacing  # between neighbouring values, in units of sigma_0
        index = ((x + 1) / spacing).round()
        others = torch.zeros_like(x)
        reach = math.ceil(MAX_OFFSET / max(float(step.detach()), 1e-30))
        for k in range(1, min(self.quantization_levels - 1, reach) + 1):
            s = k * step
            above = torch.where(index + k < self.quantization_levels, torch.exp(s * eps - s**2 / 2), 0)
            below = torch.where(index >= k, torch.exp(-s * eps - s**2 / 2), 0)
            others = others + above + below
        return -torch.log1p(others).flatten(1).sum(1)


class Gaussian(Decoder):
    """p(x | z_0) = N(x; z_0 / alpha_0, (sigma_0 / alpha_0)^2 I), for continuous data."""

    def log_prob(self, x: Tensor, eps: Tensor, log_snr: Tensor) -> Tensor:
        return 0.5 * (log_snr.to(x) - math.log(2 * math.pi) - eps**2).flatten(1).sum(1)
