"""A picture as a condition, made of the example itself: fewer pixels for super-resolution, a hole for inpainting."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..backbones.conditioning import Conditioning, ConditionTable, Context, mask_rows
from ..backbones.conditions import Condition, Picture
from ..datasets.decoding import Unreadable, read_square
from ..runtime.ranges import check_range, check_whole

__all__ = ["LowResolution", "Masked"]

SPREAD = 1 / 1.1673039782614187  # of x^5 = x + 1: multiples of its first four powers are spread evenly (Roberts 2018)


class OwnPictures(ConditionTable):
    """The condition of an example is a function of the example and of random numbers."""

    def __init__(self, condition: "OwnPicture"):
        self.condition, self.draws = condition, condition.draws

    def __call__(self, rows: Tensor, x: Tensor, chance: Tensor | None = None) -> Picture:
        if chance is None:  # the same for the same row
            seeds = torch.arange(self.draws, dtype=torch.float64, device=x.device)
            chance = ((rows.to(x.device)[:, None] + 1) * SPREAD ** (seeds + 1)) % 1
        return self.condition.degrade(x, chance.to(x))


class OwnPicture(Conditioning):
    """Base: a picture beside x, and a channel that says whether there is one.

    Arguments:
        in_channels: of x.
        size: side of x, pixels.
        extra: channels of the condition beyond those of x.
    """

    draws = 0
    meaning: str  # of the picture that the network gets

    def __init__(self, in_channels: int, size: int, extra: int = 0):
        super().__init__()
        self.in_channels = check_whole("condition.in_channels", in_channels, 1)
        self.size = check_whole("condition.size", size, 1)
        self.given = in_channels + extra
        self.channels = self.given + 1

    def degrade(self, x: Tensor, chance: Tensor) -> Picture:
        """The condition of examples x [B, C, H, W], by uniform numbers [B, draws] in [0, 1)."""
        raise NotImplementedError

    def forward(self, y: Condition | None, x: Tensor) -> Context:
        if y is None:
            return Context(channels=x.new_zeros(len(x), self.channels, *x.shape[2:]))
        if not isinstance(y, Picture) or y.x.shape[1:] != (self.given, *x.shape[2:]):
            shape = f" {list(y.x.shape)}" if isinstance(y, Picture) else ""
            raise ValueError(
                f"y must be a Picture [B, {self.given}, {x.shape[2]}, {x.shape[3]}] for this condition, got "
                f"{type(y).__name__}{shape}"
            )
        known = y.keep.to(x.dtype)[:, None, None, None].expand(-1, 1, *x.shape[2:])
        return Context(channels=torch.cat([mask_rows(y.x.to(x.dtype), y.keep), known], dim=1))

    def explain(self) -> Mapping[str, str]:
        return {"x": self.meaning}

    def tabulate(self, columns: Mapping[str, Any], labels: Tensor) -> ConditionTable:
        return OwnPictures(self)

    def read(self, values: Sequence[Any]) -> Picture:
        """Each value the file of a picture, "" = none."""
        rows = [self.read_file(value) if value != "" else None for value in values]
        empty = torch.zeros(self.given, self.size, self.size)
        keep = torch.tensor([row is not None for row in rows])
        return Picture(torch.stack([empty if row is None else row for row in rows]), keep)

    def read_file(self, value: Any) -> Tensor:
        """The condition of one value, [given, size, size]."""
        raise NotImplementedError

    def read_picture(self, value: Any, side: int, channels: int) -> Tensor:
        """A picture file in [-1, 1], its central square, [channels, side, side]; ValueError for one that cannot be read."""
        if not isinstance(value, str):
            raise ValueError(f"{value} must be the file of a picture")
        path = Path(value).expanduser()
        if not path.is_file():
            raise ValueError(f"{path} is no file")
        try:
            return read_square(path, channels, side, stretch=False).float() / 127.5 - 1
        except Unreadable as error:
            raise ValueError(f"{path} cannot be read: {error}") from error


class LowResolution(OwnPicture):
    """The picture of a side `factor` times smaller, by averages over squares, enlarged by bilinear interpolation.

    A super-resolution model: Saharia et al., "Image Super-Resolution via Iterative Refinement", 2021, arXiv 2104.07636,
    section 3, which enlarges by bicubic interpolation.

    Arguments:
        in_channels: channels of the images.
        size: side of the images, pixels.
        factor: how many times smaller, at least 2; divides the size.
    """

    meaning = (
        "the smaller picture in [-1, 1], enlarged to the side of x by bilinear interpolation (align_corners=False)"
    )

    def __init__(self, in_channels: int, size: int, factor: int = 4):
        super().__init__(in_channels, size)
        self.factor = check_whole("condition.factor", factor, 2)
        if size % factor:
            raise ValueError(f"condition.factor must divide the side of the images, {size} pixels, got {factor}")

    def degrade(self, x: Tensor, chance: Tensor) -> Picture:
        return Picture(self.enlarge(functional.avg_pool2d(x, self.factor)))

    def enlarge(self, x: Tensor) -> Tensor:
        return functional.interpolate(x, scale_factor=self.factor, mode="bilinear", align_corners=False)

    def read_file(self, value: Any) -> Tensor:
        return self.enlarge(self.read_picture(value, self.size // self.factor, self.in_channels)[None])[0]


class Masked(OwnPicture):
    """The picture with a hole: 0 inside a rectangle, and a channel that is 1 outside of it.

    An inpainting model: Saharia et al., "Palette", 2021, arXiv 2111.05826, section 4. Training draws the rectangle: sides
    uniform from `least` to `most` of the picture's, position uniform.

    Arguments:
        in_channels: channels of the images.
        size: side of the images, pixels.
        least, most: sides of the hole in units of the side of the picture, in (0, 1].
    """

    draws = 4
    meaning = "the picture in [-1, 1] with 0 in the hole, and a channel that is 0 in the hole and 1 outside of it"

    def __init__(self, in_channels: int, size: int, least: float = 0.25, most: float = 0.75):
        super().__init__(in_channels, size, extra=1)
        self.least, self.most = (
            check_range(f"condition.{n}", v, "(0, 1]") for n, v in (("least", least), ("most", most))
        )
        if least > most:
            raise ValueError(f"condition.least must be at most condition.most={most}, got {least}")

    def degrade(self, x: Tensor, chance: Tensor) -> Picture:
        outside = ~(
            self.inside(x.shape[2], chance[:, 0::2], x)[:, :, None]
            & self.inside(x.shape[3], chance[:, 1::2], x)[:, None]
        )
        return self.hide(x, outside[:, None].to(x.dtype))

    def inside(self, side: int, chance: Tensor, x: Tensor) -> Tensor:
        """Which pixels of an axis lie in the hole, [B, side]: chance [B, 2] for its length and position."""
        length = ((self.least + (self.most - self.least) * chance[:, :1]) * side).round().clamp(1, side)
        first = (chance[:, 1:] * (side - length + 1)).floor()
        pixel = torch.arange(side, device=x.device)
        return (pixel >= first) & (pixel < first + length)

    def hide(self, x: Tensor, outside: Tensor) -> Picture:
        """The condition of pictures [B, C, H, W] and masks [B, 1, H, W], 1 = known."""
        return Picture(torch.cat([x * outside, outside], dim=1))

    def read_file(self, value: Any) -> Tensor:
        """{picture: file, mask: file}: white in the mask is the hole."""
        if not isinstance(value, Mapping) or set(value) != {"picture", "mask"}:
            raise ValueError(f"{value} must be {{picture: <file>, mask: <file>}}, white in the mask = to be filled")
        x = self.read_picture(value["picture"], self.size, self.in_channels)
        outside = (self.read_picture(value["mask"], self.size, 1) < 0).float()
        return self.hide(x[None], outside[None]).x[0]
