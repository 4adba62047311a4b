"""The U-Net of ADM: residual blocks with adaptive group normalisation, optional attention.

Dhariwal & Nichol, "Diffusion Models Beat GANs on Image Synthesis", 2021, arXiv 2105.05233, section 3.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from .base import Backbone, ConditionEmbedding, zero_init
from .conditioning import Conditioning, join_channels
from .conditions import Condition
from .fourier import FourierFeatures
from .perturbations import Perturbation
from .random_perturbations import NoisyEmbedding, ShuffledTokens
from .resolutions import check_unet
from .timesteps import TimestepFeatures
from .unet_blocks import BlockBuilder, BlockOptions, group_norm

__all__ = ["UNet"]

LARGER_NETWORKS = "; backbone=unet_28, unet_32, unet_64 and unet_128 are for larger images"


class UNet(Backbone):
    """U-Net for images [B, C, H, W] whose sides are divisible by 2^(number of multipliers - 1).

    Arguments:
        in_channels: channels of the images.
        out_features: channels of the output, without those of `learned_variance`; None = in_channels.
        num_classes: number of classes, 0 = y is no class index.
        size: side of the images, pixels.
        channels: width at full resolution.
        multipliers: width of each resolution level in units of `channels`, finest first; each level halves the side. The
            conditioning vector has 4 `channels` features, whatever the first multiplier.
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
        noise_features: of a timestep, in place of those of the log-SNR; None = those of `ConditionEmbedding`.
        learned_variance: whether the output has twice the channels, the second half for the variance of `sampler=ddpm`.
        heads: number of attention heads, in place of `head_channels`; None = by `head_channels`.
        middle_attention: whether the middle has attention even if `attention` does not list its side.
        groups: groups of the group normalisations; None = up to 32 of at least 4 channels.
        scale_shift: whether the conditioning vector scales and shifts the second norm of a block; else it is added before it.
        residual_resampling: whether residual blocks halve and double the side, not single convolutions.
        conditioning: a condition other than a class or one vector, such as a text: its vector is added to the conditioning
            vector, blocks with attention attend to its tokens, its channels are an input beside x; None = none of these.
        further_inputs: numbers beside the noise level, such as the level where a jump ends; 0 = none.

    Raises:
        ValueError: a width, side or number out of range; a condition of tokens without attention.
    """

    inner_perturbations = (ShuffledTokens, NoisyEmbedding)

    def __init__(
        self,
        in_channels: int,
        out_features: int | None = None,
        num_classes: int = 0,
        size: int | None = None,
        channels: int = 32,
        multipliers: Sequence[float] = (1, 2),
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
        noise_features: TimestepFeatures | None = None,
        learned_variance: bool = False,
        heads: int | None = None,
        middle_attention: bool = False,
        groups: int | None = None,
        scale_shift: bool = True,
        residual_resampling: bool = True,
        conditioning: Conditioning | None = None,
        further_inputs: int = 0,
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
        self.further_inputs = further_inputs
        self.learned_variance = learned_variance
        self.embedding = ConditionEmbedding(
            4 * channels,
            num_classes,
            condition_features,
            noise_conditioned,
            noise_features,
            conditioning,
            further_inputs,
        )
        self.conditioning = conditioning
        if conditioning is not None and conditioning.token_features and not (attention or middle_attention):
            raise ValueError(
                f"attention must list a side for a condition of tokens ({type(conditioning).__name__}), got {list(attention)}"
            )
        options = BlockOptions(
            4 * channels, dropout, attention, head_channels, double_differentiable, heads, groups, scale_shift,
            residual_resampling, 0 if conditioning is None else conditioning.token_features,
        )  # fmt: skip
        builder = BlockBuilder(options)
        self.attention_layers, self.residual_blocks = builder.attention_layers, builder.residual_blocks
        widths = [int(channels * multiplier) for multiplier in multipliers]
        self.features = FourierFeatures(fourier)
        inputs = self.features.channels(in_channels) + (0 if conditioning is None else conditioning.channels)
        self.conv_in = nn.Conv2d(inputs, widths[0], 3, padding=1)
        self.down, skips = builder.build_down(widths, levels)
        self.middle = builder.build_middle(widths[-1], levels[-1][0], middle_attention or None)
        self.up = builder.build_up(widths, levels, skips, narrow_upsampling)
        self.norm_out = group_norm(widths[0], groups)
        outputs = (in_channels if out_features is None else out_features) * (2 if learned_variance else 1)
        self.conv_out = zero_init(nn.Conv2d(widths[0], outputs, 3, padding=1))
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.to(memory_format=self.layout)

    def forward(
        self, x: Tensor, log_snr: Tensor | None, y: Condition | None = None, perturbation: Perturbation | None = None
    ) -> Tensor:
        context = self.make_context(y, x)
        features = join_channels(self.features(x), context)
        h = self.conv_in(features.to(self.conv_in.weight.dtype, memory_format=self.layout))
        embedding = functional.silu(self.embedding(h, log_snr, y, context, perturbation))
        skips = [h]
        for block in self.down:
            h = self.run(block, h, embedding, perturbation, context)
            skips.append(h)
        for block in self.middle:
            h = self.run(block, h, embedding, perturbation, context)
        for block in self.up:
            if block.joins:
                h = torch.cat([h, skips.pop()], dim=1)
            h = self.run(block, h, embedding, perturbation, context)
        return self.conv_out(functional.silu(self.norm_out(h)))
