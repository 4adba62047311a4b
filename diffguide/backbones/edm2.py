"""The magnitude-preserving U-Net of EDM2.

Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models", 2023, arXiv 2312.02696, figure 21 and
table 6 (configuration G). Modules have the names of the published checkpoints, except that `emb_fourier`, `emb_noise` and
`emb_label` are `embedding.fourier`, `embedding.noise` and `embedding.label`.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..runtime.ranges import check_range, check_whole
from .attention import attention
from .conditions import ClassEmbedding, Condition
from .edm2_layers import MPFourier, MPLayer, mp_concatenate, mp_silu, mp_sum, normalise
from .edm_layers import (
    BlockPlan,
    EDMBackbone,
    Resample,
    check_images,
    label_vectors,
    plan_decoder,
    plan_encoder,
    require_log_snr,
)
from .kernels import Dropout
from .perturbations import Perturbation
from .resolutions import check_unet
from .timesteps import LogNoiseTimesteps

__all__ = ["EDM2UNet"]


class EDM2Embedding(nn.Module):
    """mp_silu(mp_sum(noise(fourier(c)), label(sqrt(K) one-hot label), t)), c = ln(sigma / alpha) / 4.

    The label is the zero vector in rows without condition.
    """

    def __init__(self, width: int, features: int, num_classes: int, balance: float):
        super().__init__()
        self.timesteps, self.balance = LogNoiseTimesteps(), balance
        self.fourier, self.noise = MPFourier(width), MPLayer(width, features)
        self.label = MPLayer(num_classes, features) if num_classes else None

    def table(self) -> Tensor | None:
        """The term of each class, [K, features]: sqrt(K) times a column of the matrix of magnitude 1 / sqrt(K)."""
        return None if self.label is None else self.label.normalised().T

    def embed(self, y: Tensor) -> ClassEmbedding:
        vectors = label_vectors(self.table(), y)
        assert vectors is not None
        return vectors

    def forward(self, log_snr: Tensor | None, y: Condition | None) -> Tensor:
        features = self.fourier(self.timesteps(require_log_snr(log_snr)))
        h = self.noise(features.to(self.noise.weight.dtype))
        if self.label is not None:
            label, zero = label_vectors(self.table(), y), torch.zeros_like(h)
            term = zero if label is None else torch.where(label.keep[:, None], label.vectors.to(h.dtype), zero)
            h = mp_sum(h, term, self.balance)
        return mp_silu(h)


class BlockOptions(NamedTuple):
    """What all blocks of a network share; see `EDM2UNet`."""

    embedding: int
    head_channels: int
    dropout: float
    taps: Sequence[float]
    residual_balance: float
    attention_balance: float
    clip: float
    double_differentiable: bool


class EDM2Block(nn.Module):
    """mp_sum(skip, h), h = conv_res1(mp_silu(conv_res0(mp_silu(x)) (1 + gain emb_linear(embedding)))); then attention.

    On the way down the input of both terms is conv_skip(x) with pixels of magnitude 1; on the way up h starts from x, and
    conv_skip(x) is the skip. Attention: q, k and v have magnitude 1, so that q k^T / sqrt(d) is sqrt(d) times a cosine.
    """

    index: int  # of the block in its network
    attention_index: int  # of its attention, if any

    def __init__(self, plan: BlockPlan, is_encoder: bool, options: BlockOptions):
        super().__init__()
        inputs, outputs, self.options = plan.inputs, plan.outputs, options
        self.is_encoder, self.joins = is_encoder, plan.joins
        self.resample = nn.Identity() if plan.resample is None else Resample(plan.resample, options.taps)
        self.emb_gain = nn.Parameter(torch.zeros([]))
        self.conv_res0 = MPLayer(outputs if is_encoder else inputs, outputs, 3)
        self.emb_linear = MPLayer(options.embedding, outputs)
        self.dropout = Dropout(options.dropout)
        self.conv_res1 = MPLayer(outputs, outputs, 3)
        self.conv_skip = MPLayer(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.attn_qkv: MPLayer | None = None
        if plan.attends:
            self.heads = count_heads(outputs, options.head_channels)
            self.attn_qkv, self.attn_proj = MPLayer(outputs, 3 * outputs, 1), MPLayer(outputs, outputs, 1)

    def forward(self, x: Tensor, embedding: Tensor, perturbation: Perturbation | None = None) -> Tensor:
        x = self.resample(x)
        skip = self.conv_skip(x)
        if self.is_encoder:
            x = skip = normalise(skip, 1)
        modulation = self.emb_linear(embedding, self.emb_gain)[:, :, None, None] + 1
        h = self.conv_res1(self.dropout(mp_silu(self.conv_res0(mp_silu(x)) * modulation)))
        h = mp_sum(skip, h, self.options.residual_balance)
        if self.attn_qkv is not None:
            h = mp_sum(h, self.attend(h, self.attn_qkv, perturbation), self.options.attention_balance)
        if self.options.clip < math.inf:
            h = h.clamp(-self.options.clip, self.options.clip)
        return h if perturbation is None else perturbation.replace_output(self.index, skip, h)

    def attend(self, x: Tensor, layer: MPLayer, perturbation: Perturbation | None) -> Tensor:
        batch, channels, height, width = x.shape
        qkv = layer(x).reshape(batch, self.heads, channels // self.heads, 3, height * width)
        q, k, v = normalise(qkv, 2).transpose(2, 4).unbind(3)  # [B, heads, H W, d]
        if perturbation is not None:
            q = perturbation.replace_queries(self.attention_index, q, (height, width))
        h = attention(q, k, v, self.options.double_differentiable)
        if perturbation is not None:
            h = perturbation.replace_attention(self.attention_index, v, h)
        return self.attn_proj(h.transpose(2, 3).reshape(x.shape))


def count_heads(channels: int, head_channels: int) -> int:
    """channels // head_channels heads; raises ValueError for none, or heads that do not divide the channels."""
    heads = channels // head_channels
    if not heads or channels % heads:
        raise ValueError(
            f"head_channels must give a whole number of heads for the {channels} channels at the sides with attention, got "
            f"{head_channels}; use backbone.head_channels={channels}"
        )
    return heads


