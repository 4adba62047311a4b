"""The U-Net of ADM: residual blocks with adaptive group normalisation, optional attention.

Dhariwal & Nichol, "Diffusion Models Beat GANs on Image Synthesis", 2021, arXiv 2105.05233, section 3.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from .attention import attention
from .base import Backbone, ConditionEmbedding, check_halvings, zero_init
from .conditions import Condition
from .fourier import FourierFeatures
from .perturbations import Perturbation

__all__ = ["UNet"]


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalisation with up to 32 groups of at least 4 channels."""
    groups = min(32, channels // 4)
    while channels % groups:
        groups -= 1
    return nn.GroupNorm(groups, channels)


class ResidualBlock(nn.Module):
    """h = conv(silu(norm(x))); h = conv(dropout(silu(norm(h) (1 + scale) + shift))); skip(x) + h, resampled on the way in.

    Scale and shift come from the conditioning vector (AdaGN, arXiv 2105.05233, eq. 6).
    """

    def __init__(self, inputs: int, outputs: int, embedding: int, dropout: float, resample: nn.Module | None = None):
        super().__init__()
        self.resample = resample or nn.Identity()
        self.norm_in, self.conv_in = group_norm(inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * outputs)
        self.norm_out, self.dropout = group_norm(outputs), nn.Dropout(dropout)
        self.conv_out = zero_init(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv_in(self.resample(functional.silu(self.norm_in(x))))
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        h = torch.addcmul(shift, self.norm_out(h), 1 + scale)
        return self.shortcut(x) + self.conv_out(self.dropout(functional.silu(h)))

    def shortcut(self, x: Tensor) -> Tensor:
        """The short cut."""
        return self.skip(self.resample(x))


class Attention(nn.Module):
    """Multi-head self-attention over the pixels, x + proj(softmax(q k^T / sqrt(d)) v)."""

    index: int  # among the attention layers of its network

    def __init__(self, channels: int, head_channels: int, double_differentiable: bool):
        super().__init__()
        if channels % head_channels:
            raise ValueError(
                f"head_channels must divide {channels} channels at the sides with attention, got {head_channels}; "
                f"backbone.head_channels={math.gcd(channels, head_channels)} does"
            )
        self.heads, self.double_differentiable = channels // head_channels, double_differentiable
        self.norm, self.qkv = group_norm(channels), nn.Conv2d(channels, 3 * channels, 1)
        self.projection = zero_init(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor, perturbation: Perturbation | None = None) -> Tensor:
        batch, channels, height, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(batch, 3, self.heads, channels // self.heads, height * width)
        q, k, v = qkv.transpose(-1, -2).unbind(1)  # [B, heads, H W, head_channels]
        if perturbation is not None:
            q = perturbation.replace_queries(self.index, q, (height, width))
        h = attention(q, k, v, self.double_differentiable)
        if perturbation is not None:
            h = perturbation.replace_attention(self.index, v, h)
        return x + self.projection(h.transpose(-1, -2).reshape(x.shape))


class UNetBlock(nn.ModuleList):
    """One residual block and the attention behind it, if any."""

    index: int  # among the blocks of its network

    def forward(self, x: Tensor, embedding: Tensor, perturbation: Perturbation | None = None) -> Tensor:
        residual, *attention = self
        h = residual(x, embedding)
        for layer in attention:
            h = layer(h, perturbation)
        if perturbation is None:
            return h
        assert isinstance(residual, ResidualBlock)
        return perturbation.replace_output(self.index, residual.shortcut(x), h)


def level_sides(size: int, levels: int, attention: Sequence[int], advice: str = "") -> list[int]:
    """The sides of an image, in pixels, on the levels of a network, each half of the one before.

    Raises:
        ValueError: a side that cannot be halved so often, or attention at another side.
    """
    check_halvings(size, levels)
    sides = [size // 2**level for level in range(levels)]
    if any(side not in sides for side in attention):
        fitting = sorted({min(sides, key=lambda side: abs(side - wanted)) for wanted in attention}, reverse=True)
        raise ValueError(
            f"attention={list(attention)}: the sides of this network are {sides}{advice}; backbone.attention={fitting} fits"
        )
    return sides


class UNet(Backbone):
    """U-Net for images [B, C, H, W] whose sides are divisible by 2^(number of multipliers - 1).

    Arguments:
        in_channels: channels of the images.
        out_features: channels of the output; None = in_channels.
        num_classes: number of classes, 0 = y is no class index.
        size: side of the images, pixels.
        channels: width at full resolution.
        multipliers: width of each resolution level in units of `channels`, finest first; each level halves the side.
        blocks: residual blocks per level on the way down (one more on the way up).
        attention: sides in pixels at which every block is followed by attention.
        head_channels: channels per attention head.
        dropout: probability in [0, 1).
        noise_conditioned: whether the noise level is an input.
        condition_features: length of the vectors of an Embedding, 0 = y is no Embedding.
        double_differentiable: whether second derivatives are needed; slower attention.
        checkpointing: whether blocks are recomputed in the backward pass: less memory, a third more time.
        channels_last: whether weights and activations lie in memory with the channels last: what matrix units prefer in half
            precision, and required by the fused attention kernels.
        fourier: exponents n of features sin(2^n pi x), cos(2^n pi x) beside x; none = x alone.
    """

    def __init__(
        self, in_channels: int, out_features: int | None = None, num_classes: int = 0, size: int | None = None,
        channels: int = 32, multipliers: Sequence[int] = (1, 2), blocks: int = 2, attention: Sequence[int] = (4,),
        head_channels: int = 32, dropout: float = 0.1,
        noise_conditioned: bool = True, condition_features: int = 0, double_differentiable: bool = False,
        checkpointing: bool = False, channels_last: bool = False, fourier: Sequence[int] = (),
    ):  # fmt: skip
        super().__init__()
        if size is None:
            raise ValueError(
                "the U-Net needs images, and this dataset has vectors: take backbone=mlp, mlp_levels where this one is "
                "unet_levels, mlp_classifier where it is of classes"
            )
        if not multipliers or min(multipliers) < 1 or channels < 4 or blocks < 1 or head_channels < 1:
            raise ValueError(
                f"the U-Net needs one multiplier, 4 channels, 1 block and 1 channel per head at least, got "
                f"multipliers={list(multipliers)}, channels={channels}, blocks={blocks}, head_channels={head_channels}"
            )
        sides = level_sides(
            size, len(multipliers), attention, "; unet_28, unet_32, unet_64 and unet_128 are made for larger images"
        )
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        self.num_classes, self.condition_features = num_classes, condition_features
        self.noise_conditioned, self.checkpointing = noise_conditioned, checkpointing
        embedding = 4 * channels
        self.embedding = ConditionEmbedding(embedding, num_classes, condition_features, noise_conditioned)
        attention_layers: list[int] = []
        residual_blocks: list[int] = []
        self.attention_layers, self.residual_blocks = attention_layers, residual_blocks

        def block(
            inputs: int, outputs: int, side: int, resample: nn.Module | None = None, attend: bool = True
        ) -> UNetBlock:
            made = UNetBlock([ResidualBlock(inputs, outputs, embedding, dropout, resample)])
            made.index = len(residual_blocks)
            residual_blocks.append(side)
            if attend and side in attention:
                layer = Attention(outputs, head_channels, double_differentiable)
                layer.index = len(attention_layers)
                attention_layers.append(side)
                made.append(layer)
            return made

        widths = [channels * multiplier for multiplier in multipliers]
        self.features = FourierFeatures(fourier)
        self.conv_in = nn.Conv2d(self.features.channels(in_channels), widths[0], 3, padding=1)
        self.down, skips, width = nn.ModuleList(), [widths[0]], widths[0]
        for level, side in enumerate(sides):
            if level:
                self.down.append(block(width, width, side, nn.AvgPool2d(2), attend=False))
                skips.append(width)
            for _ in range(blocks):
                self.down.append(block(width, widths[level], side))
                width = widths[level]
                skips.append(width)
        self.middle = nn.ModuleList([block(width, width, sides[-1]), block(width, width, sides[-1], attend=False)])
        self.up = nn.ModuleList()
        for level, side in reversed(list(enumerate(sides))):
            for _ in range(blocks + 1):
                self.up.append(block(width + skips.pop(), widths[level], side))
                width = widths[level]
            if level:
                self.up.append(block(width, width, 2 * side, nn.Upsample(scale_factor=2), attend=False))
        self.norm_out = group_norm(width)
        self.conv_out = zero_init(nn.Conv2d(width, in_channels if out_features is None else out_features, 3, padding=1))
        self.blocks = blocks
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.to(memory_format=self.layout)

    def forward(
        self, x: Tensor, log_snr: Tensor | None, y: Condition | None = None, perturbation: Perturbation | None = None
    ) -> Tensor:
        h = self.conv_in(self.features(x).to(self.conv_in.weight.dtype, memory_format=self.layout))
        embedding = functional.silu(self.embedding(h, log_snr, y))
        skips = [h]
        for block in self.down:
            h = self.run(block, h, embedding, perturbation)
            skips.append(h)
        for block in self.middle:
            h = self.run(block, h, embedding, perturbation)
        for index, block in enumerate(self.up):
            if index % (self.blocks + 2) <= self.blocks:  # the last block of each level only enlarges
                h = torch.cat([h, skips.pop()], dim=1)
            h = self.run(block, h, embedding, perturbation)
        return self.conv_out(functional.silu(self.norm_out(h)))
