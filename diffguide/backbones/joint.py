"""A U-Net with one number per class, whose gradient denoises: the network of a joint energy of images."""

from collections.abc import Sequence

from torch import Tensor, nn

from .base import Backbone
from .conditions import Condition, RowCondition
from .unet import UNet

__all__ = ["UNetJoint"]


class UNetJoint(Backbone):
    """<x, w> + linear(sum over the pixels of h / side), [w, h] = U-Net(x): the first term is the same for all outputs.

    The gradient of <x, w> in x contains w, the image that the U-Net computes; the gradient of the pooled term exists only
    through the backward pass. Salimans & Ho, "Should EBMs model the energy or the score?", 2021; Du et al., "Reduce, Reuse,
    Recycle", 2023, arXiv 2302.11552.

    Arguments:
        in_channels: channels of the images.
        out_features: length of the output: one number per class.
        head: channels h to pool.
        others: as for `UNet` with double_differentiable=True, since the gradient of this network is trained.

    Raises:
        ValueError: no output or no channel to pool, or an argument that `UNet` rejects.
    """

    def __init__(
        self,
        in_channels: int,
        out_features: int,
        head: int = 128,
        size: int | None = None,
        channels: int = 32,
        multipliers: Sequence[int] = (1, 2),
        blocks: int | Sequence[int] = 2,
        attention: Sequence[int] = (4,),
        head_channels: int = 32,
        dropout: float = 0.1,
        noise_conditioned: bool = True,
        checkpointing: bool = False,
        fourier: Sequence[int] = (),
    ):
        super().__init__()
        if out_features < 1 or head < 1:
            raise ValueError(
                f"out_features (one per class of the data) and head must be at least 1, got {out_features} and {head}"
            )
        self.trunk = UNet(
            in_channels, in_channels + head, 0, size, channels, multipliers, blocks, attention, head_channels, dropout,
            noise_conditioned, 0, True, checkpointing, False, fourier,
        )  # fmt: skip
        self.linear = nn.Linear(head, out_features)
        self.size = size
        nn.init.zeros_(self.linear.bias)
        self.out_features, self.noise_conditioned, self.checkpointing = out_features, noise_conditioned, checkpointing

    def embed(self, y: Condition) -> RowCondition:
        return self.trunk.embed(y)

    def forward(self, x: Tensor, log_snr: Tensor | None, y: Condition | None = None) -> Tensor:
        w, h = self.trunk(x, log_snr, None).tensor_split([x.shape[1]], dim=1)
        shared = (x.to(w.dtype) * w).flatten(1).sum(1, keepdim=True)
        return shared + self.linear(h.sum(dim=(2, 3)) / self.size)
