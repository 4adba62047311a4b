"""The layers and blocks of the U-Nets DDPM++ and NCSN++, and their conditioning vector.

Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations", 2021, arXiv 2011.13456; Karras et
al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022, arXiv 2206.00364, table 7.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from .attention import attention
from .base import zero_init
from .conditions import ClassEmbedding, Condition
from .edm_layers import BlockPlan, Resample, as_bits, label_vectors, require_log_snr
from .kernels import Dropout, GroupNorm
from .perturbations import Perturbation
from .timesteps import LogNoiseTimesteps
from .unet_blocks import group_norm

__all__ = ["HALF", "EDMBlock", "EDMEmbedding", "FourierNoiseFeatures", "PositionalFeatures", "conv", "norm"]

HALF = math.sqrt(0.5)  # of a sum of two terms, so that the variance stays
EPSILON = 1e-6  # of the group normalisation


def norm(channels: int) -> GroupNorm:
    layer = group_norm(channels)
    layer.eps = EPSILON
    return layer


def conv(inputs: int, outputs: int, kernel: int, gain: float = 1.0) -> nn.Conv2d:
    """A convolution with Xavier's uniform weights and biases of 0."""
    layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
    nn.init.xavier_uniform_(layer.weight, gain)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def linear(inputs: int, outputs: int, gain: float = 1.0) -> nn.Linear:
    """The same for a linear layer."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


class PositionalFeatures(nn.Module):
    """[sin(w_i c), cos(w_i c)] with w_i = 10000^(-i / (half - 1)), i < half = width / 2, for c = ln(sigma) / 4."""

    def __init__(self, width: int):
        super().__init__()
        self.pairs = width // 2

    def frequencies(self, level: Tensor) -> Tensor:
        return 10000.0 ** (-torch.arange(self.pairs, dtype=torch.float32, device=level.device) / (self.pairs - 1))

    def forward(self, level: Tensor) -> Tensor:
        angles = level[:, None] * self.frequencies(level)
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class FourierNoiseFeatures(PositionalFeatures):
    """The same with w_i = 2 pi times random numbers of standard deviation 16. Tancik et al. 2020, arXiv 2006.10739."""

    freqs: Tensor

    def __init__(self, width: int):
        super().__init__(width)
        self.register_buffer("freqs", as_bits(16 * torch.randn(self.pairs)))

    def frequencies(self, level: Tensor) -> Tensor:
        return 2 * math.pi * self.freqs.view(torch.float32)


class EDMEmbedding(nn.Module):
    """silu(layer1(silu(layer0(features of c + label(one-hot label))))), c = ln(sigma / alpha) / 4.

    The label is the zero vector in rows without condition. The published network has sqrt(K) times the label, for K classes;
    here this factor is in the weights, so that a row can be copied to a network with other classes.
    """

    def __init__(self, noise: PositionalFeatures, width: int, features: int, num_classes: int):
        super().__init__()
        self.noise, self.timesteps = noise, LogNoiseTimesteps()
        self.label = linear(num_classes, width, math.sqrt(num_classes)) if num_classes else None
        self.layer0, self.layer1 = linear(width, features), linear(features, features)

    def table(self) -> Tensor | None:
        """The term of each class, [K, width], without the bias of all rows."""
        return None if self.label is None else self.label.weight.T

    def embed(self, y: Tensor) -> ClassEmbedding:
        vectors = label_vectors(self.table(), y)
        assert vectors is not None
        return vectors

    def forward(self, log_snr: Tensor | None, y: Condition | None) -> Tensor:
        h = self.noise(self.timesteps(require_log_snr(log_snr))).to(self.layer0.weight.dtype)
        if self.label is not None:
            h = h + self.label.bias
            label = label_vectors(self.table(), y)
            if label is not None:
                h = h + torch.where(label.keep[:, None], label.vectors.to(h.dtype), 0)
        return functional.silu(self.layer1(functional.silu(self.layer0(h))))


class EDMBlock(nn.Module):
    """(skip(x) + h) / sqrt 2, h = conv1(silu(norm1(conv0(silu(norm0(x))) + affine(embedding)))); then attention.

    Attention: (x + proj(softmax(q k^T / sqrt(d)) v)) / sqrt 2 with one head. Resampling comes before conv0 and skip.
    """

    index: int  # of the block in its network
    attention_index: int  # of its attention, if any

    def __init__(
        self, plan: BlockPlan, embedding: int, dropout: float, taps: Sequence[float], double_differentiable: bool
    ):
        super().__init__()
        inputs, outputs = plan.inputs, plan.outputs
        self.joins, self.double_differentiable = plan.joins, double_differentiable
        self.resample = nn.Identity() if plan.resample is None else Resample(plan.resample, taps)
        self.norm0, self.conv0 = norm(inputs), conv(inputs, outputs, 3)
        self.affine = linear(embedding, outputs)
        self.norm1, self.conv1 = norm(outputs), zero_init(conv(outputs, outputs, 3))
        self.dropout = Dropout(dropout)
        has_skip = inputs != outputs or plan.resample is not None
        self.skip = conv(inputs, outputs, 1) if has_skip else nn.Identity()
        self.qkv: nn.Conv2d | None = None
        if plan.attends:
            self.norm2, self.qkv = norm(outputs), conv(outputs, 3 * outputs, 1, math.sqrt(0.2))
            self.proj = zero_init(conv(outputs, outputs, 1))

    def forward(self, x: Tensor, embedding: Tensor, perturbation: Perturbation | None = None) -> Tensor:
        h = self.conv0(self.resample(functional.silu(self.norm0(x))))
        h = functional.silu(self.norm1(h + self.affine(embedding)[:, :, None, None]))
        skip = self.skip(self.resample(x))
        h = (skip + self.conv1(self.dropout(h))) * HALF
        if self.qkv is not None:
            h = (h + self.attend(h, perturbation)) * HALF
        return h if perturbation is None else perturbation.replace_output(self.index, skip, h)

    def attend(self, x: Tensor, perturbation: Perturbation | None) -> Tensor:
        batch, channels, height, width = x.shape
        assert self.qkv is not None
        qkv = self.qkv(self.norm2(x)).reshape(batch, 3, 1, channels, height * width)
        q, k, v = qkv.transpose(-1, -2).contiguous().unbind(1)  # [B, 1, H W, C]
        if perturbation is not None:
            q = perturbation.replace_queries(self.attention_index, q, (height, width))
        h = attention(q, k, v, self.double_differentiable)
        if perturbation is not None:
            h = perturbation.replace_attention(self.attention_index, v, h)
        return self.proj(h.transpose(2, 3).reshape(x.shape))
