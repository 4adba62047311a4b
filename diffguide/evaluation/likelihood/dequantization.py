"""Likelihood in one unit: bits per dimension of the bound, the flow and the exact density of a model.

For data of K values in [-1, 1], 2 / (K - 1) apart, every figure is a bound on -log2 P(x) / D of the discrete data; for
continuous data (K = 0) it is -log p(x) / D in nats. For K values log P(x) >= E log p(z) + correction, where z is x plus
noise: `UniformDequantization` within the bin of a value, `DecoderDequantization` as much as there is at the start.
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
        noise: the part of it (bits/dim) that more draws for the same examples would remove; None = unknown.
        n: examples.
        dimensions: D.
        parts: nats/dim whose sum is nats_per_dim.
        offset: bits/dim that K discrete values add to a density in [-1, 1]; 0 if a decoder does it.
    """

    nats_per_dim: float
    bits_per_dim: float
    standard_error: float | None
    noise: float | None
    n: int
    dimensions: int
    parts: dict[str, float]
    offset: float


def bits_offset(values: int) -> float:
    """log2((K - 1) / 2): what bins of width 2 / (K - 1) add to -log2 p per dimension; 3 for 17 values, 6.994 for 256."""
    return math.log2((values - 1) / 2) if values else 0.0


def estimate_likelihood(
    parts: dict[str, Tensor], dimensions: int, noise: Tensor | None, offset: float = 0.0
) -> LikelihoodEstimate:
    """The likelihood of examples whose nats are the sum of the parts, [N] each.

    Arguments:
        dimensions: D, values of an example.
        noise: standard error of the nats of each example due to its draws, [N].
        offset: as in the fields; included in the parts.
    """
    nats = functools.reduce(torch.add, (part.double() for part in parts.values())) / dimensions
    n, bits = len(nats), math.log(2)
    error = float(nats.std()) / math.sqrt(n) / bits if n > 1 else None
    drawn = None if noise is None else float(noise.double().square().sum().sqrt()) / n / dimensions / bits
    means = {name: float(part.double().mean()) / dimensions for name, part in parts.items()}
    return LikelihoodEstimate(float(nats.mean()), float(nats.mean()) / bits, error, drawn, n, dimensions, means, offset)


class Dequantization:
    """Base of the dequantizations: log P(x) >= E [ log p(point) + correction ] for discrete data x.

    Attributes:
        text: description, for metrics.json.
    """

    text: str

    def __call__(self, x: Tensor, values: int, log_snr_max: float, noise: Noise, index: int) -> tuple[Tensor, Tensor]:
        """A point [B, ...] and the correction [B] float64, in nats.

        Arguments:
            x: data of `values` values in [-1, 1].
            log_snr_max: of the start.
            noise: one seed per example; `index` counts the draws.
        """
        raise NotImplementedError

    def offset(self, values: int) -> float:
        """What it adds to every example, in bits/dim; 0 if that depends on the draw."""
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

    The first step of the bound, so that bound and ODE differ only in what follows. Tight if the model knows that data are
    discrete, or if s_0 is as wide as the bins; otherwise use a lower log_snr_max. Zheng, Lu, Chen, Zhu, "Improved
    Techniques for Maximum Likelihood Estimation for Diffusion ODEs", 2023, arXiv 2305.03935, section 4.
    """

    text = "noise of the start, discretised decoder"

    def __call__(self, x: Tensor, values: int, log_snr_max: float, noise: Noise, index: int) -> tuple[Tensor, Tensor]:
        log_snr = torch.tensor(log_snr_max, dtype=torch.float64)
        eps = noise.normal(index, 1).to(x)
        decoded = Discretized(values).log_prob(x, eps, log_snr) - Gaussian().log_prob(x, eps, log_snr)
        return x + math.exp(-log_snr_max / 2) * eps, decoded.double()
