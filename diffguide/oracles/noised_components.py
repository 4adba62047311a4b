"""Many Gaussians N(alpha mu_k, C_k) in few dimensions at one noise level, in few passes over points times components.

In the eigenvectors V_k of C_k = alpha^2 S_k + sigma^2 I, with its eigenvalues c_ek,

    log N(x; alpha mu_k, C_k) = log_peak_k - sum_e w_ek^2,    w_k = diag(2 c_k)^(-1/2) V_k^T (x - alpha mu_k),

where w is one matrix product. The sums over k of r_k C_k^-1 (x - alpha mu_k) and r_k m_k are linear in x given r: another
matrix product with r, instead of passes over vectors per component. Both round as the differences x - alpha mu_k do.
"""

import math
from functools import cached_property

import torch
from torch import Tensor

from ..schedules.tabulated import is_transformed

__all__ = ["NoisedComponents"]


class NoisedComponents:
    """Constants of K components at a noise level, and the arrays that all blocks of points use in turn.

    New arrays would cost more than the arithmetic on them, since the operating system has to supply their pages.

    Arguments:
        means: mu_k, [K, D].
        vectors, values: eigenvectors [D, E, K] and eigenvalues [E, K] of S_k.
        alpha, sigma: of the level, [1, 1].
    """

    def __init__(self, means: Tensor, vectors: Tensor, values: Tensor, alpha: Tensor, sigma: Tensor):
        self.means, self.vectors, self.values, self.alpha, self.sigma = means, vectors, values, alpha, sigma
        self.variances = alpha**2 * values + sigma**2  # c, [E, K]
        scale = (2 * self.variances).rsqrt()
        self.projection = vectors * scale  # [D, E, K]
        self.shift = -alpha * (self.projection * means.mT[:, None]).sum(0)  # [E, K]
        self.log_peak = scale.log().sum(0) - 0.5 * len(scale) * math.log(math.pi)  # [K]
        self.start: Tensor | None = None  # log_prior + log_peak
        self.arrays: dict[str, Tensor] = {}

    @cached_property
    def readout(self) -> Tensor:
        """Factors of r_k [2 D D + 2 D, K]: of C_k^-1 and alpha S_k C_k^-1, then of the terms without x."""
        inverse = 1 / self.variances
        gains = torch.stack([inverse, self.alpha * self.values * inverse])
        matrices = (gains[:, None, None] * (self.vectors[:, None] * self.vectors)).sum(3)  # [2, D, D, K]
        score, mean = -self.alpha * (matrices * self.means.mT).sum(2)
        return torch.cat([matrices.flatten(0, 2), score, self.means.mT + mean])

    def array(self, name: str, x: Tensor, width: int) -> Tensor | None:
        """An array [b, width] for `out=`, which the next block overwrites; None where autograd keeps the results."""
        if torch.is_grad_enabled() and any(part.requires_grad for part in (x, self.alpha, self.sigma)):
            return None
        if is_transformed():  # torch.func, whose tensors do not say that they have gradients
            return None
        array = self.arrays.get(name)
        if array is None or len(array) < len(x):
            array = self.arrays[name] = x.new_empty(len(x), width)
        return array[: len(x)]

    def log_joint(self, x: Tensor, log_prior: Tensor, y: Tensor | None) -> Tensor:
        """log_prior + log N(x; alpha mu_k, C_k), [b, K], for points x [b, D].

        Arguments:
            log_prior: log pi_k [K] for y None; else log pi(k | y), [classes + 1, K], the last row for y = -1.
        """
        out = self.array("w", x, self.shift.numel())
        w = torch.addmm(self.shift.flatten(), x, self.projection.flatten(1), out=out).unflatten(1, self.shift.shape)
        out = self.array("log_joint", x, len(self.means))
        if self.start is None or self.start.shape != log_prior.shape:
            self.start = log_prior + self.log_peak
        result = self.start if y is None else torch.index_select(self.start, 0, y % len(self.start), out=out)
        for coordinate in w.unbind(1):
            result = torch.addcmul(result, coordinate, coordinate, value=-1, out=out)
        return result

    def moments(self, x: Tensor, log_joint: Tensor) -> tuple[Tensor, Tensor]:
        """E[x_0 | x_t = x] and -grad log p_t(x), each [b, D]."""
        r = torch.softmax(log_joint, 1, out=self.array("r", x, len(self.means)))
        dimension = x.shape[1]
        matrices, rest = (r @ self.readout.mT).tensor_split([2 * dimension**2], dim=1)
        products = (matrices.unflatten(1, (2 * dimension, dimension)) @ x[..., None])[..., 0]
        negative_score, x_0 = (products + rest).chunk(2, dim=1)
        return x_0, negative_score
