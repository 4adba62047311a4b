"""A residual network for vectors, on random Fourier features of its input.

Tancik et al., "Fourier Features Let Networks Learn High Frequency Functions in Low Dimensional Domains", 2020,
arXiv 2006.10739. Without these features a small network blurs the narrow components of a mixture.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from .base import Backbone, ConditionEmbedding
from .conditions import Condition
from .perturbations import Perturbation
from .random_perturbations import NoisyEmbedding

__all__ = ["MLP"]


class ResidualLayer(nn.Module):
    """h + linear(silu(norm(h) (1 + scale) + shift)), scale and shift from the conditioning vector."""

    def __init__(self, width: int, embedding: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.modulation = nn.Linear(embedding, 2 * width)
        self.linear = nn.Linear(width, width)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulation(embedding).chunk(2, dim=1)
        return h + self.linear(functional.silu(torch.addcmul(shift, self.norm(h), 1 + scale)))


class MLP(Backbone):
    """Residual layers on [x, cos(2 pi W x), sin(2 pi W x)]; W is fixed, drawn from N(0, fourier_scale^2).

    Arguments:
        in_channels: length of the vectors.
        out_features: length of the output; None = in_channels.
        num_classes: number of classes, 0 = y is no class index.
        width: features per layer.
        layers: number of residual layers.
        fourier_features: number of rows of W; 0 = x alone.
        fourier_scale: standard deviation of W, in cycles per unit of x.
        noise_conditioned: whether the noise level is an input.
        condition_features: length of the vectors of an Embedding, 0 = y is no Embedding.
        further_inputs: numbers beside the noise level, such as the level where a jump ends; 0 = none.
    """

    fourier: Tensor
    inner_perturbations = (NoisyEmbedding,)

    def __init__(
        self,
        in_channels: int,
        out_features: int | None = None,
        num_classes: int = 0,
        width: int = 128,
        layers: int = 4,
        fourier_features: int = 32,
        fourier_scale: float = 0.5,
        noise_conditioned: bool = True,
        condition_features: int = 0,
        further_inputs: int = 0,
    ):
        super().__init__()
        if layers < 1 or width < 2 or fourier_features < 0:
            raise ValueError(
                "the MLP needs 1 layer, width 2 and 0 Fourier features at least, "
                f"got {layers=}, {width=}, {fourier_features=}"
            )
        self.num_classes, self.condition_features = num_classes, condition_features
        self.out_features = out_features or 0
        self.noise_conditioned, self.further_inputs = noise_conditioned, further_inputs
        self.embedding = ConditionEmbedding(
            width, num_classes, condition_features, noise_conditioned, further_inputs=further_inputs
        )
        self.register_buffer("fourier", fourier_scale * torch.randn(in_channels, fourier_features))
        self.linear_in = nn.Linear(in_channels + 2 * fourier_features, width)
        self.layers = nn.ModuleList(ResidualLayer(width, width) for _ in range(layers))
        self.residual_blocks = [1] * layers
        self.norm_out = nn.LayerNorm(width)
        self.linear_out = nn.Linear(width, in_channels if out_features is None else out_features)
        nn.init.zeros_(self.linear_out.weight)
        nn.init.zeros_(self.linear_out.bias)

    def forward(
        self, x: Tensor, log_snr: Tensor | None, y: Condition | None = None, perturbation: Perturbation | None = None
    ) -> Tensor:
        if x.ndim != 2:
            raise ValueError(
                "the MLP needs vectors, but the data are images; use backbone=unet in place of mlp, unet_levels in place of "
                "mlp_levels, unet_encoder, unet_joint or convnet in place of mlp_classifier"
            )
        x = x.to(self.linear_in.weight.dtype)
        angles = 2 * math.pi * x @ self.fourier
        h = self.linear_in(torch.cat([x, angles.cos(), angles.sin()], dim=1))
        embedding = functional.silu(self.embedding(h, log_snr, y, None, perturbation))
        for index, layer in enumerate(self.layers):
            output = layer(h, embedding)
            h = output if perturbation is None else perturbation.replace_output(index, h, output)
        return self.linear_out(functional.silu(self.norm_out(h)))
