"""Features of images, in which samples are compared. The name of a figure includes that of its features.

    features.check(data)                      # ValueError if they do not support such data
    features.prepare(data, device, progress)  # trains, or moves to the device
    features(images) -> FeatureOutput(features, logits)

Images are bytes, [B, C, H, W] uint8, quantized like the samples in a file: u = round(127.5 (x + 1)).
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ...datasets import Dataset

__all__ = ["FeatureOutput", "Features", "Pixels", "as_rgb", "preprocess"]

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and deviation of channels in [0, 1]


class FeatureOutput(NamedTuple):
    """features [B, D] float32; logits [B, K] of a classifier, None = no classifier."""

    features: Tensor
    logits: Tensor | None = None


class Features:
    """Base of the features.

    Attributes:
        name: in the names of figures.
        resize: description of the resizing before the network.
        classifies: whether there are logits.
    """

    name: ClassVar[str]
    resize: ClassVar[str] = "none"
    classifies: ClassVar[bool] = False

    def check(self, data: Dataset) -> None:
        """
        Raises:
            ValueError: the features do not support such data.
        """

    def width(self, shape: Sequence[int]) -> int:
        """D, for images of a shape."""
        raise NotImplementedError

    def prepare(self, data: Dataset, device: torch.device, progress: Callable[[int, int, str], None]) -> None:
        """Trains the features if needed, and moves them to the device; called before the first use."""

    def __call__(self, images: Tensor) -> FeatureOutput:
        """Features of bytes [B, C, H, W], computed on the device of `prepare`, returned on the CPU."""
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """Settings that distinguish these features from others with the same name."""
        return {"resize": self.resize}


def as_rgb(images: Tensor) -> Tensor:
    """Greyscale images with three equal channels; others unchanged."""
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


def preprocess(images: Tensor, side: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(resize(u / 255) - mean) / std, bicubic with antialiasing, clipped to [0, 1] as bytes would be; [B, 3, side, side]."""
    x = as_rgb(images).float() / 255
    if list(x.shape[2:]) != [side, side]:
        x = functional.interpolate(x, (side, side), mode="bicubic", antialias=True).clamp(0, 1)
    centre, scale = (torch.tensor(part, device=x.device)[:, None, None] for part in (mean, std))
    return (x - centre) / scale


class Pixels(Features):
    """The pixels in [0, 1], without a network; meaningful for small greyscale images only."""

    name = "pixels"

    def width(self, shape: Sequence[int]) -> int:
        return torch.Size(shape).numel()

    def __call__(self, images: Tensor) -> FeatureOutput:
        return FeatureOutput(images.flatten(1).float().cpu() / 255)
