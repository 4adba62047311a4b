"""DiT and SiT with the published names. arXiv 2212.09748, section 3 and figure 3; arXiv 2401.08740."""

import math
from dataclasses import dataclass

import numpy
import torch
from published_layers import Drawn, layer_norm, linear, silu, softmax_attention, timestep_features
from torch import Tensor


@dataclass
class Settings:
    """Of a network."""

    size: int = 8
    patch: int = 2
    channels: int = 4
    width: int = 48
    depth: int = 3
    heads: int = 3
    classes: int = 5
    outputs: int = 8  # channels of the output
    features: int = 256  # of the timestep
    ratio: float = 4.0


def positions(side: int, width: int) -> Tensor:
    """[side^2, width]: half of the features for the column, half for the row, each sines then cosines."""
    row, column = numpy.mgrid[:side, :side]
    omega = 10000.0 ** (-numpy.arange(width // 4) / (width // 4))
    parts = []
    for place in (column, row):
        angles = place.reshape(-1)[:, None] * omega
        parts += [numpy.sin(angles), numpy.cos(angles)]
    return torch.from_numpy(numpy.concatenate(parts, axis=1)).float()


def gelu(x: Tensor) -> Tensor:
    """The approximation by tanh."""
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def attend(w: Drawn, name: str, x: Tensor, heads: int) -> Tensor:
    width = x.shape[2]
    q, k, v = linear(w, f"{name}.qkv", x, 3 * width).split(width, dim=2)
    d = width // heads
    parts = [softmax_attention(*(part[:, :, head * d : (head + 1) * d] for part in (q, k, v))) for head in range(heads)]
    return linear(w, f"{name}.proj", torch.cat(parts, dim=2), width)


def dit(w: Drawn, x: Tensor, t: Tensor, y: Tensor | None, s: Settings) -> Tensor:
    """The output [B, outputs, H, W]; y = classes is the null condition."""
    side = s.size // s.patch
    if "pos_embed" not in w:
        w["pos_embed"] = positions(side, s.width)[None]
    weight = w.draw("x_embedder.proj.weight", s.width, s.channels, s.patch, s.patch)
    h = torch.nn.functional.conv2d(x, weight, w.bias("x_embedder.proj.bias", s.width), stride=s.patch)
    h = h.flatten(2).mT + w["pos_embed"]
    emb = linear(
        w, "t_embedder.mlp.2", silu(linear(w, "t_embedder.mlp.0", timestep_features(t, s.features), s.width)), s.width
    )
    if s.classes:
        emb = emb + w.draw("y_embedder.embedding_table.weight", s.classes + 1, s.width, std=1.0)[y]
    for number in range(s.depth):
        name = f"blocks.{number}"
        parts = linear(w, f"{name}.adaLN_modulation.1", silu(emb), 6 * s.width)[:, None].split(s.width, dim=2)
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = parts
        h = h + gate * attend(w, f"{name}.attn", layer_norm(h) * (1 + scale) + shift, s.heads)
        hidden = linear(w, f"{name}.mlp.fc1", layer_norm(h) * (1 + scale_mlp) + shift_mlp, int(s.ratio * s.width))
        h = h + gate_mlp * linear(w, f"{name}.mlp.fc2", gelu(hidden), s.width)
    shift, scale = linear(w, "final_layer.adaLN_modulation.1", silu(emb), 2 * s.width)[:, None].split(s.width, dim=2)
    h = linear(w, "final_layer.linear", layer_norm(h) * (1 + scale) + shift, s.patch**2 * s.outputs)
    image = torch.empty(len(x), s.outputs, s.size, s.size, dtype=h.dtype)
    for place in range(side**2):  # each token is a patch, its values ordered by row, column, channel
        row, column = divmod(place, side)
        patch = h[:, place].reshape(-1, s.patch, s.patch, s.outputs).permute(0, 3, 1, 2)
        rows, columns = (slice(p * s.patch, (p + 1) * s.patch) for p in (row, column))
        image[:, :, rows, columns] = patch
    return image


def sit(w: Drawn, x: Tensor, t: Tensor, y: Tensor | None, s: Settings) -> Tensor:
    """The velocity x_0 - eps at time t, 0 = noise, 1 = data; of an output with twice the channels the first half."""
    return dit(w, x, t, y, s)[:, : s.channels]
