"""A network with a learned variance, as a function written out twice: for the package and for the tests in NumPy."""

import numpy as np
import torch

from diffguide.backbones import Backbone
from diffguide.backbones.perturbations import Perturbation


class VarianceNetwork(Backbone):
    """F [B, 2 C, ...]: the noise, and a variance that depends on x, the level and the class; float64."""

    num_classes, learned_variance = 3, True
    attention_layers = residual_blocks = (2,)

    def forward(self, x, log_snr, y, perturbation: Perturbation | None = None):
        y = torch.full((len(x),), -1) if y is None else y
        level, label = (value.to(x).reshape(-1, *[1] * (x.ndim - 1)) for value in (log_snr / 10, y))
        moved = 0.0 if perturbation is None else 0.3 * perturbation.rows.to(x).reshape(label.shape)
        return torch.cat(
            [0.8 * x + 0.1 * torch.sin(x + label) + moved, torch.cos(2 * x + level + label) + moved], dim=1
        )


def output(x: np.ndarray, log_snr: float, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """eps and v of the network, unperturbed."""
    label = y.reshape(-1, *[1] * (x.ndim - 1))
    return 0.8 * x + 0.1 * np.sin(x + label), np.cos(2 * x + log_snr / 10 + label)
