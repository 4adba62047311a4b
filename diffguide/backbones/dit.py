"""The diffusion transformer: a vision transformer on patches with adaptive layer normalisation.

Peebles & Xie, "Scalable Diffusion Models with Transformers", 2022, arXiv 2212.09748, section 3 and figure 3.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..runtime.ranges import check_range
from .attention import attention
from .base import Backbone, ConditionEmbedding, nearest_sizes, zero_init
from .conditioning import Conditioning, Context, join_channels
from .conditions import Condition
from .cross_attention import CrossAttention
from .fourier import FourierFeatures
from .kernels import Dropout
from .perturbations import Perturbation
from .random_perturbations import NoisyEmbedding, ShuffledTokens
from .timesteps import TimestepFeatures

__all__ = ["DiT"]


def position_encoding(side: int, width: int) -> Tensor:
    """[side^2, width] for the patches row by row: sines and cosines of the column, then of the row.

    Wavelengths from 2 pi to 2 pi * 10000 patches (arXiv 1706.03762, section 3.5, for each axis).
    """
    quarter = width // 4
    frequencies = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    angles = torch.arange(side, dtype=torch.float64)[:, None] * frequencies
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)
    column, row = axis[None].expand(side, -1, -1), axis[:, None].expand(-1, side, -1)
    return torch.cat([column, row], dim=2).flatten(0, 1).float()


def layer_norm(width: int) -> nn.LayerNorm:
    """Layer normalisation without parameters: scale and shift come from the conditioning vector."""
    return nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)


class DiTBlock(nn.Module):
    """h = h + gate attend(norm(h) (1 + scale) + shift), then the same with an MLP in place of attention.

    The six vectors are linear in the conditioning vector and start at 0: the block starts as the identity (adaLN-Zero).
    Between the two, patches attend to the tokens of a condition, if there are any (Chen et al., "PixArt-alpha", 2023, arXiv
    2310.00426, section 2.3).
    """

    def __init__(
        self,
        index: int,
        side: int,
        width: int,
        heads: int,
        mlp_ratio: float,
        dropout: float,
        double_differentiable: bool,
        token_features: int = 0,
    ):
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.index, self.grid = index, (side, side)
        self.heads, self.double_differentiable = heads, double_differentiable
        self.norm_attention, self.norm_mlp = layer_norm(width), layer_norm(width)
        self.dropout = Dropout(dropout)
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width))
        self.modulation = nn.Linear(width, 6 * width)
        self.norm_cross, self.cross = layer_norm(width), None
        if token_features:
            self.cross = CrossAttention(width, token_features, heads, double_differentiable)

    def attend(self, h: Tensor, perturbation: Perturbation | None) -> Tensor:
        q, k, v = self.qkv(h).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each [B, heads, N, d]
        if perturbation is not None:
            q = perturbation.replace_queries(self.index, q, self.grid)
        h = attention(q, k, v, self.double_differentiable)
        if perturbation is not None:
            h = perturbation.replace_attention(self.index, v, h)
        return self.projection(h.transpose(1, 2).flatten(2))

    def forward(
        self, x: Tensor, embedding: Tensor, perturbation: Perturbation | None = None, context: Context | None = None
    ) -> Tensor:
        if perturbation is not None:
            x = perturbation.replace_input(self.index, x, 2)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(embedding)[:, None].chunk(6, dim=2)
        attended = self.attend(self.norm_attention(x) * (1 + scale_a) + shift_a, perturbation)
        h = x + gate_a * self.dropout(attended)
        if self.cross is not None and context is not None:
            h = h + self.cross(self.norm_cross(h), context)
        h = h + gate_m * self.dropout(self.mlp(self.norm_mlp(h) * (1 + scale_m) + shift_m))
        return h if perturbation is None else perturbation.replace_output(self.index, x, h)


def check_dit(
    size: int | None, patch: int, width: int, depth: int, heads: int, mlp_ratio: float, dropout: float
) -> int:
    """`size`, pixels.

    Raises:
        ValueError: vectors (size None), an argument of `DiT` out of range, or a patch that does not divide the size.
    """
    if size is None:
        raise ValueError("the transformer needs images, but the data are vectors; use backbone=mlp")
    if patch < 1 or size % patch:
        advice = f"; use a size of {nearest_sizes(size, patch)}, or another patch" if patch > 0 else ""
        raise ValueError(f"patch must divide the side of the images, {size} pixels, got {patch}{advice}")
    if heads < 1 or width < 4 or width % 4 or width % heads:
        raise ValueError(f"width must be a multiple of 4 and of heads={heads}, got {width}")
    if depth < 1 or not mlp_ratio * width >= 1:
        raise ValueError(f"the transformer needs 1 block and an MLP of 1 feature at least, got {depth=}, {mlp_ratio=}")
    check_range("dropout", dropout, "[0, 1)")
    return size


class DiT(Backbone):
    """Transformer for images [B, C, H, W] of a fixed side, cut into square patches.

    Arguments:
        in_channels: channels of the images.
        out_features: channels of the output; None = in_channels.
        num_classes: number of classes, 0 = y is no class index.
        size: side of the images, pixels.
        patch: side of a patch, pixels; divides `size`. The cost grows as (size / patch)^4 for many patches.
        width: features per patch, a multiple of 4 and of `heads`.
        depth: number of blocks.
        heads: attention heads.
        mlp_ratio: hidden width of the blocks' MLPs in units of `width`.
        dropout: probability in [0, 1), on the output of each branch.
        noise_conditioned, condition_features, double_differentiable, checkpointing, fourier, noise_features,
            learned_variance: as for `UNet`.
        conditioning: as for `UNet`; every block attends to its tokens.
        learned_positions: whether the positions of the patches are learned vectors, from N(0, 1) (Dosovitskiy et al. 2020,
            arXiv 2010.11929, section 3.1), in place of sines and cosines. Of those only a few features differ in a small
            grid, so that a condition is slow to learn where its objects are.
    """

    positions: Tensor
    inner_perturbations = (ShuffledTokens, NoisyEmbedding)

    def __init__(
        self,
        in_channels: int,
        out_features: int | None = None,
        num_classes: int = 0,
        size: int | None = None,
        patch: int = 2,
        width: int = 128,
        depth: int = 6,
        heads: int = 4,
        mlp_ratio: float = 4.0,
        dropout: float = 0.1,
        noise_conditioned: bool = True,
        condition_features: int = 0,
        double_differentiable: bool = False,
        checkpointing: bool = False,
        fourier: Sequence[int] = (),
        noise_features: TimestepFeatures | None = None,
        learned_variance: bool = False,
        conditioning: Conditioning | None = None,
        learned_positions: bool = False,
        further_inputs: int = 0,
    ):
        super().__init__()
        size = check_dit(size, patch, width, depth, heads, mlp_ratio, dropout)
        self.num_classes, self.condition_features = num_classes, condition_features
        self.noise_conditioned, self.checkpointing = noise_conditioned, checkpointing
        self.further_inputs = further_inputs
        self.learned_variance = learned_variance
        self.out_channels = (in_channels if out_features is None else out_features) * (2 if learned_variance else 1)
        self.embedding = ConditionEmbedding(
            width, num_classes, condition_features, noise_conditioned, noise_features, conditioning, further_inputs
        )
        self.conditioning = conditioning
        self.features = FourierFeatures(fourier)
        self.patch = patch
        inputs = self.features.channels(in_channels) + (0 if conditioning is None else conditioning.channels)
        self.patches = nn.Conv2d(inputs, width, patch, stride=patch)
        side = size // patch
        if learned_positions:
            self.positions = nn.Parameter(torch.randn(side**2, width))
        else:
            self.register_buffer("positions", position_encoding(side, width), persistent=False)
        tokens = 0 if conditioning is None else conditioning.token_features
        blocks = [
            DiTBlock(index, side, width, heads, mlp_ratio, dropout, double_differentiable, tokens)
            for index in range(depth)
        ]
        self.blocks = nn.ModuleList(blocks)
        self.attention_layers = self.residual_blocks = [side] * depth
        self.norm_out = layer_norm(width)
        self.modulation_out = nn.Linear(width, 2 * width)
        self.linear_out = nn.Linear(width, patch * patch * self.out_channels)
        crossing = [block.cross.projection for block in blocks if block.cross is not None]
        self.initialise([*(block.modulation for block in blocks), self.modulation_out, self.linear_out, *crossing])

    def initialise(self, zero_layers: Sequence[nn.Module]) -> None:
        """Xavier uniform for linear layers and patches, 0 for `zero_layers`, so that every block starts as the identity.

        The conditioning vector keeps the initialisation of the other networks, with which a small transformer learns the
        digits faster than with the N(0, 0.02^2) of the paper's code, and so does the encoder of a condition.
        """
        embedding = set(self.embedding.modules()) | set(
            () if self.conditioning is None else self.conditioning.modules()
        )
        for layer in self.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d) and layer not in embedding:
                nn.init.xavier_uniform_(layer.weight.flatten(1))  # a view: the patches are a linear layer too
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        for layer in zero_layers:
            zero_init(layer)

    def forward(
        self, x: Tensor, log_snr: Tensor | None, y: Condition | None = None, perturbation: Perturbation | None = None
    ) -> Tensor:
        context = self.make_context(y, x)
        h = self.patches(join_channels(self.features(x), context).to(self.patches.weight.dtype))
        rows, columns = h.shape[2:]
        h = h.flatten(2).transpose(1, 2) + self.positions  # [B, rows * columns, width]
        embedding = functional.silu(self.embedding(h, log_snr, y, context, perturbation))
        for block in self.blocks:
            h = self.run(block, h, embedding, perturbation, context)
        shift, scale = self.modulation_out(embedding)[:, None].chunk(2, dim=2)
        h = self.linear_out(self.norm_out(h) * (1 + scale) + shift)
        side = self.patch
        h = h.unflatten(2, (side, side, self.out_channels)).unflatten(1, (rows, columns))
        return h.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)  # [B, C, rows * side, columns * side]
