"""EDM's form of ADM's U-Net under the names of ours.

Karras et al. 2022, arXiv 2206.00364, table 7, column ADM. It differs from ADM in its noise level ln(sigma) / 4, in groups of
at least 4 channels, and in the order of the rows of its attention.
"""

from typing import Any

import torch
from torch import Tensor

from .edm_facts import Levels, common_width, multiple
from .layers import Layers
from .nodes import timestep_features
from .weights import ConversionError, PublishedWeights

__all__ = ["order_rows", "take_adm"]

HEAD_CHANNELS = 64


def order_rows(value: Tensor, heads: int) -> Tensor:
    """Weights or biases whose rows are q, k and v of one channel after another, head by head: all of q, then of k, of v."""
    return value.unflatten(0, (heads, len(value) // 3 // heads, 3)).movedim(2, 0).flatten(0, 2).contiguous()


class EDMADMLayers(Layers):
    """Blocks of EDM's ADM.

    Arguments:
        weights: of the file.
        embedding: length of the conditioning vector.
    """

    def __init__(self, weights: PublishedWeights, embedding: int):
        super().__init__(weights)
        self.embedding = embedding

    def take_block(self, theirs: str, ours: str, inputs: int, outputs: int) -> None:
        """A residual block, with attention if it has any."""
        self.take(f"{theirs}.norm0", f"{ours}.0.norm_in", inputs)
        self.take(f"{theirs}.conv0", f"{ours}.0.conv_in", outputs, inputs, 3, 3)
        self.take(f"{theirs}.affine", f"{ours}.0.modulation", 2 * outputs, self.embedding)
        self.take(f"{theirs}.norm1", f"{ours}.0.norm_out", outputs)
        self.take(f"{theirs}.conv1", f"{ours}.0.conv_out", outputs, outputs, 3, 3)
        if inputs != outputs:
            self.take(f"{theirs}.skip", f"{ours}.0.skip", outputs, inputs, 1, 1)
        if f"{theirs}.qkv.weight" not in self.weights:
            return
        self.take(f"{theirs}.norm2", f"{ours}.1.norm", outputs)
        self.take(f"{theirs}.qkv", f"{ours}.1.qkv", 3 * outputs, outputs, 1, 1)
        self.take(f"{theirs}.proj", f"{ours}.1.projection", outputs, outputs, 1, 1)
        heads = outputs // HEAD_CHANNELS
        if not heads or outputs % heads:
            raise ConversionError(f"{theirs} has {outputs} channels, which heads of {HEAD_CHANNELS} do not divide")
        for name in (f"{ours}.1.qkv.weight", f"{ours}.1.qkv.bias"):
            self.tensors[name] = order_rows(self.tensors[name], heads)

    def take_down(self, prefix: str, levels: Levels) -> list[int]:
        """The blocks on the way down; returns the widths of the first convolution and of all blocks."""
        skips = [levels.widths[0]]
        for level, (side, width) in enumerate(zip(levels.sides, levels.widths)):
            names = [f"block{index}" for index in range(levels.blocks[level])]
            for name in ["down", *names] if level else names:
                outputs = skips[-1] if name == "down" else width
                self.take_block(f"{prefix}enc.{side}x{side}_{name}", f"down.{len(skips) - 1}", skips[-1], outputs)
                skips.append(outputs)
        return skips

    def take_up(self, prefix: str, levels: Levels, skips: list[int]) -> None:
        """The middle and the blocks on the way up."""
        width, place, coarsest = levels.widths[-1], 0, levels.sides[-1]
        for index in range(2):
            self.take_block(f"{prefix}dec.{coarsest}x{coarsest}_in{index}", f"middle.{index}", width, width)
        for level in reversed(range(len(levels.sides))):
            side = levels.sides[level]
            if side != coarsest:
                self.take_block(f"{prefix}dec.{side}x{side}_up", f"up.{place}", width, width)
                place += 1
            for index in range(levels.blocks[level] + 1):
                theirs, outputs = f"{prefix}dec.{side}x{side}_block{index}", levels.widths[level]
                self.take_block(theirs, f"up.{place}", width + skips.pop(), outputs)
                width, place = outputs, place + 1


def take_adm(
    weights: PublishedWeights, prefix: str, levels: Levels, shared: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The node of `UNet` and its tensors.

    Arguments:
        shared: arguments that every network of EDM has.
    """
    embedding, noise = weights.shape(f"{prefix}map_layer0.weight", 2)
    channels = common_width(*levels.widths, noise)
    if embedding != 4 * channels:
        raise ConversionError(f"map_layer0 has {embedding} outputs, and only 4 times {channels} channels are supported")
    layers = EDMADMLayers(weights, embedding)
    layers.take(f"{prefix}map_layer0", "embedding.noise.0", embedding, noise)
    layers.take(f"{prefix}map_layer1", "embedding.noise.2", embedding, embedding)
    if shared["num_classes"]:
        rows = weights.take(f"{prefix}map_label.weight", embedding, shared["num_classes"]).T
        layers.tensors["embedding.classes.weight"] = torch.cat([torch.zeros(1, embedding), rows])
    size, in_channels = shared["size"], shared["in_channels"]
    layers.take(f"{prefix}enc.{size}x{size}_conv", "conv_in", levels.widths[0], in_channels, 3, 3)
    skips = layers.take_down(prefix, levels)
    layers.take_up(prefix, levels, skips)
    layers.take(f"{prefix}out_norm", "norm_out", levels.widths[0])
    layers.take(f"{prefix}out_conv", "conv_out", in_channels, levels.widths[0], 3, 3)
    features = timestep_features({"_target_": "diffguide.backbones.timesteps.LogNoiseTimesteps"}, noise)
    node = {
        "_target_": "diffguide.backbones.unet.UNet",
        **shared,
        "channels": channels,
        "multipliers": [multiple("a level", width, channels) for width in levels.widths],
        "blocks": levels.blocks,
        "head_channels": HEAD_CHANNELS,
        "noise_features": features,
        "middle_attention": True,
    }
    return node, layers.tensors
