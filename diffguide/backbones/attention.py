"""Scaled dot-product attention, shared by all networks."""

import math

from torch import Tensor
from torch.nn import functional

from .kernels import prefers_written_attention

__all__ = ["attention"]


def attention(q: Tensor, k: Tensor, v: Tensor, double_differentiable: bool) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, every argument [B, heads, N, d].

    Vaswani et al., "Attention Is All You Need", 2017, arXiv 1706.03762, eq. 1.

    Arguments:
        double_differentiable: whether second derivatives are needed. The fused kernels have none, so the
            [B, heads, N, N] weights are then computed explicitly.
    """
    if double_differentiable or prefers_written_attention(q, k):
        return (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1) @ v
    return functional.scaled_dot_product_attention(q, k, v)
