"""A picture as a condition, made of the example itself: fewer pixels for super-resolution, a hole for inpainting."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..backbones.conditioning import Conditioning, ConditionTable, Context, mask_rows
from ..backbones.conditions import Condition, Picture, check_rows
from ..datasets.decoding import Unreadable, read_square
from ..randomness import Noise, fold
from ..runtime.ranges import check_range, check_whole
from .numbers import count_features, fourier_features

__all__ = ["LowResolution", "Masked", "NoisyPicture", "QuietPicture"]

SPREAD = 1 / 1.1673039782614187  # of x^5 = x + 1: multiples of its first four powers are spread evenly (Roberts 2018)
MAX_SPREAD = 4  # of these powers
EXAMPLE_PURPOSE = 6  # of the seed of an example in evaluations
LEVEL_FREQUENCIES = 6  # Fourier features of the noise level
NOISE_DRAW = 2**38  # of a condition, beyond the draws of samplers and of guidance
SMALLEST_CHANCE = 2.0**-25  # half a step of the uniform numbers, whose normal is finite


class OwnPictures(ConditionTable):
    """The condition of an example is a function of the example and of random numbers."""

    def __init__(self, condition: "OwnPicture"):
        self.condition, self.draws = condition, condition.draws

    def __call__(self, rows: Tensor, x: Tensor, chance: Tensor | None = None) -> Picture:
        if chance is None:
            chance = self.spread(rows) if self.draws <= MAX_SPREAD else self.draw_rows(rows)
        return self.condition.degrade(x, chance.to(x))

    def spread(self, rows: Tensor) -> Tensor:
        """Numbers that are the same for the same row, and spread evenly over the rows."""
        seeds = torch.arange(self.draws, dtype=torch.float64, device=rows.device)
        return ((rows[:, None] + 1) * SPREAD ** (seeds + 1)) % 1

    def draw_rows(self, rows: Tensor) -> Tensor:
        """Numbers that are the same for the same row."""
        generators = (torch.Generator().manual_seed(fold(EXAMPLE_PURPOSE, row)) for row in rows.tolist())
        return torch.stack([torch.rand(self.draws, generator=rng) for rng in generators])


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


class NoisyPicture(Picture):
    """A picture with noise, and the level of it.

    Arguments:
        x: [B, C, H, W].
        level: standard deviation of the noise in each row, [B], in [0, 1].
        keep: [B] bool; None = a condition in every row.

    Raises:
        ValueError: other shapes, or a mask that is not boolean.
    """

    names = ("x", "level")

    def __init__(self, x: Tensor, level: Tensor, keep: Tensor | None = None):
        super().__init__(x, keep)
        check_rows("a NoisyPicture", "level [B]", level.shape == (len(x),), self.keep, level)
        self.level = level


class QuietPicture(NoisyPicture):
    """A picture that gets noise of its level when samples are drawn, by the seed of each sample."""


class LowResolution(OwnPicture):
    """The picture of a side `factor` times smaller, by averages over squares, enlarged by bilinear interpolation.

    A super-resolution model: Saharia et al., "Image Super-Resolution via Iterative Refinement", 2021, arXiv 2104.07636,
    section 3, which enlarges by bicubic interpolation.

    In a cascade the small picture is a sample of another model. Noise hides its faults, and the network is told how much:

        z_s = sqrt(1 - s^2) z + s e,  s uniform in [0, noise],  e standard normal, before z is enlarged.

    Ho et al., "Cascaded Diffusion Models for High Fidelity Image Generation", 2021, arXiv 2106.15282, section 4
    (non-truncated conditioning augmentation); Saharia et al., "Imagen", 2022, arXiv 2205.11487, section 2.3. The vector has
    the Fourier features of s / noise.

    Arguments:
        in_channels: channels of the images.
        size: side of the images, pixels.
        factor: how many times smaller, at least 2; divides the size.
        noise: largest level s in training, in [0, 1]; 0 = no noise, and no level in the vector.
    """

    meaning = (
        "the smaller picture in [-1, 1], enlarged to the side of x by bilinear interpolation (align_corners=False)"
    )

    def __init__(self, in_channels: int, size: int, factor: int = 4, noise: float = 0.0):
        super().__init__(in_channels, size)
        self.factor = check_whole("condition.factor", factor, 2)
        if size % factor:
            raise ValueError(f"condition.factor must divide the side of the images, {size} pixels, got {factor}")
        self.noise = check_range("condition.noise", noise, "[0, 1]")
        if noise:
            self.draws = 1 + in_channels * (size // factor) ** 2
            self.vector_features = count_features(1, LEVEL_FREQUENCIES)

    def degrade(self, x: Tensor, chance: Tensor) -> Picture:
        """With noise, the first number of a row is for the level, each other one for a value of the small picture."""
        small = functional.avg_pool2d(x, self.factor)
        if not self.noise:
            return Picture(self.enlarge(small))
        level = self.noise * chance[:, 0]
        e = torch.special.ndtri(chance[:, 1:].clamp(min=SMALLEST_CHANCE)).reshape(small.shape)
        return NoisyPicture(self.enlarge(add_noise(small, e, level)), level)

    def enlarge(self, x: Tensor) -> Tensor:
        return functional.interpolate(x, scale_factor=self.factor, mode="bilinear", align_corners=False)

    def forward(self, y: Condition | None, x: Tensor) -> Context:
        if not self.noise:
            return super().forward(y, x)
        if y is None:
            return super().forward(y, x)._replace(vector=x.new_zeros(len(x), self.vector_features))
        if not isinstance(y, NoisyPicture) or isinstance(y, QuietPicture):
            raise ValueError(
                f"y must be a NoisyPicture with condition.noise={self.noise}, got {type(y).__name__}: a picture that was read "
                "gets its noise by draw(y, noise)"
            )
        level = y.level.to(torch.promote_types(x.dtype, torch.float32))[:, None] / self.noise
        vector = fourier_features(level, y.keep[:, None], LEVEL_FREQUENCIES).to(x.dtype)
        return super().forward(y, x)._replace(vector=vector)

    def explain(self) -> Mapping[str, str]:
        level = {"level": f"of the noise of the smaller picture, 0 to {self.noise}"} if self.noise else {}
        return {**super().explain(), **level}

    def draw(self, y: Condition, noise: Noise) -> Condition:
        if not isinstance(y, QuietPicture):
            return y
        e = functional.avg_pool2d(noise.normal(1.0, NOISE_DRAW), self.factor) * self.factor
        level = y.level.to(y.x.dtype)
        return NoisyPicture(add_noise(y.x, self.enlarge(e.to(y.x)), level), y.level, y.keep)

    def read(self, values: Sequence[Any]) -> Picture:
        """Each value the file of a picture, or {picture: file, noise: its level}, "" = none."""
        pairs = [self.split_noise(value) for value in values]
        y = super().read([file for file, _ in pairs])
        if not self.noise:
            return y
        level = torch.tensor([level for _, level in pairs])
        return (QuietPicture if bool(level.any()) else NoisyPicture)(y.x, level, y.keep)

    def split_noise(self, value: Any) -> tuple[Any, float]:
        """The file of a value, and its noise level, 0 if it has none."""
        if not isinstance(value, Mapping):
            return value, 0.0
        if set(value) != {"picture", "noise"}:
            raise ValueError(f"{value} must be a file, or {{picture: <file>, noise: <level>}}")
        level = value["noise"]
        if isinstance(level, bool) or not isinstance(level, int | float) or not 0 <= level <= self.noise:
            raise ValueError(f"noise of {value['picture']} must be 0 to condition.noise={self.noise}, got {level}")
        return value["picture"], float(level)

    def read_file(self, value: Any) -> Tensor:
        return self.enlarge(self.read_picture(value, self.size // self.factor, self.in_channels)[None])[0]


def add_noise(z: Tensor, e: Tensor, level: Tensor) -> Tensor:
    """sqrt(1 - s^2) z + s e of pictures z, noise e [B, C, H, W] and levels s [B]."""
    s = level[:, None, None, None]
    return (1 - s**2).sqrt() * z + s * e


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
