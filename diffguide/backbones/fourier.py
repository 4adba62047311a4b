"""Fourier features of an image, with which a network distinguishes neighbouring grey values.

Kingma, Salimans, Poole, Ho, "Variational Diffusion Models", 2021, arXiv 2107.00630, appendix C.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["FourierFeatures"]


class FourierFeatures(nn.Module):
    """[x, sin(2^n pi x), cos(2^n pi x)] for every exponent n, along dimension 1.

    Arguments:
        exponents: n in [0, 12], wavelength 2^(1 - n) in x; 7 and 8 in the paper, for 256 values; () = x alone.

    Raises:
        ValueError: an exponent out of range.
    """

    def __init__(self, exponents: Sequence[int]):
        super().__init__()
        if not all(0 <= n <= 12 for n in exponents):
            raise ValueError(f"fourier must be a list of exponents from 0 to 12, got {list(exponents)}")
        self.frequencies = [2**n * math.pi for n in exponents]

    def channels(self, inputs: int) -> int:
        """Channels of the result for `inputs` channels of x."""
        return inputs * (1 + 2 * len(self.frequencies))

    def forward(self, x: Tensor) -> Tensor:
        waves = [wave(frequency * x) for frequency in self.frequencies for wave in (torch.sin, torch.cos)]
        return torch.cat([x, *waves], dim=1) if waves else x
