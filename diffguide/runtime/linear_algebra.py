"""Decompositions of a batch of matrices in which a matrix that is not finite affects no other.

LAPACK raises for the whole batch where one matrix holds nan or inf: one diverged sample would stop every other.
"""

import torch
from torch import Tensor

__all__ = ["leading_right_vector", "symmetric_root"]


def mask_nonfinite(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """The matrices [B, M, N] with zeros in place of those that are not finite, and 1 or nan for each, [B, 1]."""
    finite = matrices.isfinite().flatten(1).all(1)[:, None]
    mark = torch.where(finite, torch.ones_like(matrices[:, 0, :1]), torch.nan)
    return torch.where(finite[..., None], matrices, 0), mark


def leading_right_vector(matrices: Tensor) -> Tensor:
    """The right-singular vector of the largest singular value of each matrix [B, M, N]: [B, N], nan where it is not finite."""
    matrices, mark = mask_nonfinite(matrices)
    return torch.linalg.svd(matrices, full_matrices=False).Vh[:, 0] * mark


def symmetric_root(covariances: Tensor) -> Tensor:
    """R with R R^T = C for symmetric C [B, D, D] without negative eigenvalues, singular ones too; nan where C is not finite.

    By eigenvectors, not Cholesky: a law of single points has directions of no variance.
    """
    covariances, mark = mask_nonfinite(covariances)
    variances, axes = torch.linalg.eigh(covariances)
    return axes * (variances.clamp(min=0).sqrt() * mark)[:, None]
