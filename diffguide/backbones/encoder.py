"""The encoder half of ADM's U-Net with attention pooling: one vector per image, for classifiers of noisy images.

Dhariwal & Nichol, "Diffusion Models Beat GANs on Image Synthesis", 2021, arXiv 2105.05233, section 4.3.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from .attention import attention
from .base import Backbone, ConditionEmbedding, zero_init
from .conditions import Condition
from .unet import Attention, ResidualBlock, UNetBlock, group_norm, level_sides

__all__ = ["AttentionPooling", "UNetEncoder"]


class AttentionPooling(nn.Module):
    """linear(attention(q(mean), k(tokens), v(tokens))), tokens = the mean and every pixel, each plus a learned position.

    Radford et al. 2021, arXiv 2103.00020, section 2.4: the mean over the pixels asks, and all of them answer.
    """

    def __init__(self, side: int, channels: int, head_channels: int, outputs: int, double_differentiable: bool):
        super().__init__()
        self.heads, self.double_differentiable = channels // head_channels, double_differentiable
        self.position = nn.Parameter(torch.randn(side**2 + 1, channels) / channels**0.5)
        self.query, self.key_value = nn.Linear(channels, channels), nn.Linear(channels, 2 * channels)
        self.linear = zero_init(nn.Linear(channels, outputs))

    def forward(self, h: Tensor) -> Tensor:
        """[B, outputs] of h [B, C, H, W]."""
        pixels = h.flatten(2).mT
        tokens = torch.cat([pixels.mean(1, keepdim=True), pixels], dim=1) + self.position
        q, k, v = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)  # [B, heads, N, head_channels]
            for part in (self.query(tokens[:, :1]), *self.key_value(tokens).chunk(2, dim=2))
        )
        return self.linear(attention(q, k, v, self.double_differentiable).flatten(1))


class UNetEncoder(Backbone):
    """Residual blocks and attention from the full resolution down, as in `UNet`, then `AttentionPooling`; y is not used.

    Arguments:
        in_channels: channels of the images.
        out_features: length of the output, for a classifier the number of classes.
        size: side of the images, pixels.
        channels: width at full resolution.
        multipliers: width of each resolution level in units of channels; each further level halves the side.
        blocks: residual blocks per level.
        attention: sides, in pixels, at which blocks are followed by attention.
        head_channels: channels per attention head; divides the width at those sides and at the last level.
        dropout: probability in [0, 1).
        noise_conditioned: whether the noise level is an input.
        double_differentiable: whether second derivatives are needed; slower attention.
        checkpointing: whether blocks are recomputed in the backward pass: less memory, a third more time.

    Raises:
        ValueError: no output, sides that do not fit, or widths that heads do not divide.
    """

    def __init__(
        self, in_channels: int, out_features: int, size: int, channels: int = 32, multipliers: Sequence[int] = (1, 2),
        blocks: int = 2, attention: Sequence[int] = (4,), head_channels: int = 32, dropout: float = 0.1,
        noise_conditioned: bool = True, double_differentiable: bool = False, checkpointing: bool = False,
    ):  # fmt: skip
        super().__init__()
        if out_features < 1:
            raise ValueError(f"out_features must be at least 1 (one per class of the data), got {out_features}")
        if len(multipliers) < 1 or min(multipliers) < 1 or channels < 4 or blocks < 1 or head_channels < 1:
            raise ValueError(
                f"the encoder needs one multiplier, 4 channels, 1 block and 1 channel per head at least, got "
                f"multipliers={list(multipliers)}, channels={channels}, blocks={blocks}, head_channels={head_channels}"
            )
        sides = level_sides(size, len(multipliers), attention)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        if channels * multipliers[-1] % head_channels:
            raise ValueError(
                f"head_channels must divide {channels * multipliers[-1]} channels, got {head_channels}; "
                f"backbone.head_channels={math.gcd(channels * multipliers[-1], head_channels)} does"
            )
        self.out_features = out_features
        self.noise_conditioned, self.checkpointing = noise_conditioned, checkpointing
        embedding = 4 * channels
        self.embedding = ConditionEmbedding(embedding, 0, 0, noise_conditioned)

        def block(inputs: int, outputs: int, side: int, resample: nn.Module | None = None) -> UNetBlock:
            layers: list[nn.Module] = [ResidualBlock(inputs, outputs, embedding, dropout, resample)]
            if side in attention and resample is None:
                layers.append(Attention(outputs, head_channels, double_differentiable))
            return UNetBlock(layers)

        width = channels * multipliers[0]
        self.conv_in = nn.Conv2d(in_channels, width, 3, padding=1)
        self.down = nn.ModuleList()
        for level, side in enumerate(sides):
            if level:
                self.down.append(block(width, width, side, nn.AvgPool2d(2)))
            for _ in range(blocks):
                self.down.append(block(width, channels * multipliers[level], side))
                width = channels * multipliers[level]
        self.norm_out = group_norm(width)
        self.pooling = AttentionPooling(sides[-1], width, head_channels, out_features, double_differentiable)

    def forward(self, x: Tensor, log_snr: Tensor | None, y: Condition | None = None) -> Tensor:
        h = self.conv_in(x.to(self.conv_in.weight.dtype))
        embedding = functional.silu(self.embedding(h, log_snr, None))
        for block in self.down:
            h = self.run(block, h, embedding)
        return self.pooling(functional.silu(self.norm_out(h)))
