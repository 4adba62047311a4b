"""Perturbations that make a trained network worse, in some layers and in some rows.

A network called with a perturbation passes its intermediate values and the index of the layer to the methods of the
perturbation, and continues with the results.
"""

import copy
import math
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["BlurredQueries", "IdentityAttention", "Perturbation", "SkippedBlocks", "SoftIdentityAttention"]


class Perturbation:
    """Base of the perturbations. It changes nothing.

    Arguments:
        layers: indices of the layers to change, counted in the order of computation.

    Attributes:
        rows: [B] bool, the rows of a batch to change.
    """

    rows: Tensor

    def __init__(self, layers: Sequence[int]):
        self.layers = tuple(layers)

    def for_rows(self, rows: Tensor) -> Self:
        """A copy for these rows, [B] bool."""
        fresh = copy.copy(self)
        fresh.rows = rows
        return fresh

    def replace_rows(self, old: Tensor, new: Tensor) -> Tensor:
        """`new` in the rows to change, `old` in the others; both [B, ...]."""
        return torch.where(self.rows.reshape(-1, *[1] * (old.ndim - 1)), new, old)

    def replace_noise_embedding(self, embedding: Tensor) -> Tensor:
        """The vector of the noise level in place of `embedding` [B, F], before that of the condition is added."""
        return embedding

    def replace_input(self, index: int, x: Tensor, channels: int) -> Tensor:
        """The input of the transformer block of attention layer `index` in place of x.

        Arguments:
            channels: the axis of the features of x; the others after the first are the tokens.
        """
        return x

    def replace_queries(self, index: int, q: Tensor, grid: tuple[int, int]) -> Tensor:
        """The queries of attention layer `index` in place of q [B, heads, N, d], N = the pixels of a grid, row by row."""
        return q

    def replace_attention(self, index: int, v: Tensor, h: Tensor) -> Tensor:
        """The output of attention layer `index` in place of h = softmax(q k^T / sqrt(d)) v, all [B, heads, N, d]."""
        return h

    def replace_output(self, index: int, skip: Tensor, h: Tensor) -> Tensor:
        """The output of block `index` in place of h; `skip` is the output of its skip connection alone."""
        return h


class IdentityAttention(Perturbation):
    """The attention map becomes the identity: the output is v in place of softmax(q k^T / sqrt(d)) v.

    Ahn et al., "Self-Rectifying Diffusion Sampling with Perturbed-Attention Guidance", 2024, arXiv 2403.17377, section 4.
    """

    def replace_attention(self, index: int, v: Tensor, h: Tensor) -> Tensor:
        return self.replace_rows(h, v) if index in self.layers else h


class SoftIdentityAttention(IdentityAttention):
    """The attention map A becomes (1 - u) A + u I: the output is (1 - u) A v + u v.

    Ahn et al., "Where and How to Perturb: On the Design of Perturbation Guidance in Diffusion and Flow Models", 2025, arXiv
    2506.10978, eq. 7.

    Arguments:
        layers: as in `Perturbation`.
        share: u, in [0, 1]; 0 = the network as it is, 1 = `IdentityAttention`.
    """

    def __init__(self, layers: Sequence[int], share: float):
        super().__init__(layers)
        self.share = share

    def replace_attention(self, index: int, v: Tensor, h: Tensor) -> Tensor:
        return super().replace_attention(index, (1 - self.share) * h + self.share * v, h)


class BlurredQueries(Perturbation):
    """Queries are blurred by a Gaussian over the grid of pixels.

    Hong, "Smoothed Energy Guidance", 2024, arXiv 2408.00760. As in its code, the kernel is truncated at three standard
    deviations and at the side of the grid (plus one if even), and the grid is mirrored at its borders.

    Arguments:
        layers: as in `Perturbation`.
        blur: standard deviation in pixels of the grid, at least 0; inf = the mean of all queries.
    """

    def __init__(self, layers: Sequence[int], blur: float):
        super().__init__(layers)
        self.blur = blur

    def replace_queries(self, index: int, q: Tensor, grid: tuple[int, int]) -> Tensor:
        if index not in self.layers:
            return q
        rows, columns = (blur_matrix(side, self.blur, q) for side in grid)
        blurred = columns @ q.unflatten(2, grid)  # [B, heads, rows, columns, d]
        blurred = (rows @ blurred.transpose(2, 3)).transpose(2, 3)
        return self.replace_rows(q, blurred.flatten(2, 3))


def blur_matrix(side: int, blur: float, like: Tensor) -> Tensor:
    """[side, side]: the blur along one axis as a matrix, rows of sum 1, on the device and in the dtype of `like`."""
    exact = like.new_empty(0, dtype=torch.promote_types(like.dtype, torch.float32))
    if blur == math.inf:
        return exact.new_full((side, side), 1 / side).to(like.dtype)
    length = math.ceil(6 * blur) + 1 - math.ceil(6 * blur) % 2
    half = min(length, side + 1 - side % 2) // 2
    distance = torch.arange(-half, half + 1, dtype=exact.dtype, device=exact.device)
    kernel = torch.exp(-((distance / max(blur, 1e-9)) ** 2) / 2)
    identity = torch.eye(side, dtype=exact.dtype, device=exact.device)
    mirrored = functional.pad(identity[None], (half, half), mode="reflect")[0]
    return (mirrored.unfold(1, 2 * half + 1, 1) @ (kernel / kernel.sum())).T.to(like.dtype)


class SkippedBlocks(Perturbation):
    """Blocks are skipped: only their skip connections remain.

    Hyung et al., "Spatiotemporal Skip Guidance for Enhanced Video Diffusion Sampling", 2024, arXiv 2411.18664: residual skip.
    A skip connection is the identity, or in the U-Net a linear map or a resampling if width or resolution change.
    """

    def replace_output(self, index: int, skip: Tensor, h: Tensor) -> Tensor:
        return self.replace_rows(h, skip) if index in self.layers else h
