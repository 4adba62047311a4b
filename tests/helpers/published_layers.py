"""The layers of published networks as plain functions over tensors with the published names, written from the papers.

Weights are drawn when a layer first asks for them: one call of a network makes a state dict that fits it. Nothing here
imports diffguide.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional


class Drawn(dict):
    """Random weights by name, drawn on first use."""

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.rng, self.dtype = torch.Generator().manual_seed(seed), dtype

    def draw(self, name: str, *shape: int, mean: float = 0.0, std: float | None = None) -> Tensor:
        """The tensor of a name; a new one keeps the variance of a layer's input."""
        if name not in self:
            std = math.prod(shape[1:]) ** -0.5 if std is None else std
            self[name] = (mean + std * torch.randn(shape, generator=self.rng, dtype=torch.float64)).to(self.dtype)
        return self[name]

    def bias(self, name: str, length: int) -> Tensor:
        return self.draw(name, length, std=0.2)


def linear(weights: Drawn, name: str, x: Tensor, outputs: int) -> Tensor:
    return x @ weights.draw(f"{name}.weight", outputs, x.shape[-1]).T + weights.bias(f"{name}.bias", outputs)


def convolution(weights: Drawn, name: str, x: Tensor, outputs: int, side: int = 3, stride: int = 1) -> Tensor:
    """Padded to keep the side at stride 1."""
    weight = weights.draw(f"{name}.weight", outputs, x.shape[1], side, side)
    return functional.conv2d(x, weight, weights.bias(f"{name}.bias", outputs), stride, (side - 1) // 2)


def group_norm(weights: Drawn, name: str, x: Tensor) -> Tensor:
    """32 groups, eps 1e-5."""
    groups = x.unflatten(1, (32, -1)).flatten(2)
    variance, mean = torch.var_mean(groups, dim=2, unbiased=False, keepdim=True)
    x = ((groups - mean) / (variance + 1e-5).sqrt()).reshape(x.shape)
    shape = (-1, *[1] * (x.ndim - 2))
    scale = weights.draw(f"{name}.weight", x.shape[1], mean=1.0, std=0.2).view(shape)
    return x * scale + weights.bias(f"{name}.bias", x.shape[1]).view(shape)


def layer_norm(x: Tensor) -> Tensor:
    """Over the last axis, without parameters, eps 1e-6."""
    variance, mean = torch.var_mean(x, dim=-1, unbiased=False, keepdim=True)
    return (x - mean) / (variance + 1e-6).sqrt()


def softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One head, [B, N, d]."""
    return torch.softmax(q @ k.mT / math.sqrt(q.shape[2]), dim=2) @ v


def timestep_features(t: Tensor, width: int) -> Tensor:
    """[cos, sin] of t at frequencies from 1 down to almost 1 / 10000."""
    half = width // 2
    angles = t[:, None] * 10000 ** (-torch.arange(half, dtype=torch.float32) / half)
    return torch.cat([angles.cos(), angles.sin()], dim=1).to(t.dtype)


def silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)
