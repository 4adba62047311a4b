"""The resolution levels of a U-Net or its encoder: the side of the image and the number of blocks on each."""

from collections.abc import Sequence

from ..runtime.ranges import check_range
from .base import check_halvings

__all__ = ["check_unet"]


def check_unet(
    size: int,
    channels: int,
    multipliers: Sequence[float],
    blocks: int | Sequence[int],
    attention: Sequence[int],
    head_channels: int,
    dropout: float,
    advice: str = "",
) -> list[tuple[int, int]]:
    """(Side of the image in pixels, half of the one before; number of blocks) per level of a U-Net or its encoder.

    Raises:
        ValueError: a width or number out of range, a side that cannot be halved so often, or attention at a side that no
            level has (`advice` ends this message), or blocks for another number of levels.
    """
    counts = [blocks] * len(multipliers) if isinstance(blocks, int) else list(blocks)
    narrowest = min((int(channels * multiplier) for multiplier in multipliers), default=0)
    if narrowest < 4 or min(counts, default=0) < 1 or head_channels < 1:
        raise ValueError(
            "the network needs at least one multiplier, 4 channels at every side, 1 block and 1 channel per head, got "
            f"multipliers={list(multipliers)}, channels={channels}, blocks={blocks}, head_channels={head_channels}"
        )
    if len(counts) != len(multipliers):
        raise ValueError(
            f"blocks must be one number or a list of {len(multipliers)} numbers, one per multiplier, got {counts}"
        )
    check_range("dropout", dropout, "[0, 1)")
    check_halvings(size, len(multipliers))
    sides = [size // 2**level for level in range(len(multipliers))]
    if any(side not in sides for side in attention):
        nearest = sorted({min(sides, key=lambda side: abs(side - other)) for other in attention}, reverse=True)
        raise ValueError(
            f"attention={list(attention)} must be among the sides of this network, {sides}, such as "
            f"backbone.attention={nearest}{advice}"
        )
    return list(zip(sides, counts, strict=True))
