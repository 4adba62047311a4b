"""A plain convolutional network with one vector per image, cheap enough for the long Langevin chains of an energy."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .base import Backbone, check_halvings, check_out_features
from .conditions import Condition

__all__ = ["ConvNet"]


class ConvNet(Backbone):
    """3 x 3 convolutions with SiLU, all but the first with stride 2, then two linear layers; y is not used.

    It has no normalisation, which would remove the brightness of an image, and no dropout: an energy needs a smooth network
    (Grathwohl et al. 2020, arXiv 1912.03263, appendix; Nijkamp et al. 2019, arXiv 1904.09770).

    Arguments:
        in_channels: channels of the images.
        out_features: length of the output, for a classifier the number of classes.
        size: side of the images, pixels.
        channels: width of the first convolution.
        multipliers: width of each convolution in units of channels; each but the first halves the side.
        width: features between the two linear layers.
        noise_conditioned: must be False: the network has no noise input.

    Raises:
        ValueError: no output, a width below 1, a side that cannot be halved so often, or noise_conditioned=True.
    """

    noise_conditioned = False

    def __init__(
        self,
        in_channels: int,
        out_features: int,
        size: int,
        channels: int = 32,
        multipliers: Sequence[int] = (1, 2, 4),
        width: int = 128,
        noise_conditioned: bool = False,
    ):
        super().__init__()
        check_out_features(out_features)
        if not multipliers or min(*multipliers, channels, width) < 1:
            raise ValueError(
                f"the network needs one multiplier at least, and channels, multipliers and width of at least 1, got "
                f"channels={channels}, multipliers={list(multipliers)}, width={width}"
            )
        check_halvings(size, len(multipliers))
        if noise_conditioned:
            raise ValueError(
                "noise_conditioned must be false: use backbone=unet_encoder for a network with noise input"
            )
        self.out_features = out_features
        widths = [in_channels, *(channels * multiplier for multiplier in multipliers)]
        layers: list[nn.Module] = []
        for index, (inputs, outputs) in enumerate(zip(widths, widths[1:])):
            layers += [nn.Conv2d(inputs, outputs, 3, stride=2 if index else 1, padding=1), nn.SiLU()]
        self.convolutions = nn.Sequential(*layers)
        flat = widths[-1] * (size // 2 ** (len(multipliers) - 1)) ** 2
        self.linear = nn.Sequential(nn.Linear(flat, width), nn.SiLU(), nn.Linear(width, out_features))

    def forward(self, x: Tensor, log_snr: Tensor | None, y: Condition | None = None) -> Tensor:
        if log_snr is not None:
            raise ValueError("this network has no noise input: log_snr must be None")
        weight = self.linear[0].weight  # of a linear layer, or of one with an adapter
        assert isinstance(weight, Tensor)
        h = self.convolutions(x.to(weight.dtype))
        return self.linear(torch.flatten(h, 1))
