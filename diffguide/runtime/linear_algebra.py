"""Decompositions of a batch of matrices in which a non-finite matrix does not affect the others.

LAPACK raises an error for the whole batch if one matrix has nan or inf, so that one diverged sample would stop all.
"""

import torch
from torch import Tensor

__all__ = ["leading_right_vector", "symmetric_root"]


def mask_nonfinite(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """(The matrices [B, M, N] with 0 in place of non-finite ones, 1 for each finite and nan for each other one [B, 1])."""
    finite = matrices.isfinite().flatten(1).all(1)[:, None]
    mark = torch.where(finite, torch.ones_like(matrices[:, 0, :1]), torch.nan)
    return torch.where(finite[..., None], matrices, 0), mark


def leading_right_vector(matrices: Tensor) -> Tensor:
    """The right-singular vector of the largest singular value of each matrix [B, M, N]: [B, N]; nan for non-finite ones."""
    matrices, mark = mask_nonfinite(matrices)
    return torch.linalg.svd(matrices, full_matrices=False).Vh[:, 0] * mark


def symmetric_root(covariances: Tensor) -> Tensor:
    """R with R R^T = C for symmetric positive semidefinite C [B, D, D]; nan for non-finite C.

    By eigenvectors, since Cholesky fails for singular matrices.
    """
    covariances, mark = mask_nonfinite(covariances)
    variances, axes = torch.linalg.eigh(covariances)
    return axes * (variances.clamp(min=0).sqrt() * mark)[:, None]
