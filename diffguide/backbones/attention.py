"""Scaled dot-product attention, shared by all networks."""

import math

from torch import Tensor
from torch.nn import functional

from .kernels import prefers_written_attention

__all__ = ["attention"]


def attention(q: Tensor, k: Tensor, v: Tensor, double_differentiable: bool, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, with q [B, heads, N, d], k and v [B, heads, M, d].

    Vaswani et al., "Attention Is All You Need", 2017, arXiv 1706.03762, eq. 1.

    Arguments:
        double_differentiable: whether second derivatives are needed. The fused kernels have none, so the
            [B, heads, N, M] weights are then computed explicitly.
        mask: [B, M] bool, True = attended to, at least one in a row; None = all.
    """
    allowed = None if mask is None else mask[:, None, None]
    if double_differentiable or prefers_written_attention(q, k):
        logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        return (logits if allowed is None else logits.masked_fill(~allowed, -math.inf)).softmax(-1) @ v
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
