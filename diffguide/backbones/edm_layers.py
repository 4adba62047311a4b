"""What the networks of EDM and EDM2 share: the plan of their U-Net, resampling by a filter, labels, stored constants.

Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022, arXiv 2206.00364, table 7.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from .base import Backbone
from .conditions import ClassEmbedding, Condition

__all__ = [
    "DOWN",
    "UP",
    "BlockPlan",
    "EDMBackbone",
    "Resample",
    "as_bits",
    "check_images",
    "label_vectors",
    "plan_decoder",
    "plan_encoder",
    "require_log_snr",
]

DOWN, UP = "down", "up"


class BlockPlan(NamedTuple):
    """A block of a U-Net.

    Attributes:
        name: in the published checkpoints, such as 32x32_block0.
        inputs, outputs: channels.
        side: of its output, pixels.
        resample: down = it halves the side first, up = it doubles it, None.
        attends: whether attention follows.
        joins: whether its input is joined with the output of a block of the encoder.
    """

    name: str
    inputs: int
    outputs: int
    side: int
    resample: str | None = None
    attends: bool = False
    joins: bool = False


class EDMBackbone(Backbone):
    """Base of both U-Nets: it numbers their blocks, and has the classes in the columns of `embedding.label`."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_layers, self.residual_blocks = list[int](), list[int]()

    def number(self, block: Any, plan: BlockPlan) -> Any:
        """The block, numbered in the order of computation."""
        block.index, block.attention_index = len(self.residual_blocks), len(self.attention_layers)
        self.residual_blocks = [*self.residual_blocks, plan.side]
        if plan.attends:
            self.attention_layers = [*self.attention_layers, plan.side]
        return block

    def class_tables(self) -> dict[str, int]:
        return {"embedding.label.weight": 1} if self.num_classes else {}

    def class_row(self, index: int) -> int | None:
        return None if index < 0 else index


def plan_encoder(
    first: int, widths: Sequence[int], levels: Sequence[tuple[int, int]], attention: Sequence[int]
) -> list[BlockPlan]:
    """The blocks after a convolution to `first` channels, from full resolution down; levels by `check_unet`."""
    plans, width = list[BlockPlan](), first
    for level, (side, blocks) in enumerate(levels):
        if level:
            plans.append(BlockPlan(f"{side}x{side}_down", width, width, side, DOWN))
        for index in range(blocks):
            plans.append(BlockPlan(f"{side}x{side}_block{index}", width, widths[level], side, None, side in attention))
            width = widths[level]
    return plans


def plan_decoder(
    widths: Sequence[int],
    levels: Sequence[tuple[int, int]],
    attention: Sequence[int],
    encoder: Sequence[BlockPlan],
    only_last: bool,
) -> list[BlockPlan]:
    """The blocks back to full resolution; the first always has attention.

    only_last: whether only the last block of a level has attention.
    """
    plans, width, skips = list[BlockPlan](), widths[-1], [encoder[0].inputs, *(plan.outputs for plan in encoder)]
    for level, (side, blocks) in reversed(list(enumerate(levels))):
        if level == len(levels) - 1:
            plans.append(BlockPlan(f"{side}x{side}_in0", width, width, side, None, True))
            plans.append(BlockPlan(f"{side}x{side}_in1", width, width, side))
        else:
            plans.append(BlockPlan(f"{side}x{side}_up", width, width, side, UP))
        for index in range(blocks + 1):
            attends = side in attention and (index == blocks or not only_last)
            joined = width + skips.pop()
            plans.append(
                BlockPlan(f"{side}x{side}_block{index}", joined, widths[level], side, None, attends, joins=True)
            )
            width = widths[level]
    return plans


class Resample(nn.Module):
    """Halves the side after smoothing with f along both axes, or doubles it with zeros between the pixels before 2 f.

    Arguments:
        direction: down or up.
        taps: f, of even length, divided by its sum.
        padded: whether zeros are assumed beyond the border; False = the input has them already.
    """

    kernel: Tensor

    def __init__(self, direction: str, taps: Sequence[float], padded: bool = True):
        super().__init__()
        if len(taps) % 2 or not sum(taps) > 0:
            raise ValueError(f"resample_filter must be an even number of taps with a sum above 0, got {list(taps)}")
        self.up, self.padding = direction == UP, (len(taps) - 1) // 2 if padded else 0
        self.is_box = list(taps) == [taps[0]] * 2  # means of, or copies to, 2 x 2 pixels
        axis = torch.tensor(taps, dtype=torch.float32) / sum(taps)
        self.register_buffer("kernel", torch.outer(axis, axis) * (4 if self.up else 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.is_box:
            return functional.interpolate(x, scale_factor=2) if self.up else functional.avg_pool2d(x, 2)
        channels = x.shape[1]
        kernel = self.kernel.to(x.dtype).expand(channels, 1, -1, -1)
        convolve = functional.conv_transpose2d if self.up else functional.conv2d
        return convolve(x, kernel, stride=2, padding=self.padding, groups=channels)


def as_bits(values: Tensor) -> Tensor:
    """float32 numbers as int32 with the same bits, which `.to(bfloat16)` does not round; `.view(torch.float32)` is back."""
    return values.to(torch.float32).view(torch.int32)


def require_log_snr(log_snr: Tensor | None) -> Tensor:
    """The log-SNR, clamped to +-20, beyond which x_t is pure data or pure noise in float32."""
    if log_snr is None:
        raise ValueError("log_snr [B] is required for this network, got None")
    return log_snr.clamp(-20, 20)


def label_vectors(table: Tensor | None, y: Condition | None) -> ClassEmbedding | None:
    """The rows of table [K, D] for a condition: class indices, or a `ClassEmbedding` itself; None without one.

    Rows without a condition are 0: the published networks take a one-hot label, and the zero vector means none.
    """
    if y is None or table is None:
        return None
    if isinstance(y, Tensor):
        return ClassEmbedding(table[y.clamp(min=0)], y >= 0)
    if not isinstance(y, ClassEmbedding):
        raise ValueError(f"y must be class indices [B] (-1 = none) for this network, got {type(y).__name__}")
    return y


def check_images(size: int | None, num_classes: int) -> int:
    """`size`; raises ValueError for vectors, or a negative number of classes."""
    if size is None:
        raise ValueError("the U-Net needs images, but the data are vectors; use backbone=mlp")
    if num_classes < 0:
        raise ValueError(f"num_classes must be at least 0, got {num_classes}")
    return size
