"""The blocks of ADM's U-Net: residual blocks with adaptive group normalisation, attention, and changes of the side.

Dhariwal & Nichol, "Diffusion Models Beat GANs on Image Synthesis", 2021, arXiv 2105.05233, section 3.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from .attention import attention
from .base import zero_init
from .conditioning import Context
from .cross_attention import CrossAttention
from .kernels import Dropout, GroupNorm
from .perturbations import Perturbation

__all__ = ["Attention", "BlockBuilder", "BlockOptions", "ResidualBlock", "UNetBlock", "count_heads", "group_norm"]


@dataclass(frozen=True)
class BlockOptions:
    """What all blocks of a U-Net have in common.

    Arguments:
        embedding: length of the conditioning vector.
        token_features: length of the tokens of a condition, to which every block with attention attends; 0 = none.
        others: as for `UNet`.
    """

    embedding: int
    dropout: float
    attention: Sequence[int]
    head_channels: int
    double_differentiable: bool = False
    heads: int | None = None
    groups: int | None = None
    scale_shift: bool = True
    residual_resampling: bool = True
    token_features: int = 0


def group_norm(channels: int, groups: int | None = None) -> GroupNorm:
    """Group normalisation; groups None = up to 32 groups of at least 4 channels.

    Raises:
        ValueError: groups that do not divide the channels.
    """
    if groups is None:
        groups = min(32, channels // 4)
        while channels % groups:
            groups -= 1
    elif groups < 1 or channels % groups:
        raise ValueError(f"groups must divide the {channels} channels of a layer, got {groups}; null fits every width")
    return GroupNorm(groups, channels)


def count_heads(channels: int, head_channels: int, heads: int | None = None) -> int:
    """The number of attention heads; raises ValueError for heads or head_channels that do not divide the channels."""
    if heads is not None:
        if heads < 1 or channels % heads:
            raise ValueError(
                f"heads must divide the {channels} channels at the sides with attention, got {heads}; null takes head_channels"
            )
        return heads
    if channels % head_channels:
        raise ValueError(
            f"head_channels must divide the {channels} channels at the sides with attention, got {head_channels}; use "
            f"backbone.head_channels={math.gcd(channels, head_channels)}"
        )
    return channels // head_channels


class ResidualBlock(nn.Module):
    """skip(x) + h with h = conv(resample(silu(norm(x)))), then h = conv(dropout(silu(norm(h) (1 + scale) + shift))).

    Scale and shift are linear in the conditioning vector (AdaGN, arXiv 2105.05233, eq. 6); without `scale_shift` a linear map
    of it is added before the second norm (arXiv 2006.11239). `resample` also acts on x.
    """

    def __init__(self, inputs: int, outputs: int, options: BlockOptions, resample: nn.Module | None = None):
        super().__init__()
        self.resample, self.scale_shift = resample or nn.Identity(), options.scale_shift
        self.norm_in = group_norm(inputs, options.groups)
        self.conv_in = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.modulation = nn.Linear(options.embedding, 2 * outputs if options.scale_shift else outputs)
        self.norm_out = group_norm(outputs, options.groups)
        self.dropout = Dropout(options.dropout)
        self.conv_out = zero_init(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv_in(self.resample(functional.silu(self.norm_in(x))))
        if self.scale_shift:
            h = self.norm_out(h, *self.modulation(embedding).chunk(2, dim=1))
        else:
            h = self.norm_out(h + self.modulation(embedding)[:, :, None, None])
        return self.skip_connection(x) + self.conv_out(self.dropout(functional.silu(h)))

    def skip_connection(self, x: Tensor) -> Tensor:
        return self.skip(self.resample(x))


class Attention(nn.Module):
    """Multi-head self-attention over the pixels, x + proj(softmax(q k^T / sqrt(d)) v)."""

    index: int  # of the attention layer in its network

    def __init__(self, channels: int, options: BlockOptions):
        super().__init__()
        self.heads = count_heads(channels, options.head_channels, options.heads)
        self.double_differentiable = options.double_differentiable
        self.norm = group_norm(channels, options.groups)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.projection = zero_init(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor, perturbation: Perturbation | None = None) -> Tensor:
        if perturbation is not None:
            x = perturbation.replace_input(self.index, x, 1)
        batch, channels, height, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(batch, 3, self.heads, channels // self.heads, height * width)
        q, k, v = qkv.transpose(-1, -2).unbind(1)  # [B, heads, H W, head_channels]
        if perturbation is not None:
            q = perturbation.replace_queries(self.index, q, (height, width))
        h = attention(q, k, v, self.double_differentiable)
        if perturbation is not None:
            h = perturbation.replace_attention(self.index, v, h)
        return x + self.projection(h.transpose(-1, -2).reshape(x.shape))


class PixelCrossAttention(nn.Module):
    """x + CrossAttention(norm(x)), of the pixels of x to the tokens of a condition."""

    def __init__(self, channels: int, options: BlockOptions):
        super().__init__()
        heads = count_heads(channels, options.head_channels, options.heads)
        self.norm = group_norm(channels, options.groups)
        self.attention = CrossAttention(channels, options.token_features, heads, options.double_differentiable)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        h = self.attention(self.norm(x).flatten(2).transpose(1, 2), context)
        return x + h.transpose(1, 2).reshape(x.shape)


class UNetBlock(nn.ModuleList):
    """A residual block and the attention after it, if any: to its own pixels, then to the tokens of a condition."""

    index: int  # of the block in its network
    joins: bool = False  # whether its input is joined with a skip connection

    def forward(
        self, x: Tensor, embedding: Tensor, perturbation: Perturbation | None = None, context: Context | None = None
    ) -> Tensor:
        residual, *attention = self
        h = residual(x, embedding)
        for layer in attention:
            h = layer(h, context if isinstance(layer, PixelCrossAttention) else perturbation)
        if perturbation is None:
            return h
        assert isinstance(residual, ResidualBlock)
        return perturbation.replace_output(self.index, residual.skip_connection(x), h)


class Resampling(nn.Module):
    """A change of the side without a residual block: a convolution of stride 2, or an upsampling and a convolution."""

    joins: bool = False

    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(
        self, x: Tensor, embedding: Tensor, perturbation: Perturbation | None = None, context: Context | None = None
    ) -> Tensor:
        return self.layers(x)


class BlockBuilder:
    """Builds the blocks of a U-Net and numbers them in the order of computation.

    Attributes:
        attention_layers, residual_blocks: the sides of the layers built so far, as a `Backbone` lists them.
    """

    def __init__(self, options: BlockOptions):
        self.options = options
        self.attention_layers: list[int] = []
        self.residual_blocks: list[int] = []

    def build(
        self, inputs: int, outputs: int, side: int, resample: nn.Module | None = None, attend: bool | None = None
    ) -> UNetBlock:
        """A block, with attention if `attend`; None = if the side is one with attention."""
        block = UNetBlock([ResidualBlock(inputs, outputs, self.options, resample)])
        block.index = len(self.residual_blocks)
        self.residual_blocks.append(side)
        if side in self.options.attention if attend is None else attend:
            layer = Attention(outputs, self.options)
            layer.index = len(self.attention_layers)
            self.attention_layers.append(side)
            block.append(layer)
            if self.options.token_features:
                block.append(PixelCrossAttention(outputs, self.options))
        return block

    def build_downsampling(self, width: int, side: int) -> nn.Module:
        """Halves the side; `side` is that of its output."""
        if self.options.residual_resampling:
            return self.build(width, width, side, nn.AvgPool2d(2), attend=False)
        return Resampling(nn.Conv2d(width, width, 3, stride=2, padding=1))

    def build_upsampling(self, width: int, outputs: int, side: int) -> nn.Module:
        """Doubles the side; `side` is that of its output."""
        larger = nn.Upsample(scale_factor=2)
        if self.options.residual_resampling:
            return self.build(width, outputs, side, larger, attend=False)
        return Resampling(larger, nn.Conv2d(width, outputs, 3, padding=1))

    def build_middle(self, width: int, side: int, attend: bool | None) -> nn.ModuleList:
        """Two blocks of the coarsest level; the first one has attention as `build` says."""
        return nn.ModuleList([self.build(width, width, side, attend=chosen) for chosen in (attend, False)])

    def build_down(self, widths: Sequence[int], levels: Sequence[tuple[int, int]]) -> tuple[nn.ModuleList, list[int]]:
        """(The blocks from full resolution down, the widths of their input and of all outputs); levels by `check_unet`."""
        down, outputs = nn.ModuleList(), [widths[0]]
        for level, (side, blocks) in enumerate(levels):
            if level:
                down.append(self.build_downsampling(outputs[-1], side))
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
                up.append(self.build_upsampling(width, outputs, 2 * side))
                width = outputs
        return up
