"""The U-Nets DDPM++ and NCSN++ as EDM trained them.

Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations", 2021, arXiv 2011.13456; Karras et
al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022, arXiv 2206.00364, table 7. Modules have the
names of the published checkpoints, except that `map_noise`, `map_label`, ... are `embedding.noise`, `embedding.label`, ...;
the rows of `qkv` are those of q, of k and of v, there q, k and v of one channel after another.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..runtime.ranges import check_whole
from .base import zero_init
from .conditions import Condition
from .edm_blocks import HALF, EDMBlock, EDMEmbedding, FourierNoiseFeatures, PositionalFeatures, conv, norm
from .edm_layers import DOWN, UP, BlockPlan, EDMBackbone, Resample, check_images, plan_decoder, plan_encoder
from .perturbations import Perturbation
from .resolutions import check_unet

__all__ = ["EDMUNet"]

NOISE_FEATURES = ("positional", "fourier")
ENCODERS, DECODERS = ("standard", "skip", "residual"), ("standard", "skip")


def choose(name: str, value: str, options: Sequence[str]) -> str:
    """The value; raises ValueError for one that is no option."""
    if value not in options:
        raise ValueError(f"{name} must be one of {', '.join(options)}, got {value!r}")
    return value


class EDMUNet(EDMBackbone):
    """U-Net for images whose sides are divisible by 2^(number of multipliers - 1).

    EDM's DDPM++ has the defaults with channels=128, multipliers=[2, 2, 2] (32 pixels) or [1, 2, 2, 2] (64), blocks=4,
    attention=[16]; its NCSN++ also has noise_features=fourier, noise_multiplier=2, encoder=residual,
    resample_filter=[1, 3, 3, 1]. The last layers of the network and of its branches start at 0 (there at 1e-5 of Xavier's).
    The inputs for augmentation of the published networks, which are 0 in sampling, are omitted.

    Arguments:
        in_channels: channels of the images.
        out_features: channels of the output; None = in_channels.
        num_classes: number of classes; 0 = none.
        size: side of the images, pixels.
        channels: width in units of which all others are stated, even.
        multipliers: width of each resolution level in units of `channels`, finest first; each level halves the side.
        blocks: residual blocks on the way down, one more on the way up: of every level, or a list of one number per level.
        attention: sides, in pixels, of the levels with attention: in all blocks on the way down, the last on the way up.
        dropout: probability in [0, 1).
        noise_features: positional or fourier (random frequencies).
        noise_multiplier: number of noise features, in units of `channels`.
        embedding_multiplier: length of the conditioning vector, in units of `channels`.
        encoder: standard; skip or residual = a resampled copy of the image is added at each level.
        decoder: standard; skip = each level has an output, and their resampled sum is the result.
        resample_filter: taps of the filter along each axis, an even number.
        double_differentiable, checkpointing: as for `UNet`.

    Raises:
        ValueError: vectors (size None), or an argument out of range.
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
        dropout: float = 0.1,
        noise_features: str = "positional",
        noise_multiplier: int = 1,
        embedding_multiplier: int = 4,
        encoder: str = "standard",
        decoder: str = "standard",
        resample_filter: Sequence[float] = (1, 1),
        double_differentiable: bool = False,
        checkpointing: bool = False,
    ):
        super().__init__()
        size = check_images(size, num_classes)
        levels = check_unet(size, channels, multipliers, blocks, attention, channels, dropout)
        width = channels * check_whole("noise_multiplier", noise_multiplier, 1)
        if width % 2:
            raise ValueError(f"channels x noise_multiplier must be even, got {width}: half of the features are sines")
        features = channels * check_whole("embedding_multiplier", embedding_multiplier, 1)
        choose("noise_features", noise_features, NOISE_FEATURES)
        self.encoder, self.decoder = choose("encoder", encoder, ENCODERS), choose("decoder", decoder, DECODERS)
        self.num_classes, self.checkpointing = num_classes, checkpointing
        noise = FourierNoiseFeatures(width) if noise_features == "fourier" else PositionalFeatures(width)
        self.embedding = EDMEmbedding(noise, width, features, num_classes)  # type: ignore[assignment]
        self.options = features, dropout, list(resample_filter), double_differentiable
        widths = [channels * multiplier for multiplier in multipliers]
        down = plan_encoder(channels, widths, levels, attention)
        outputs = in_channels if out_features is None else out_features
        self.enc = self.build_encoder(in_channels, channels, down, list(resample_filter))
        up = plan_decoder(widths, levels, attention, down, only_last=True)
        self.dec = self.build_decoder(outputs, up, list(resample_filter))

    def build(self, plan: BlockPlan) -> EDMBlock:
        return self.number(EDMBlock(plan, *self.options), plan)

    def build_encoder(
        self, inputs: int, first: int, plans: Sequence[BlockPlan], taps: Sequence[float]
    ) -> nn.ModuleDict:
        side, layers = plans[0].side, nn.ModuleDict()
        layers[f"{side}x{side}_conv"] = conv(inputs, first, 3)
        image = inputs  # channels of its resampled copy
        for plan in plans:
            layers[plan.name] = self.build(plan)
            if plan.resample and self.encoder == "skip":
                layers[f"{plan.side}x{plan.side}_aux_skip"] = conv(image, plan.outputs, 1)
            elif plan.resample and self.encoder == "residual":
                layer = conv(image, plan.outputs, 3)
                layer.padding = (len(taps) // 2,) * 2  # that of the convolution and that of the filter after it
                layers[f"{plan.side}x{plan.side}_aux_residual"], image = layer, plan.outputs
        self.shrink = Resample(DOWN, taps, padded=self.encoder == "skip")
        return layers

    def build_decoder(self, outputs: int, plans: Sequence[BlockPlan], taps: Sequence[float]) -> nn.ModuleDict:
        layers = nn.ModuleDict()
        for plan, following in zip(plans, [*plans[1:], None]):
            layers[plan.name] = self.build(plan)
            ends_level = following is None or following.resample is not None
            if ends_level and (following is None or self.decoder == "skip"):
                layers[f"{plan.side}x{plan.side}_aux_norm"] = norm(plan.outputs)
                layers[f"{plan.side}x{plan.side}_aux_conv"] = zero_init(conv(plan.outputs, outputs, 3))
        self.grow = Resample(UP, taps)
        return layers

    def forward(
        self, x: Tensor, log_snr: Tensor | None, y: Condition | None = None, perturbation: Perturbation | None = None
    ) -> Tensor:
        embedding = self.embedding(log_snr, y)
        h = image = x.to(embedding.dtype)
        skips = list[Tensor]()
        for name, layer in self.enc.items():
            if isinstance(layer, EDMBlock):
                h = self.run(layer, h, embedding, perturbation)
                skips.append(h)
            elif name.endswith("_aux_skip"):
                image = self.shrink(image)
                skips[-1] = h = h + layer(image)
            elif name.endswith("_aux_residual"):
                skips[-1] = h = image = (h + self.shrink(layer(image))) * HALF
            else:
                h = layer(h)
                skips.append(h)
        return self.decode(h, skips, embedding, perturbation)

    def decode(self, h: Tensor, skips: list[Tensor], embedding: Tensor, perturbation: Perturbation | None) -> Tensor:
        out: Tensor | None = None
        for name, layer in self.dec.items():
            if isinstance(layer, EDMBlock):
                if layer.joins:
                    h = torch.cat([h, skips.pop()], dim=1)
                h = self.run(layer, h, embedding, perturbation)
            elif name.endswith("_aux_norm"):
                normal = functional.silu(layer(h))
            else:
                out = layer(normal) if out is None else self.grow(out) + layer(normal)
        assert out is not None
        return out
