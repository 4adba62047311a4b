"""A small convolutional autoencoder."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from ..backbones.resolutions import check_unet
from ..backbones.unet_blocks import BlockBuilder, BlockOptions, group_norm
from ..runtime.ranges import check_whole
from .autoencoder import AutoencoderNetwork
from .base import Posterior

__all__ = ["SmallKL"]

LOG_VARIANCES = -30.0, 20.0  # of a latent, as in latent diffusion
NO_CONDITION = 1  # length of the conditioning vector of the blocks, which is 0: their scales and shifts are constants

Levels = Sequence[tuple[int, int]]  # side and number of blocks of each level, finest first


class SmallKL(AutoencoderNetwork):
    """Encoder and decoder of residual blocks, with a Gaussian of independent elements between them.

    Rombach et al. 2022, arXiv 2112.10752, appendix E.1 and section 3.1 (KL-reg), with the blocks of `UNet` and no attention
    unless asked for.

    Arguments:
        in_channels: channels of the pictures.
        size: side of the pictures in training, pixels; multiples of the downsampling are accepted later.
        channels: width at full resolution.
        multipliers: width per level in units of channels; each level halves the side, so latents are smaller by
            2^(levels - 1).
        latent_channels: of the latents, at least 1.
        blocks: residual blocks per level, of every level or a list.
        attention: sides, in pixels, of the levels whose blocks have attention.
        head_channels: channels per attention head.
        dropout: probability in [0, 1).

    Raises:
        ValueError: as for `UNet`.
    """

    def __init__(
        self,
        in_channels: int = 3,
        size: int | None = 32,
        channels: int = 32,
        multipliers: Sequence[float] = (1, 2, 2),
        latent_channels: int = 4,
        blocks: int | Sequence[int] = 1,
        attention: Sequence[int] = (),
        head_channels: int = 32,
        dropout: float = 0.0,
    ):
        super().__init__()
        if size is None:
            raise ValueError("an autoencoder needs square images, but the data are vectors or have several sides")
        levels = check_unet(size, channels, multipliers, blocks, attention, head_channels, dropout)
        widths = [int(channels * multiplier) for multiplier in multipliers]
        self.in_channels = in_channels
        self.latent_channels = check_whole("latent_channels", latent_channels, 1)
        self.downsampling = 2 ** (len(levels) - 1)
        options = BlockOptions(NO_CONDITION, dropout, attention, head_channels)
        self.encoder = Encoder(in_channels, 2 * latent_channels, widths, levels, options)
        self.decoder = Decoder(latent_channels, in_channels, widths, levels, options)

    def moments(self, x: Tensor) -> Posterior:
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        return Posterior(mean, log_variance.clamp(*LOG_VARIANCES))

    def reconstruct(self, latent: Tensor) -> Tensor:
        return self.decoder(latent)


class Encoder(nn.Module):
    """Pictures [B, inputs, H, W] -> [B, outputs, H / f, W / f]."""

    def __init__(self, inputs: int, outputs: int, widths: Sequence[int], levels: Levels, options: BlockOptions):
        super().__init__()
        builder = BlockBuilder(options)
        self.conv_in = nn.Conv2d(inputs, widths[0], 3, padding=1)
        down, _ = builder.build_down(widths, levels)
        self.blocks = nn.ModuleList([*down, *builder.build_middle(widths[-1], levels[-1][0], None)])
        self.norm_out = group_norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return run(self, x)


class Decoder(nn.Module):
    """[B, inputs, H / f, W / f] -> pictures [B, outputs, H, W]."""

    def __init__(self, inputs: int, outputs: int, widths: Sequence[int], levels: Levels, options: BlockOptions):
        super().__init__()
        builder = BlockBuilder(options)
        self.conv_in = nn.Conv2d(inputs, widths[-1], 3, padding=1)
        blocks = [*builder.build_middle(widths[-1], levels[-1][0], None)]
        width = widths[-1]
        for level, (side, count) in reversed(list(enumerate(levels))):
            for _ in range(count):
                blocks.append(builder.build(width, widths[level], side))
                width = widths[level]
            if level:  # at the width of the finer level, where most of the work is
                blocks.append(builder.build_upsampling(width, widths[level - 1], 2 * side))
                width = widths[level - 1]
        self.blocks = nn.ModuleList(blocks)
        self.norm_out = group_norm(width)
        self.conv_out = nn.Conv2d(width, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return run(self, x)


def run(half: Encoder | Decoder, x: Tensor) -> Tensor:
    """The layers of one half in turn."""
    h = half.conv_in(x.to(half.conv_in.weight.dtype))
    nothing = h.new_zeros(len(h), NO_CONDITION)
    for block in half.blocks:
        h = block(h, nothing)
    return half.conv_out(functional.silu(half.norm_out(h)))
