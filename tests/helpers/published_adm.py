"""ADM's U-Net and its classifier of noisy images with the published names. arXiv 2105.05233, section 3 and 4.3.

The U-Net has per level `blocks` residual blocks, attention after those at the listed sides, a change of the side between
levels, and on the way up one more block per level, each on the output before it and one of the way down.
"""

from dataclasses import dataclass

import torch
from published_layers import Drawn, convolution, group_norm, linear, silu, softmax_attention, timestep_features
from torch import Tensor
from torch.nn.functional import avg_pool2d


@dataclass
class Settings:
    """Of a network; names as in the paper's appendix."""

    size: int = 16
    channels: int = 32
    multipliers: tuple = (1, 2)
    blocks: int = 2
    sides: tuple = (8,)  # with attention
    heads: int | None = None
    head_channels: int = 32
    new_attention_order: bool = False
    in_channels: int = 3
    out_channels: int = 6
    classes: int = 0
    scale_shift: bool = True
    residual_resampling: bool = True

    def heads_of(self, width: int) -> int:
        return self.heads or width // self.head_channels

    @property
    def widths(self) -> list[int]:
        return [int(self.channels * multiplier) for multiplier in self.multipliers]


def doubled(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def halved(x: Tensor) -> Tensor:
    return avg_pool2d(x, 2)


def residual(w: Drawn, name: str, x: Tensor, emb: Tensor, outputs: int, s: Settings, resample=lambda x: x) -> Tensor:
    h = convolution(w, f"{name}.in_layers.2", resample(silu(group_norm(w, f"{name}.in_layers.0", x))), outputs)
    added = linear(w, f"{name}.emb_layers.1", silu(emb), 2 * outputs if s.scale_shift else outputs)[:, :, None, None]
    if s.scale_shift:  # adaptive group normalisation, eq. 6
        scale, shift = added[:, :outputs], added[:, outputs:]
        h = group_norm(w, f"{name}.out_layers.0", h) * (1 + scale) + shift
    else:
        h = group_norm(w, f"{name}.out_layers.0", h + added)
    h = convolution(w, f"{name}.out_layers.3", silu(h), outputs)
    x = resample(x)
    return h + (x if x.shape[1] == outputs else convolution(w, f"{name}.skip_connection", x, outputs, 1))


def heads_of_rows(qkv: Tensor, heads: int, new_order: bool):
    """q, k, v [B, N, d] of each head, of rows [B, N, 3 C]: q of all heads first, or q, k, v of the first head first."""
    d = qkv.shape[2] // (3 * heads)
    for head in range(heads):
        first = (
            [head * d, (heads + head) * d, (2 * heads + head) * d]
            if new_order
            else [(3 * head + i) * d for i in range(3)]
        )
        yield tuple(qkv[:, :, start : start + d] for start in first)


def sequence_layer(w: Drawn, name: str, x: Tensor, outputs: int) -> Tensor:
    """A convolution of width 1 over a sequence [B, N, C]."""
    weight = w.draw(f"{name}.weight", outputs, x.shape[2], 1)[:, :, 0]
    return x @ weight.T + w.bias(f"{name}.bias", outputs)


def attention(w: Drawn, name: str, x: Tensor, s: Settings) -> Tensor:
    channels = x.shape[1]
    tokens = group_norm(w, f"{name}.norm", x).flatten(2).mT
    qkv = sequence_layer(w, f"{name}.qkv", tokens, 3 * channels)
    heads = heads_of_rows(qkv, s.heads_of(channels), s.new_attention_order)
    h = torch.cat([softmax_attention(*head) for head in heads], dim=2)
    return x + sequence_layer(w, f"{name}.proj_out", h, channels).mT.reshape(x.shape)


def condition(w: Drawn, t: Tensor, y: Tensor | None, s: Settings) -> Tensor:
    h = linear(w, "time_embed.0", timestep_features(t, s.channels), 4 * s.channels)
    emb = linear(w, "time_embed.2", silu(h), 4 * s.channels)
    if s.classes:
        emb = emb + w.draw("label_emb.weight", s.classes, 4 * s.channels, std=1.0)[y]
    return emb


def block(w: Drawn, name: str, h: Tensor, emb: Tensor, width: int, s: Settings) -> Tensor:
    h = residual(w, f"{name}.0", h, emb, width, s)
    return attention(w, f"{name}.1", h, s) if h.shape[2] in s.sides else h


def encode(w: Drawn, x: Tensor, emb: Tensor, s: Settings) -> list[Tensor]:
    """The outputs of all parts on the way down."""
    outputs = [convolution(w, "input_blocks.0.0", x, s.widths[0])]
    for level, width in enumerate(s.widths):
        for _ in range(s.blocks):
            outputs.append(block(w, f"input_blocks.{len(outputs)}", outputs[-1], emb, width, s))
        if level < len(s.widths) - 1:
            name = f"input_blocks.{len(outputs)}.0"
            if s.residual_resampling:
                outputs.append(residual(w, name, outputs[-1], emb, width, s, halved))
            else:
                outputs.append(convolution(w, f"{name}.op", outputs[-1], width, 3, 2))
    return outputs


def middle(w: Drawn, h: Tensor, emb: Tensor, s: Settings) -> Tensor:
    h = residual(w, "middle_block.0", h, emb, s.widths[-1], s)
    return residual(w, "middle_block.2", attention(w, "middle_block.1", h, s), emb, s.widths[-1], s)


def unet(w: Drawn, x: Tensor, t: Tensor, y: Tensor | None, s: Settings) -> Tensor:
    """The output [B, out_channels, H, W] of x at timesteps t [B] for classes y [B]."""
    emb = condition(w, t, y, s)
    outputs = encode(w, x, emb, s)
    h = middle(w, outputs[-1], emb, s)
    number = 0
    for level in reversed(range(len(s.widths))):
        for i in range(s.blocks + 1):
            name = f"output_blocks.{number}"
            h = block(w, name, torch.cat([h, outputs.pop()], dim=1), emb, s.widths[level], s)
            if level and i == s.blocks:
                last = f"{name}.{2 if h.shape[2] in s.sides else 1}"
                if s.residual_resampling:
                    h = residual(w, last, h, emb, s.widths[level], s, doubled)
                else:
                    h = convolution(w, f"{last}.conv", doubled(h), s.widths[level])
            number += 1
    return convolution(w, "out.2", silu(group_norm(w, "out.0", h)), s.out_channels)


def classifier(w: Drawn, x: Tensor, t: Tensor, s: Settings) -> Tensor:
    """Logits [B, classes]: the way down, the middle, and attention pooling, whose query is the mean (arXiv 2103.00020)."""
    emb = condition(w, t, None, Settings(**{**vars(s), "classes": 0}))
    h = middle(w, encode(w, x, emb, s)[-1], emb, s)
    h = silu(group_norm(w, "out.0", h))
    channels, places = h.shape[1], h.shape[2] * h.shape[3]
    tokens = torch.cat([h.mean(dim=(2, 3))[:, None], h.flatten(2).mT], dim=1)
    tokens = tokens + w.draw("out.2.positional_embedding", channels, places + 1, std=0.5).T
    qkv = sequence_layer(w, "out.2.qkv_proj", tokens, 3 * channels)
    heads = heads_of_rows(qkv, channels // s.head_channels, True)
    h = torch.cat([softmax_attention(*head) for head in heads], dim=2)
    return sequence_layer(w, "out.2.c_proj", h, s.classes)[:, 0]
