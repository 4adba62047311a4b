"""Layers that are computed in another way in half precision on the CPU, where some of torch's kernels are slow.

Everything else (float32, float64, a GPU, a compiled network) uses torch's functions, and its results do not depend on this
module. The limits were measured with torch 2.14 on one core with AVX-512, in bfloat16, forward and backward together:

- attention written out is 2 times as fast as torch's at 256 tokens, with and without gradients, and 8 times as fast as its
  fused kernel at 16. It keeps B heads N^2 weights for the backward pass, so longer sequences use the fused kernel.
- group normalisation of a tensor with the channels last takes 4 to 12 times as long by torch's kernel as that of a contiguous
  tensor, and 2 to 6 times as long with the copies to that format and back.
- the modulation of a normalised image costs 3 normalisations; as the affine map of B C channels of one image it is free.
- dropout by 8 random bits per element is 5 times as fast as torch's, which draws a double for each.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Dropout", "GroupNorm", "prefers_written_attention"]

MAX_TOKENS = 256  # of attention that is written out
LANE_VALUES = 256  # values of 8 random bits
MIN_DROPPED = 8  # of these values: with fewer, rounding would change the probability by more than 1/16


def is_half_on_cpu(x: Tensor) -> bool:
    """Whether this module has kernels of its own for a tensor."""
    is_half = x.dtype in (torch.bfloat16, torch.float16)
    return is_half and x.device.type == "cpu" and x.numel() > 0 and not torch.compiler.is_compiling()


def prefers_written_attention(q: Tensor, k: Tensor) -> bool:
    """Whether attention is faster without torch's kernel; q and k are [B, heads, N, d]."""
    return is_half_on_cpu(q) and max(q.shape[2], k.shape[2]) <= MAX_TOKENS


class Dropout(nn.Dropout):
    """In training, 0 with probability p and x / (1 - p) otherwise, independently for each element.

    In half precision on the CPU, p is rounded to a multiple of 1/256, and the division is by the rounded 1 - p, so that the
    mean is x. The masks are then other functions of torch's global generator than those of float32.
    """

    def forward(self, x: Tensor) -> Tensor:
        dropped = round(LANE_VALUES * self.p)
        if not self.training or not is_half_on_cpu(x) or not MIN_DROPPED <= dropped < LANE_VALUES:
            return super().forward(x)
        words = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
        mask = torch.empty_like(x, requires_grad=False)  # dense, with the strides of x
        flat = mask.as_strided((x.numel(),), (1,))
        torch.ge(words.view(torch.uint8)[: x.numel()], dropped, out=flat)  # without a tensor of booleans
        flat.mul_(LANE_VALUES / (LANE_VALUES - dropped))
        return x * mask


class GroupNorm(nn.GroupNorm):
    """h = (x - mean) / std weight + bias over groups of channels; then h (1 + scale) + shift.

    In half precision on the CPU, scale and shift are part of the affine map, which is then computed in float32.
    """

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """The result in the shape of x [B, C, H, W]; scale and shift [B, C], both or none."""
        if is_half_on_cpu(x):
            return self.normalise_half(x, scale, shift)
        h = super().forward(x)
        if scale is None or shift is None:
            return h
        return torch.addcmul(shift[:, :, None, None], h, 1 + scale[:, :, None, None])

    def normalise_half(self, x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
        batch, groups, weight, bias = len(x), self.num_groups, self.weight.float(), self.bias.float()
        h = x.contiguous()
        if scale is not None and shift is not None:  # as one image, whose channels have affine maps of their own
            factor = 1 + scale.float()
            weight, bias = (weight * factor).flatten(), torch.addcmul(shift.float(), bias, factor).flatten()
            h, groups = h.flatten(0, 1)[None], batch * groups
        h = functional.group_norm(h, groups, weight, bias, self.eps).view(x.shape)
        return h if x.is_contiguous() else h.contiguous(memory_format=torch.channels_last)
