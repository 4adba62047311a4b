"""The encoder half of ADM's U-Net with attention pooling: one vector per image, for classifiers of noisy images.

Dhariwal & Nichol, "Diffusion Models Beat GANs on Image Synthesis", 2021, arXiv 2105.05233, section 4.3.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from .attention import attention
from .base import Backbone, ConditionEmbedding, check_out_features, zero_init
from .conditions import Condition
from .resolutions import check_unet
from .timesteps import TimestepFeatures
from .unet_blocks import BlockBuilder, BlockOptions, count_heads, group_norm

__all__ = ["AttentionPooling", "UNetEncoder"]


class AttentionPooling(nn.Module):
    """linear(attention(q(mean), k(tokens), v(tokens))), tokens = the mean and every pixel, each plus a learned position.

    Radford et al. 2021, arXiv 2103.00020, section 2.4: the query is the mean over the pixels.
    """

    def __init__(self, side: int, channels: int, head_channels: int, outputs: int, double_differentiable: bool):
        super().__init__()
        self.heads, self.double_differentiable = count_heads(channels, head_channels), double_differentiable
        self.position = nn.Parameter(torch.randn(side**2 + 1, channels) / channels**0.5)
        self.query = nn.Linear(channels, channels)
        self.key_value = nn.Linear(channels, 2 * channels)
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
        middle: whether a block with attention and one without follow the last level, as in `UNet`.
        others: as for `UNet`; `head_channels` also divides the width of the last level.

    Raises:
        ValueError: a number out of range, a side that does not fit, or a width that `head_channels` does not divide.
    """

    def __init__(
        self,
        in_channels: int,
        out_features: int,
        size: int,
        channels: int = 32,
        multipliers: Sequence[float] = (1, 2),
        blocks: int | Sequence[int] = 2,
        attention: Sequence[int] = (4,),
        head_channels: int = 32,
        dropout: float = 0.1,
        noise_conditioned: bool = True,
        double_differentiable: bool = False,
        checkpointing: bool = False,
        noise_features: TimestepFeatures | None = None,
        middle: bool = False,
        groups: int | None = None,
        scale_shift: bool = True,
        residual_resampling: bool = True,
    ):
        super().__init__()
        check_out_features(out_features)
        levels = check_unet(size, channels, multipliers, blocks, attention, head_channels, dropout)
        widths = [int(channels * multiplier) for multiplier in multipliers]
        self.out_features = out_features
        self.noise_conditioned, self.checkpointing = noise_conditioned, checkpointing
        self.embedding = ConditionEmbedding(4 * channels, 0, 0, noise_conditioned, noise_features)
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        options = BlockOptions(
            4 * channels, dropout, attention, head_channels, double_differentiable, None, groups, scale_shift,
            residual_resampling,
        )  # fmt: skip
        builder = BlockBuilder(options)
        self.down, _ = builder.build_down(widths, levels)
        if middle:
            self.middle = builder.build_middle(widths[-1], levels[-1][0], True)
        self.norm_out = group_norm(widths[-1], groups)
        self.pooling = AttentionPooling(levels[-1][0], widths[-1], head_channels, out_features, double_differentiable)

    def forward(self, x: Tensor, log_snr: Tensor | None, y: Condition | None = None) -> Tensor:
        h = self.conv_in(x.to(self.conv_in.weight.dtype))
        embedding = functional.silu(self.embedding(h, log_snr, None))
        for block in (*self.down, *(self.middle if hasattr(self, "middle") else ())):
            h = self.run(block, h, embedding)
        return self.pooling(functional.silu(self.norm_out(h)))
