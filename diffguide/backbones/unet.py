"""The U-Net of ADM: residual blocks with adaptive group normalisation, optional attention.

Dhariwal & Nichol, "Diffusion Models Beat GANs on Image Synthesis", 2021, arXiv 2105.05233, section 3.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from .attention import attention
from .base import Backbone, ConditionEmbedding, zero_init
from .conditions import Condition
from .fourier import FourierFeatures
from .kernels import Dropout, GroupNorm
from .perturbations import Perturbation
from .resolutions import check_unet

__all__ = ["UNet"]

LARGER_NETWORKS = "; backbone=unet_28, unet_32, unet_64 and unet_128 are for larger images"


def group_norm(channels: int) -> GroupNorm:
    """Group normalisation with up to 32 groups of at least 4 channels."""
    groups = min(32, channels // 4)
    while channels % groups:
        groups -= 1
    return GroupNorm(groups, channels)


def count_heads(channels: int, head_channels: int) -> int:
    """The number of attention heads; raises ValueError for head_channels that do not divide the channels."""
    if channels % head_channels:
        raise ValueError(
            f"head_channels must divide the {channels} channels at the sides with attention, got {head_channels}; use "
            f"backbone.head_channels={math.gcd(channels, head_channels)}"
        )
    return channels // head_channels


class ResidualBlock(nn.Module):
    """skip(x) + h with h = conv(resample(silu(norm(x)))), then h = conv(dropout(silu(norm(h) (1 + scale) + shift))).

    Scale and shift are linear in the conditioning vector (AdaGN, arXiv 2105.05233, eq. 6). `resample` also acts on x.
    """

    def __init__(self, inputs: int, outputs: int, embedding: int, dropout: float, resample: nn.Module | None = None):
        super().__init__()
        self.resample = resample or nn.Identity()
        self.norm_in = group_norm(inputs)
        self.conv_in = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * outputs)
        self.norm_out = group_norm(outputs)
        self.dropout = Dropout(dropout)
        self.conv_out = zero_init(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv_in(self.resample(functional.silu(self.norm_in(x))))
        h = self.norm_out(h, *self.modulation(embedding).chunk(2, dim=1))
        return self.skip_connection(x) + self.conv_out(self.dropout(functional.silu(h)))

    def skip_connection(self, x: Tensor) -> Tensor:
        return self.skip(self.resample(x))


class Attention(nn.Module):
    """Multi-head self-attention over the pixels, x + proj(softmax(q k^T / sqrt(d)) v)."""

    index: int  # of the attention layer in its network

    def __init__(self, channels: int, head_channels: int, double_differentiable: bool):
        super().__init__()
        self.heads, self.double_differentiable = count_heads(channels, head_channels), double_differentiable
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
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
    """A residual block and the attention after it, if any."""

    index: int  # of the block in its network
    joins: bool = False  # whether its input is joined with a skip connection

    def forward(self, x: Tensor, embedding: Tensor, perturbation: Perturbation | None = None) -> Tensor:
        residual, *attention = self
        h = residual(x, embedding)
        for layer in attention:
            h = layer(h, perturbation)
        if perturbation is None:
            return h
        assert isinstance(residual, ResidualBlock)
        return perturbation.replace_output(self.index, residual.skip_connection(x), h)


class BlockBuilder:
    """Builds the blocks of a U-Net and numbers them in the order of computation.

    Arguments:
        embedding: length of the conditioning vector.
        dropout, attention, head_channels, double_differentiable: as for `UNet`.

    Attributes:
        attention_layers, residual_blocks: the sides of the layers built so far, as a `Backbone` lists them.
    """

    def __init__(
        self, embedding: int, dropout: float, attention: Sequence[int], head_channels: int, double_differentiable: bool
    ):
        self.embedding, self.dropout, self.attention = embedding, dropout, attention
        self.head_channels, self.double_differentiable = head_channels, double_differentiable
        self.attention_layers: list[int] = []
        self.residual_blocks: list[int] = []

    def build(
        self, inputs: int, outputs: int, side: int, resample: nn.Module | None = None, attend: bool = True
    ) -> UNetBlock:
        """A block, with attention if `attend` and the side is one with attention."""
        block = UNetBlock([ResidualBlock(inputs, outputs, self.embedding, self.dropout, resample)])
        block.index = len(self.residual_blocks)
        self.residual_blocks.append(side)
        if attend and side in self.attention:
            layer = Attention(outputs, self.head_channels, self.double_differentiable)
            layer.index = len(self.attention_layers)
            self.attention_layers.append(side)
            block.append(layer)
        return block

    def build_down(self, widths: Sequence[int], levels: Sequence[tuple[int, int]]) -> tuple[nn.ModuleList, list[int]]:
        """(The blocks from full resolution down, the widths of their input and of all outputs); levels by `check_unet`."""
        down, outputs = nn.ModuleList(), [widths[0]]
        for level, (side, blocks) in enumerate(levels):
            if level:
                down.append(self.build(outputs[-1], outputs[-1], side, nn.AvgPool2d(2), attend=False))
                outputs.append(outputs[-1])
            for _ in range(blocks):
                down.append(self.build(outputs[-1], widths[level], side))
                outputs.append(widths[level])
        return down, outputs

    def build_up(
        self, widths: Sequence[int], levels: Sequence[tuple[int, int]], skips: Sequence[int], narrow: bool
    ) -> nn.ModuleList:
        """The blocks back to full resolution; `skips` are the widths of the skip connections, finest first.

        narrow: `narrow_upsampling` of `UNet`.
        """
        up, skips, width = nn.ModuleList(), list(skips), widths[-1]
        for level, (side, blocks) in reversed(list(enumerate(levels))):
            for _ in range(blocks + 1):
                block = self.build(width + skips.pop(), widths[level], side)
                block.joins, width = True, widths[level]
                up.append(block)
            if level:
                outputs = widths[level - 1] if narrow else width
                up.append(self.build(width, outputs, 2 * side, nn.Upsample(scale_factor=2), attend=False))
                width = outputs
        return up


class UNet(Backbone):
    """U-Net for images [B, C, H, W] whose sides are divisible by 2^(number of multipliers - 1).

    Arguments:
        in_channels: channels of the images.
        out_features: channels of the output; None = in_channels.
        num_classes: number of classes, 0 = y is no class index.
        size: side of the images, pixels.
        channels: width at full resolution.
        multipliers: width of each resolution level in units of `channels`, finest first; each level halves the side.
        blocks: residual blocks on the way down, one more on the way up: of every level, or a list of one number per level.
        attention: sides, in pixels, of the levels whose blocks have attention.
        head_channels: channels per attention head.
        dropout: probability in [0, 1).
        noise_conditioned: whether the noise level is an input.
        condition_features: length of the vectors of an Embedding, 0 = y is no Embedding.
        double_differentiable: whether second derivatives are needed; slower attention.
        checkpointing: whether blocks are recomputed in the backward pass: less memory, a third more time.
        channels_last: whether weights and activations are stored with the channels last: faster in half precision on GPUs,
            and required by the fused attention kernels.
        fourier: exponents n of input features sin(2^n pi x), cos(2^n pi x) beside x; () = x alone.
        narrow_upsampling: whether blocks that upsample have the width of the finer level: in a network that is wide at low
            resolution, a block as wide as the coarser level costs much at the finer one.
    """

    def __init__(
        self,
        in_channels: int,
        out_features: int | None = None,
        num_classes: int = 0,
        size: int | None = None,
        channels: int = 32,
        multipliers: Sequence[int] = (1, 2),
        blocks: int | Sequence[int] = 2,
        attention: Sequence[int] = (4,),
        head_channels: int = 32,
        dropout: float = 0.1,
        noise_conditioned: bool = True,
        condition_features: int = 0,
        double_differentiable: bool = False,
        checkpointing: bool = False,
        channels_last: bool = False,
        fourier: Sequence[int] = (),
        narrow_upsampling: bool = False,
    ):
        super().__init__()
        if size is None:
            raise ValueError(
                "the U-Net needs images, but the data are vectors; use backbone=mlp in place of unet, mlp_levels in place of "
                "unet_levels, mlp_classifier in place of unet_joint"
            )
        levels = check_unet(size, channels, multipliers, blocks, attention, head_channels, dropout, LARGER_NETWORKS)
        self.num_classes, self.condition_features = num_classes, condition_features
        self.noise_conditioned, self.checkpointing = noise_conditioned, checkpointing
        self.embedding = ConditionEmbedding(4 * channels, num_classes, condition_features, noise_conditioned)
        builder = BlockBuilder(4 * channels, dropout, attention, head_channels, double_differentiable)
        self.attention_layers, self.residual_blocks = builder.attention_layers, builder.residual_blocks
        widths = [channels * multiplier for multiplier in multipliers]
        self.features = FourierFeatures(fourier)
        self.conv_in = nn.Conv2d(self.features.channels(in_channels), widths[0], 3, padding=1)
        self.down, skips = builder.build_down(widths, levels)
        middle = [builder.build(widths[-1], widths[-1], levels[-1][0], attend=attend) for attend in (True, False)]
        self.middle = nn.ModuleList(middle)
        self.up = builder.build_up(widths, levels, skips, narrow_upsampling)
        self.norm_out = group_norm(widths[0])
        self.conv_out = zero_init(
            nn.Conv2d(widths[0], in_channels if out_features is None else out_features, 3, padding=1)
        )
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
        for block in self.up:
            if block.joins:
                h = torch.cat([h, skips.pop()], dim=1)
            h = self.run(block, h, embedding, perturbation)
        return self.conv_out(functional.silu(self.norm_out(h)))