class EDM2UNet(EDMBackbone):
    """U-Net for images whose sides are divisible by 2^(number of multipliers - 1).

    The published networks for latents [4, 64, 64] and images [3, 64, 64] have multipliers=[1, 2, 3, 4], blocks=3,
    attention=[16, 8], head_channels=64 and channels = 128 (XS), 192 (S), 256 (M), 320 (L), 384 (XL), 448 (XXL). The head for
    the uncertainty of the loss is no part of the network. The output of a new network is 0.

    Arguments:
        in_channels: channels of the images; a channel of ones is added.
        out_features: channels of the output; None = in_channels.
        num_classes: number of classes; 0 = none.
        size: side of the images, pixels.
        channels: width in units of which all others are stated.
        multipliers: width of each resolution level in units of `channels`, finest first; each level halves the side.
        blocks: residual blocks on the way down, one more on the way up: of every level, or a list of one number per level.
        attention: sides, in pixels, of the levels whose blocks have attention.
        head_channels: channels per attention head, or a few more if they do not divide the width.
        dropout: probability in [0, 1).
        noise_multiplier: number of noise features in units of `channels`; None = the width at full resolution.
        embedding_multiplier: length of the conditioning vector in units of `channels`; None = the largest width.
        label_balance, skip_balance, residual_balance, attention_balance: t in [0, 1], the share of the second term: of the
            label, of a joined output of the encoder, of a block's layers, of attention.
        resample_filter: taps of the filter along each axis, an even number.
        clip: largest absolute value of a block's output; inf = none.
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
        head_channels: int = 32,
        dropout: float = 0.0,
        noise_multiplier: int | None = None,
        embedding_multiplier: int | None = None,
        label_balance: float = 0.5,
        skip_balance: float = 0.5,
        residual_balance: float = 0.3,
        attention_balance: float = 0.3,
        resample_filter: Sequence[float] = (1, 1),
        clip: float = 256.0,
        double_differentiable: bool = False,
        checkpointing: bool = False,
    ):
        super().__init__()
        size = check_images(size, num_classes)
        levels = check_unet(size, channels, multipliers, blocks, attention, head_channels, dropout)
        self.num_classes, self.checkpointing = num_classes, checkpointing
        widths = [channels * multiplier for multiplier in multipliers]
        noise = times(channels, "noise_multiplier", noise_multiplier) or widths[0]
        features = times(channels, "embedding_multiplier", embedding_multiplier) or max(widths)
        balance = check_range("label_balance", label_balance, "[0, 1]")
        self.skip_balance = check_range("skip_balance", skip_balance, "[0, 1]")
        options = BlockOptions(
            features, head_channels, dropout, list(resample_filter),
            check_range("residual_balance", residual_balance, "[0, 1]"),
            check_range("attention_balance", attention_balance, "[0, 1]"),
            check_range("clip", clip, "(0, inf]"), double_differentiable,
        )  # fmt: skip
        self.embedding = EDM2Embedding(noise, features, num_classes, balance)  # type: ignore[assignment]
        down = plan_encoder(widths[0], widths, levels, attention)
        self.enc = nn.ModuleDict({f"{size}x{size}_conv": MPLayer(in_channels + 1, widths[0], 3)})
        self.enc.update({plan.name: self.build(plan, True, options) for plan in down})
        up = plan_decoder(widths, levels, attention, down, only_last=False)
        self.dec = nn.ModuleDict({plan.name: self.build(plan, False, options) for plan in up})
        self.out_conv = MPLayer(widths[0], in_channels if out_features is None else out_features, 3)
        self.out_gain = nn.Parameter(torch.zeros([]))

    def build(self, plan: BlockPlan, is_encoder: bool, options: BlockOptions) -> EDM2Block:
        return self.number(EDM2Block(plan, is_encoder, options), plan)

    @torch.no_grad()
    def normalise_weights(self) -> None:
        """Replaces the weights of every layer by those of magnitude 1. The output of the network stays, to rounding."""
        for layer in self.modules():
            if isinstance(layer, MPLayer):
                layer.weight.data.copy_(layer.normalised())

    def __call__(self, *inputs: Any) -> Tensor:
        """The output; in training the weights are normalised first.

        This is outside of what `nn.Module.compile` compiles: torch 2.14 loses the change of a convolution's weights there.
        """
        if self.training:
            if torch.compiler.is_compiling():
                raise RuntimeError("compile the network by its method compile(), not by torch.compile")
            self.normalise_weights()
        return super().__call__(*inputs)

    def forward(
        self, x: Tensor, log_snr: Tensor | None, y: Condition | None = None, perturbation: Perturbation | None = None
    ) -> Tensor:
        embedding = self.embedding(log_snr, y)
        x = x.to(embedding.dtype)
        first, *blocks = self.enc.values()
        h = first(torch.cat([x, torch.ones_like(x[:, :1])], dim=1))
        skips = [h]
        for block in blocks:
            h = self.run(block, h, embedding, perturbation)
            skips.append(h)
        for block in self.dec.values():
            if block.joins:
                h = mp_concatenate(h, skips.pop(), self.skip_balance)
            h = self.run(block, h, embedding, perturbation)
        return self.out_conv(h, self.out_gain)


def times(channels: int, name: str, multiplier: int | None) -> int | None:
    """channels x multiplier, or None."""
    return None if multiplier is None else channels * check_whole(name, multiplier, 1)
