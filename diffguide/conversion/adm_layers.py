"""The layers of ADM's networks under our names.

Dhariwal & Nichol 2021, arXiv 2105.05233; the tensor names of the published files.
"""

from .layers import Layers
from .weights import ConversionError, PublishedWeights

__all__ = ["ADMLayers"]


class ADMLayers(Layers):
    """Residual blocks, attention and changes of the side.

    Arguments:
        weights: of the file.
        heads: number of attention heads; None = by head_channels.
        head_channels: channels per attention head.
        new_attention_order: whether the rows of qkv are q, k, v of all heads, as ours; else q, k, v of one head after another.

    Attributes:
        channels: width at full resolution, in units of which the widths are given.
        embedding: length of the conditioning vector.
        scale_shift: whether the conditioning vector scales and shifts.
    """

    def __init__(self, weights: PublishedWeights, heads: int | None, head_channels: int, new_attention_order: bool):
        super().__init__(weights)
        self.heads, self.head_channels, self.new_attention_order = heads, head_channels, new_attention_order
        self.embedding, self.channels = weights.shape("time_embed.0.weight", 2)
        rows = weights.shape("input_blocks.1.0.emb_layers.1.weight", 2)[0]
        self.scale_shift = rows != self.width("input_blocks.1.0")

    def width(self, block: str) -> int:
        """The number of channels after a residual block."""
        return self.weights.shape(f"{block}.in_layers.2.weight", 4)[0]

    def multiplier(self, width: int) -> float:
        """A width in units of the width at full resolution."""
        ratio = width / self.channels
        return int(ratio) if ratio == int(ratio) else ratio

    def take_embedding(self) -> None:
        """The layers from the timestep to the conditioning vector."""
        self.take("time_embed.0", "embedding.noise.0", 4 * self.channels, self.channels)
        self.take("time_embed.2", "embedding.noise.2", 4 * self.channels, 4 * self.channels)

    def take_residual(self, theirs: str, ours: str, inputs: int, outputs: int) -> None:
        """A residual block."""
        self.take(f"{theirs}.in_layers.0", f"{ours}.norm_in", inputs)
        self.take(f"{theirs}.in_layers.2", f"{ours}.conv_in", outputs, inputs, 3, 3)
        rows = 2 * outputs if self.scale_shift else outputs
        self.take(f"{theirs}.emb_layers.1", f"{ours}.modulation", rows, self.embedding)
        self.take(f"{theirs}.out_layers.0", f"{ours}.norm_out", outputs)
        self.take(f"{theirs}.out_layers.3", f"{ours}.conv_out", outputs, outputs, 3, 3)
        if inputs != outputs:
            self.take(f"{theirs}.skip_connection", f"{ours}.skip", outputs, inputs, 1, 1)

    def take_attention(self, theirs: str, ours: str, channels: int) -> None:
        """An attention layer; the rows of qkv in our order."""
        self.take(f"{theirs}.norm", f"{ours}.norm", channels)
        self.take(f"{theirs}.qkv", f"{ours}.qkv", 3 * channels, channels, 1, 1)
        self.take(f"{theirs}.proj_out", f"{ours}.projection", channels, channels, 1, 1)
        if self.new_attention_order:
            return
        heads = self.heads or channels // self.head_channels
        if heads < 1 or channels % heads:
            raise ConversionError(f"{theirs} has {channels} channels, which {heads} heads do not divide")
        for name in (f"{ours}.qkv.weight", f"{ours}.qkv.bias"):
            rows = self.tensors[name].unflatten(0, (heads, 3, channels // heads))
            self.tensors[name] = rows.transpose(0, 1).flatten(0, 2).contiguous()

    def take_block(self, theirs: str, ours: str, inputs: int, outputs: int) -> None:
        """A residual block with the attention after it, if any."""
        self.take_residual(f"{theirs}.0", f"{ours}.0", inputs, outputs)
        if f"{theirs}.1.qkv.weight" in self.weights:
            self.take_attention(f"{theirs}.1", f"{ours}.1", outputs)

    def take_down(self, widths: list[int], blocks: int, in_channels: int) -> list[int]:
        """Everything down to the coarsest level; returns the widths of the first convolution and of all blocks."""
        self.take("input_blocks.0.0", "conv_in", widths[0], in_channels, 3, 3)
        skips = [widths[0]]
        for level, width in enumerate(widths):
            for _ in range(blocks):
                self.take_block(f"input_blocks.{len(skips)}", f"down.{len(skips) - 1}", skips[-1], width)
                skips.append(width)
            if level < len(widths) - 1:
                theirs, ours = f"input_blocks.{len(skips)}.0", f"down.{len(skips) - 1}"
                if f"{theirs}.op.weight" in self.weights:
                    self.take(f"{theirs}.op", f"{ours}.layers.0", width, width, 3, 3)
                else:
                    self.take_residual(theirs, f"{ours}.0", width, width)
                skips.append(width)
        return skips

    def take_middle(self, width: int) -> None:
        """The two blocks and the attention of the coarsest level."""
        self.take_residual("middle_block.0", "middle.0.0", width, width)
        self.take_attention("middle_block.1", "middle.0.1", width)
        self.take_residual("middle_block.2", "middle.1.0", width, width)

    def take_up(self, widths: list[int], blocks: int, skips: list[int]) -> None:
        """Everything back to full resolution."""
        place, width, skips = 0, widths[-1], list(skips)
        for number in range(len(widths) * (blocks + 1)):
            level = len(widths) - 1 - number // (blocks + 1)
            theirs = f"output_blocks.{number}"
            self.take_block(theirs, f"up.{place}", width + skips.pop(), widths[level])
            width, place = widths[level], place + 1
            if level and number % (blocks + 1) == blocks:
                last = 2 if f"{theirs}.1.qkv.weight" in self.weights else 1
                if f"{theirs}.{last}.conv.weight" in self.weights:
                    self.take(f"{theirs}.{last}.conv", f"up.{place}.layers.1", width, width, 3, 3)
                else:
                    self.take_residual(f"{theirs}.{last}", f"up.{place}.0", width, width)
                place += 1
