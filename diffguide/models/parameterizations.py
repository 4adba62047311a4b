"""Parameterizations of a network's output F: closed-form coefficients that turn F into x_0 and eps.

For x_t = alpha x_0 + sigma eps every parameterization has seven coefficients per noise level:

    regression target   F* = p x_0 + q eps
    clean data          x0_hat  = c_skip x_t + c_out F
    noise               eps_hat = e_skip x_t + e_out F
    network input       c_in x_t

No coefficient is computed from another by division, so none loses digits at small alpha or sigma. For x_t divided by its
scale sqrt(alpha^2 + sigma^2) they depend on the log-SNR alone: a trained network is valid under every normalisation.
"""

from typing import NamedTuple

from torch import Tensor, float32, float64, ones_like, promote_types, zeros_like

from ..runtime.ranges import check_range

__all__ = ["Rows", "at_least_float32", "Parameterization", "X0", "Eps", "Score", "V", "Flow", "EDM"]


def at_least_float32(x: Tensor) -> Tensor:
    """x in its own dtype, or in float32 if that is less precise."""
    return x if x.dtype in (float32, float64) else x.to(promote_types(x.dtype, float32))


class Rows(NamedTuple):
    """The seven coefficients at one noise level or at a batch of levels, each in the shape of alpha."""

    p: Tensor
    q: Tensor
    c_skip: Tensor
    c_out: Tensor
    e_skip: Tensor
    e_out: Tensor
    c_in: Tensor

    def to(self, like: Tensor) -> "Rows":
        """The rows in the dtype and on the device of `like`; 0-d rows stay on the CPU, since they mix with every device."""
        return self if self.p.ndim == 0 else Rows(*(row.to(like) for row in self))


class Parameterization:
    """Base of the parameterizations."""

    needs_signal = False  # True where x0_hat divides by alpha: impossible at zero terminal SNR

    def rows(self, alpha: Tensor, sigma: Tensor) -> Rows:
        """The coefficients for x_t = alpha x_0 + sigma eps; alpha and sigma of one shape, float64."""
        raise NotImplementedError


class X0(Parameterization):
    """F = x_0. Ho et al. 2020, arXiv 2006.11239; Salimans & Ho 2022, arXiv 2202.00512, section 4."""

    def rows(self, alpha: Tensor, sigma: Tensor) -> Rows:
        one, zero = ones_like(alpha), zeros_like(alpha)
        return Rows(one, zero, zero, one, 1 / sigma, -alpha / sigma, (alpha**2 + sigma**2) ** -0.5)


class Eps(Parameterization):
    """F = eps. Ho et al. 2020, arXiv 2006.11239, eq. 14."""

    needs_signal = True

    def rows(self, alpha: Tensor, sigma: Tensor) -> Rows:
        one, zero = ones_like(alpha), zeros_like(alpha)
        return Rows(zero, one, 1 / alpha, -sigma / alpha, zero, one, (alpha**2 + sigma**2) ** -0.5)


class Score(Parameterization):
    """F = -sqrt(alpha^2 + sigma^2) eps / sigma: the score grad log p_t of x_t / sqrt(alpha^2 + sigma^2).

    Song et al. 2021, arXiv 2011.13456, eq. 7, where alpha^2 + sigma^2 = 1. Scaling x_t keeps a trained network valid under
    every normalisation. The error of F grows as 1 / sigma: weight it by sigma^2.
    """

    needs_signal = True

    def rows(self, alpha: Tensor, sigma: Tensor) -> Rows:
        zero, scale = zeros_like(alpha), (alpha**2 + sigma**2) ** 0.5
        return Rows(zero, -scale / sigma, 1 / alpha, sigma**2 / (alpha * scale), zero, -sigma / scale, 1 / scale)


class V(Parameterization):
    """F = (alpha eps - sigma x_0) / sqrt(alpha^2 + sigma^2). Salimans & Ho 2022, arXiv 2202.00512, appendix D."""

    def rows(self, alpha: Tensor, sigma: Tensor) -> Rows:
        square = alpha**2 + sigma**2
        scale = square**0.5
        a, s = alpha / scale, sigma / scale
        return Rows(-s, a, alpha / square, -s, sigma / square, a, 1 / scale)


class Flow(Parameterization):
    """F = eps - x_0, the velocity of the straight path from data to noise. Lipman et al. 2023, arXiv 2210.02747, eq. 23."""

    def rows(self, alpha: Tensor, sigma: Tensor) -> Rows:
        one, total = ones_like(alpha), alpha + sigma
        return Rows(-one, one, 1 / total, -sigma / total, 1 / total, alpha / total, 1 / total)


class EDM(Parameterization):
    """F = (sigma x_0 / d - alpha d eps) / sqrt(sigma^2 + alpha^2 d^2): input and target of unit variance.

    Karras et al. 2022, arXiv 2206.00364, table 1 and appendix B.6, written for any alpha.

    Arguments:
        sigma_data: standard deviation d of the data, positive.
    """

    def __init__(self, sigma_data: float = 0.5):
        self.sigma_data = check_range("sigma_data", sigma_data, "(0, inf)")

    def rows(self, alpha: Tensor, sigma: Tensor) -> Rows:
        d = self.sigma_data
        square = sigma**2 + (alpha * d) ** 2
        scale = square**0.5
        noise_row = -alpha * d / scale
        c_skip, e_skip = alpha * d**2 / square, sigma / square
        return Rows(sigma / (d * scale), noise_row, c_skip, sigma * d / scale, e_skip, noise_row, 1 / scale)
