"""Likelihoods in one unit, bits per dimension, for the bound, the flow and the exact density of a model.

For data of K values in [-1, 1], 2 / (K - 1) apart, every figure is a bound on -log2 P(x) / D of the discrete data; for
continuous data (K = 0) it is -log p(x) / D in nats. For K values log P(x) >= E log p(z) + correction, where z is x plus
noise: uniform in the bin of a value (`UniformDequantization`) or the noise of z_0 (`DecoderDequantization`).
"""

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from ...models.decoders import Discretized, Gaussian
from ...randomness import Noise

__all__ = [
    "DecoderDequantization",
    "Dequantization",
    "LikelihoodEstimate",
    "UniformDequantization",
    "bits_offset",
    "estimate_likelihood",
]


class LikelihoodEstimate(NamedTuple):
    """The likelihood of N examples.

    Fields:
        nats_per_dim: mean of -log p(x) / D; for discrete data of -log P(x) / D, a bound on it.
        bits_per_dim: the same divided by log 2.
        standard_error: of bits_per_dim, std over examples / sqrt(N); None for a single one.
        noise: the part of it (bits/dim) that is due to the number of draws per example; None = unknown.
        n: examples.
        parts: nats/dim whose sum is nats_per_dim.
    """

    nats_per_dim: float
    bits_per_dim: float
    standard_error: float | None
    noise: float | None
    n: int
    parts: dict[str, float]


def bits_offset(values: int) -> float:
    """log2((K - 1) / 2), which bins of width 2 / (K - 1) add to -log2 p per dimension; 3 for K = 17, 6.994 for 256."""
    return math.log2((values - 1) / 2) if values else 0.0


def estimate_likelihood(parts: dict[str, Tensor], dimensions: int, noise: Tensor | None) -> LikelihoodEstimate:
    """The likelihood of examples whose nats are the sum of the parts, [N] each.

    Arguments:
        dimensions: D, values of an example.
        noise: standard error of the nats of each example due to its draws, [N].
    """
    nats = functools.reduce(torch.add, (part.double() for part in parts.values())) / dimensions
    n, bits = len(nats), math.log(2)
    error = float(nats.std()) / math.sqrt(n) / bits if n > 1 else None
    drawn = None if noise is None else float(noise.double().square().sum().sqrt()) / n / dimensions / bits
    means = {name: float(part.double().mean()) / dimensions for name, part in parts.items()}
    return LikelihoodEstimate(float(nats.mean()), float(nats.mean()) / bits, error, drawn, n, means)


class Dequantization:
    """Base of the dequantizations: log P(x) >= E [ log p(point) + correction ] for discrete data x.

    Attributes:
        text: description, for metrics.json.
    """

    text: str

    def __call__(self, x: Tensor, values: int, log_snr_max: float, noise: Noise, index: int) -> tuple[Tensor, Tensor]:
        """A point [B, ...] and the correction [B] float64, in nats.

        Arguments:
            x: data with K = `values` values in [-1, 1].
            log_snr_max: log-SNR of z_0.
            noise: one seed per example; `index` counts the draws.
        """
        raise NotImplementedError

    def offset(self, values: int) -> float:
        """Bits/dim that it adds to every example; 0 if the correction depends on the draw."""
        return 0.0


class UniformDequantization(Dequantization):
    """z = x + u, u uniform in the bin [-1/(K - 1), 1/(K - 1)), correction D log(2 / (K - 1)).

    Theis, van den Oord, Bethge, "A note on the evaluation of generative models", 2016, arXiv 1511.01844, section 3.1.
    """

    text = "uniform within the bin"

    def __call__(self, x: Tensor, values: int, log_snr_max: float, noise: Noise, index: int) -> tuple[Tensor, Tensor]:
        width = 2 / (values - 1)
        u = torch.special.ndtr(noise.normal(index, 1).double()).to(x)
        volume = x[0].numel() * math.log(width)
        return x + width * (u - 0.5), torch.full((len(x),), volume, dtype=torch.float64, device=x.device)

    def offset(self, values: int) -> float:
        return bits_offset(values)


class DecoderDequantization(Dequantization):
    """z = z_0 / alpha_0 = x + s_0 eps, correction log p(x | z_0) - log N(z; x, s_0^2 I), p the discretised decoder.

    It is the reconstruction term of the bound, so bound and ODE differ only in the other terms. It is tight if the model
    was trained on discrete data down to s_0, or if s_0 is as wide as the bins; otherwise use a lower log_snr_max. Zheng, Lu,
    Chen, Zhu, "Improved Techniques for Maximum Likelihood Estimation for Diffusion ODEs", 2023, arXiv 2305.03935, section 4.
    """

    text = "noise of the start, discretised decoder"

    def __call__(self, x: Tensor, values: int, log_snr_max: float, noise: Noise, index: int) -> tuple[Tensor, Tensor]:
        log_snr = torch.tensor(log_snr_max, dtype=torch.float64)
        eps = noise.normal(index, 1).to(x)
        decoded = Discretized(values).log_prob(x, eps, log_snr) - Gaussian().log_prob(x, eps, log_snr)
        return x + math.exp(-log_snr_max / 2) * eps, decoded.double()
