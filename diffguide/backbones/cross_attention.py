"""Attention of pixels or patches to the tokens of a condition."""

from torch import Tensor, nn

from .attention import attention
from .base import zero_init
from .conditioning import Context

__all__ = ["CrossAttention"]


class CrossAttention(nn.Module):
    """project(softmax(q k^T / sqrt(d)) v) with q from features [B, N, C], k and v from the normalised tokens of a condition.

    Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", 2022, arXiv 2112.10752, section 3.3; the
    tokens are normalised as in Saharia et al., "Imagen", 2022, arXiv 2205.11487, section 2.5. The projection starts at 0.

    Arguments:
        width: C.
        token_features: length of a token.
        heads: number of attention heads, divides the width.
        double_differentiable: whether second derivatives are needed.
    """

    def __init__(self, width: int, token_features: int, heads: int, double_differentiable: bool):
        super().__init__()
        self.heads, self.double_differentiable = heads, double_differentiable
        self.query = nn.Linear(width, width)
        self.norm = nn.LayerNorm(token_features)
        self.key_value = nn.Linear(token_features, 2 * width)
        self.projection = zero_init(nn.Linear(width, width))

    def forward(self, h: Tensor, context: Context) -> Tensor:
        assert context.tokens is not None
        tokens = self.norm(context.tokens.to(h.dtype))
        q = self.query(h).unflatten(2, (self.heads, -1)).transpose(1, 2)  # [B, heads, N, d]
        k, v = self.key_value(tokens).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each [B, heads, L, d]
        h = attention(q, k, v, self.double_differentiable, context.mask)
        return self.projection(h.transpose(1, 2).flatten(2))
