"""A Gaussian fitted to a data set as a control variate: the error of its denoiser, and the mean error in closed form."""

import torch
from torch import Tensor

from ...runtime.ranges import check_range

__all__ = ["GaussianFit"]

MAX_FULL_COVARIANCE = 2048  # values of an example; above, the covariance is diagonal


class GaussianFit:
    """N(m, C) and the error of its exact denoiser for one example x with noise eps at g = exp(log_snr), in eigenvectors of C:

        eps_i - eps_hat_i = (g l_i eps_i - sqrt(g) d_i) / (1 + g l_i),    d = U^T (x - m),  l the eigenvalues of C,
        E (eps_i - eps_hat_i)^2 = g (g l_i^2 + d_i^2) / (1 + g l_i)^2,

    for every normalisation of the schedule. The integrals of both over log_snr are closed forms.

    Guo, Shamai, Verdu, "Mutual information and MMSE in Gaussian channels", 2005, eq. 13, with x held fixed.

    Arguments:
        mean: [D].
        values: l, positive, [D].
        vectors: U, [D, D], a column per eigenvalue; None = the coordinates themselves.
    """

    def __init__(self, mean: Tensor, values: Tensor, vectors: Tensor | None):
        self.mean, self.values, self.vectors = mean, values, vectors

    @classmethod
    def to_data(cls, x: Tensor, floor: float) -> "GaussianFit":
        """Fits mean and covariance to x [N, ...]; a diagonal covariance above 2048 values per example.

        Arguments:
            floor: variance added in every direction, in units of x squared, positive; without it an example outside the
                span of the data has an infinite error.

        Raises:
            ValueError: a floor that is not positive.
        """
        floor = check_range("floor", floor, "(0, inf)")
        x = x.flatten(1).double()
        mean = x.mean(0)
        if x.shape[1] > MAX_FULL_COVARIANCE:
            return cls(mean, x.var(0, correction=0) + floor, None)
        x = x - mean
        values, vectors = torch.linalg.eigh(x.mT @ x / len(x))
        return cls(mean, values.clamp(min=0) + floor, vectors)

    def to(self, device: torch.device | str) -> "GaussianFit":
        """Returns a copy on another device."""
        vectors = None if self.vectors is None else self.vectors.to(device)
        return GaussianFit(self.mean.to(device), self.values.to(device), vectors)

    def rotate(self, x: Tensor) -> Tensor:
        return x if self.vectors is None else x @ self.vectors

    def error(self, x: Tensor, eps: Tensor, log_snr: Tensor) -> Tensor:
        """||eps - eps_hat||^2, [B] float64, at x_t = alpha x + sigma eps; x, eps [B, ...], log_snr [B]."""
        d, e = self.rotate(x.flatten(1).double() - self.mean), self.rotate(eps.flatten(1).double())
        g = log_snr.exp()[:, None]
        return ((g * self.values * e - g.sqrt() * d) / (1 + g * self.values)).square().sum(1)

    def mean_error(self, x: Tensor, log_snr: Tensor) -> Tensor:
        """E_eps ||eps - eps_hat||^2, [B] float64, at one log_snr, 0-d."""
        g, d = log_snr.exp(), self.rotate(x.flatten(1).double() - self.mean)
        return (g * (g * self.values**2 + d**2) / (1 + g * self.values) ** 2).sum(1)

    def integral(self, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """The integral of `mean_error` over log_snr from low to high, 0-d both, [B] float64:

        sum_i  log((1 + g_1 l_i) / (1 + g_0 l_i)) + (d_i^2 - l_i) (g_1 - g_0) / ((1 + g_0 l_i) (1 + g_1 l_i)).
        """
        g_0, g_1, d = low.exp(), high.exp(), self.rotate(x.flatten(1).double() - self.mean)
        below, above = 1 + g_0 * self.values, 1 + g_1 * self.values
        return ((above / below).log() + (d**2 - self.values) * (g_1 - g_0) / (below * above)).sum(1)
