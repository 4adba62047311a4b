"""A U-Net with one vector per image: the network of a classifier of noise levels."""

from collections.abc import Sequence

from torch import Tensor, nn

from .base import Backbone
from .conditions import Condition, RowCondition
from .unet import UNet

__all__ = ["UNetLevels"]


class UNetLevels(Backbone):
    """linear(sum over the pixels of U-Net(x) / side), where the U-Net has `head` output channels.

    Yadin, Elata, Michaeli 2024, arXiv 2402.10095, appendix C: DDPM's U-Net without its time layers, 512 channels, average
    pooling. Here the sum is divided by the side, not by its square, so that the gradient at a pixel, which predicts the
    noise there, does not shrink with the number of pixels.

    Arguments:
        in_channels: channels of the images.
        out_features: length of the output.
        head: channels to pool.
        others: as for `UNet` with double_differentiable=True, since the gradient of this network is trained.

    Raises:
        ValueError: no output or no channel to pool, or an argument that `UNet` rejects.
    """

    def __init__(
        self,
        in_channels: int,
        out_features: int,
        head: int = 64,
        num_classes: int = 0,
        size: int | None = None,
        channels: int = 32,
        multipliers: Sequence[int] = (1, 2),
        blocks: int | Sequence[int] = 2,
        attention: Sequence[int] = (4,),
        head_channels: int = 32,
        dropout: float = 0.1,
        noise_conditioned: bool = False,
        condition_features: int = 0,
        checkpointing: bool = False,
        fourier: Sequence[int] = (),
    ):
        super().__init__()
        if out_features < 1 or head < 1:
            raise ValueError(f"out_features and head must be at least 1, got {out_features} and {head}")
        self.trunk = UNet(
            in_channels, head, num_classes, size, channels, multipliers, blocks, attention, head_channels, dropout,
            noise_conditioned, condition_features, True, checkpointing, False, fourier,
        )  # fmt: skip
        self.linear = nn.Linear(head, out_features)
        self.side = size
        nn.init.zeros_(self.linear.bias)
        self.out_features, self.num_classes, self.condition_features = out_features, num_classes, condition_features
        self.noise_conditioned, self.checkpointing = noise_conditioned, checkpointing

    def embed(self, y: Condition) -> RowCondition:
        return self.trunk.embed(y)

    def forward(self, x: Tensor, log_snr: Tensor | None, y: Condition | None = None) -> Tensor:
        h = self.trunk(x, log_snr, y)
        return self.linear(h.sum(dim=(2, 3)) / self.side)
