"""What samples are compared in: features of images, by name. A figure always carries the name of its features.

    features.check(data)                      # one sentence where it cannot see such data
    features.prepare(data, device, progress)  # learns, or goes to the device
    features(images) -> Extracted(features, logits)

Images come as bytes, [B, C, H, W] uint8, quantised as a sample that is written to a file: u = round(127.5 (x + 1)).
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
    """features [B, D] float32; logits [B, K] of a classifier, None where there is none."""

    features: Tensor
    logits: Tensor | None = None


class Features:
    """Base of all of them.

    Attributes:
        name: in the figures' names.
        resize: what happens to the images before the network, in words.
        classifies: whether there are logits.
    """

    name: ClassVar[str]
    resize: ClassVar[str] = "none"
    classifies: ClassVar[bool] = False

    def check(self, data: Dataset) -> None:
        """
        Raises:
            ValueError: these features cannot see such data; in one sentence.
        """

    def width(self, shape: Sequence[int]) -> int:
        """D, of images of a shape."""
        raise NotImplementedError

    def prepare(self, data: Dataset, device: torch.device, progress: Callable[[int, int, str], None]) -> None:
        """Before the first call: learns what is to be learned, moves to the device."""

    def __call__(self, images: Tensor) -> FeatureOutput:
        """Of bytes [B, C, H, W], on the device of `prepare`; the answer is on the CPU."""
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """What tells these features from others of the name."""
        return {"resize": self.resize}


def as_rgb(images: Tensor) -> Tensor:
    """Grey images with their one channel thrice."""
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


def preprocess(images: Tensor, side: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(resize(u / 255) - mean) / std, bicubic with antialiasing, clipped to [0, 1] as bytes would be; [B, 3, side, side]."""
    x = as_rgb(images).float() / 255
    if list(x.shape[2:]) != [side, side]:
        x = functional.interpolate(x, (side, side), mode="bicubic", antialias=True).clamp(0, 1)
    mean, std = (torch.tensor(part, device=x.device)[:, None, None] for part in (mean, std))
    return (x - mean) / std


class Pixels(Features):
    """The pixels themselves, in [0, 1]: no network, and little meaning but for small grey images."""

    name = "pixels"

    def width(self, shape: Sequence[int]) -> int:
        return torch.Size(shape).numel()

    def __call__(self, images: Tensor) -> FeatureOutput:
        return FeatureOutput(images.flatten(1).float().cpu() / 255)
