"""Layers that keep the magnitude (root mean square) of activations and weights.

Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models", 2023, arXiv 2312.02696, sections 2.2 to
2.4 and appendix B. A layer of this file maps independent inputs of variance 1 to outputs of variance about 1.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from .edm_layers import as_bits

__all__ = ["MPFourier", "MPLayer", "mp_concatenate", "mp_silu", "mp_sum", "normalise"]

EPSILON = 1e-4  # of every normalisation
SILU_MAGNITUDE = 0.596  # root mean square of silu(z), z standard normal


def magnitude(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The root mean square over some dimensions, which stay, with size 1; in float32 at least."""
    exact = torch.promote_types(x.dtype, torch.float32)
    norm = torch.linalg.vector_norm(x, dim=dims, keepdim=True, dtype=exact)
    return norm * math.sqrt(1 / math.prod([x.shape[dim] for dim in dims]))


def normalise(x: Tensor, dim: int) -> Tensor:
    """x / (magnitude + 1e-4) along one dimension, eq. 66."""
    return x / (EPSILON + magnitude(x, (dim,))).to(x.dtype)


def mp_silu(x: Tensor) -> Tensor:
    """silu(x) / 0.596, eq. 81."""
    return functional.silu(x) / SILU_MAGNITUDE


def mp_sum(a: Tensor, b: Tensor, t: float) -> Tensor:
    """((1 - t) a + t b) / sqrt((1 - t)^2 + t^2), eq. 88."""
    return a.lerp(b, t) / math.sqrt((1 - t) ** 2 + t**2)


def mp_concatenate(a: Tensor, b: Tensor, t: float) -> Tensor:
    """[B, C_a + C_b, ...]: a contributes (1 - t)^2 and b t^2 of the magnitude squared, whatever their widths, eq. 103."""
    both = math.sqrt((a.shape[1] + b.shape[1]) / ((1 - t) ** 2 + t**2))
    return torch.cat([both * (1 - t) / math.sqrt(a.shape[1]) * a, both * t / math.sqrt(b.shape[1]) * b], dim=1)


class MPFourier(nn.Module):
    """sqrt(2) cos(w_i c + phi_i), w_i = 2 pi times a standard normal number, phi_i uniform in [0, 2 pi). Appendix B.3.

    Arguments:
        width: number of features.
    """

    freqs: Tensor
    phases: Tensor

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("freqs", as_bits(2 * math.pi * torch.randn(width)))
        self.register_buffer("phases", as_bits(2 * math.pi * torch.rand(width)))

    def forward(self, level: Tensor) -> Tensor:
        """[B, width] float32 of level [B]."""
        angles = level.float()[:, None] * self.freqs.view(torch.float32) + self.phases.view(torch.float32)
        return angles.cos() * math.sqrt(2)


class MPLayer(nn.Module):
    """A convolution or linear layer without bias by weights of magnitude 1 / sqrt(inputs), eq. 47 and 66.

    The weights of each output are divided by their magnitude in every call. In training they are also replaced by the result
    (`EDM2UNet.normalise_weights`), since the effective learning rate depends on their magnitude.

    Arguments:
        inputs, outputs: channels or features.
        kernel: side of the kernel, odd; 0 = a linear layer.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, *[kernel] * 2 * bool(kernel)))
        self.dims, self.inputs = tuple(range(1, self.weight.ndim)), inputs * max(kernel, 1) ** 2

    def normalised(self) -> Tensor:
        """The weights with magnitude 1 for each output, in float32 at least."""
        scale = magnitude(self.weight, self.dims)
        return self.weight.to(scale.dtype) / (EPSILON + scale)

    def forward(self, x: Tensor, gain: float | Tensor = 1.0) -> Tensor:
        factor = gain / math.sqrt(self.inputs) / (EPSILON + magnitude(self.weight, self.dims))
        weight = (self.weight.to(factor.dtype) * factor).to(x.dtype)
        if weight.ndim == 2:
            return functional.linear(x, weight)
        return functional.conv2d(x, weight, padding=weight.shape[-1] // 2)
