"""What every network shares: the conditioning vector from the noise level and the class."""

import torch
from torch import Tensor, nn

__all__ = ["Backbone", "ConditionEmbedding"]


class Backbone(nn.Module):
    """backbone(x, log_snr, y) -> F. x [B, C, H, W] or [B, D]; log_snr [B]; y [B] class indices, -1 or None = no condition.

    A backbone knows nothing of time, schedules or diffusion beyond "a log-SNR comes in".

    Attributes:
        num_classes: number of classes, 0 = unconditional.
    """

    num_classes: int


class ConditionEmbedding(nn.Module):
    """embedding = MLP(features of the log-SNR) + class row; row 0 is the null condition, y = -1.

    Features are sines and cosines of the log-SNR with wavelengths from 2 pi / 4 to 2 pi * 25, clamped to +-20, which
    covers exact ends: beyond, x_t is pure data or pure noise to float32.

    Arguments:
        features: width of the result.
        num_classes: number of classes, 0 = none.
    """

    def __init__(self, features: int, num_classes: int):
        super().__init__()
        self.num_classes = num_classes
        half = features // 2
        self.register_buffer("frequencies", torch.logspace(0.6, -1.4, half), persistent=False)
        self.noise = nn.Sequential(nn.Linear(2 * half, features), nn.SiLU(), nn.Linear(features, features))
        self.classes = nn.Embedding(num_classes + 1, features) if num_classes else None

    def forward(self, log_snr: Tensor, y: Tensor | None) -> Tensor:
        angles = log_snr.clamp(-20, 20)[:, None] * self.frequencies
        embedding = self.noise(torch.cat([angles.cos(), angles.sin()], dim=1).to(self.noise[0].weight.dtype))
        if self.classes is None:
            return embedding
        if y is None:
            y = torch.full(log_snr.shape, -1, device=log_snr.device)
        return embedding + self.classes(y + 1)
