"""Discrete betas as continuous curves: abar_k = prod_{i <= k} (1 - beta_i) at t = k / T, log abar linear between them."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ..runtime.ranges import check_range, check_whole
from .base import TruncatedCurve, default_end

__all__ = ["Linear", "ScaledLinear", "SigmoidBeta", "SquaredCosine", "TrainedBetas"]


class DiscreteBetas(TruncatedCurve):
    """The curve through the knots of betas. Its log-SNR at t = 0 is log_snr_max, since abar_0 = 1 would make it infinite.

    Arguments:
        log_snr_max: log-SNR at t = 0, above that of the first step; `inf` means exact data, as in diffusers.
        log_snr_min: log-SNR at t = 1; None = that of the last beta.
        beta_start, beta_end: first and last beta, in (0, 1).
        steps: number of betas T, at least 2.

    A subclass defines `betas`.
    """

    knots: Tensor  # log abar at t = k / T, k = 0..T, float64

    def __init__(
        self,
        log_snr_max: float = 12.0,
        log_snr_min: float | None = None,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        steps: int = 1000,
    ):
        if not 0 < beta_start <= beta_end < 1:
            raise ValueError(f"the betas must satisfy 0 < beta_start <= beta_end < 1, got {beta_start} and {beta_end}")
        self.connect(self.betas(beta_start, beta_end, check_whole("steps", steps, 2)), log_snr_max, log_snr_min)

    def connect(self, betas: Tensor, log_snr_max: float, log_snr_min: float | None) -> None:
        """Builds the curve through beta_1 .. beta_T, float64."""
        log_abar = torch.cumsum(torch.log1p(-betas), 0)
        first, last = (float(k - torch.log(-torch.expm1(k))) for k in (log_abar[0], log_abar[-1]))
        if not log_snr_max > first:
            raise ValueError(f"log_snr_max must be above the log-SNR of the first step, {first:.4g}, got {log_snr_max}")
        end = logsigmoid(torch.tensor([log_snr_max], dtype=torch.float64, device="cpu"))
        self.__dict__["knots"] = torch.cat([end, log_abar])  # a plain attribute, which a dtype cast does not change
        super().__init__(log_snr_max, default_end(log_snr_min, last, "betas"))

    @property
    def finest_log_snr(self) -> float:
        if self.log_snr_max < math.inf:
            return self.log_snr_max
        first = self.knots[1]
        return float(first - torch.log(-torch.expm1(first)))

    def betas(self, start: float, end: float, steps: int) -> Tensor:
        """beta_1 .. beta_T in float64."""
        raise NotImplementedError

    def segment(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """log abar at u, and its slope there per unit of u."""
        knots = self.knots.to(u.device)
        position = u * (len(knots) - 1)
        k = position.detach().floor().clamp(0, len(knots) - 2).long()
        rise = knots[k + 1] - knots[k]
        return knots[k] + (position - k) * rise, rise * (len(knots) - 1)

    def curve(self, u: Tensor) -> Tensor:
        log_abar = self.segment(u)[0]
        return log_abar - torch.log(-torch.expm1(log_abar))

    def slope(self, u: Tensor) -> Tensor:
        log_abar, slope = self.segment(u)
        return slope / -torch.expm1(log_abar)

    def inverse_curve(self, log_snr: Tensor) -> Tensor:
        knots, log_abar = self.knots.to(log_snr.device), logsigmoid(log_snr)
        k = (torch.searchsorted(-knots, -log_abar.detach().contiguous()) - 1).clamp(0, len(knots) - 2)
        return (k + (log_abar - knots[k]) / (knots[k + 1] - knots[k])) / (len(knots) - 1)


class Linear(DiscreteBetas):
    """DDPM: betas linear from 1e-4 to 0.02. Ho, Jain, Abbeel, 2020, arXiv 2006.11239, section 4. log_snr(1) = -10.1."""

    def betas(self, start: float, end: float, steps: int) -> Tensor:
        return torch.linspace(start, end, steps, dtype=torch.float64, device="cpu")


class ScaledLinear(DiscreteBetas):
    """Latent diffusion and Stable Diffusion: sqrt(beta) linear from sqrt(0.00085) to sqrt(0.012). log_snr(1) = -5.4.

    Rombach, Blattmann, Lorenz, Esser, Ommer, "High-Resolution Image Synthesis with Latent Diffusion Models", 2022,
    arXiv 2112.10752, in its code.
    """

    def __init__(
        self,
        log_snr_max: float = 9.0,
        log_snr_min: float | None = None,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        steps: int = 1000,
    ):
        super().__init__(log_snr_max, log_snr_min, beta_start, beta_end, steps)

    def betas(self, start: float, end: float, steps: int) -> Tensor:
        return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64, device="cpu").square()


class SigmoidBeta(DiscreteBetas):
    """beta_k = beta_start + (beta_end - beta_start) sigmoid(z_k), z linear from -6 to 6.

    Xu et al., "GeoDiff", 2022, arXiv 2203.02923, in its code (betas from 1e-7 to 2e-3, 5000 steps). Not the `Sigmoid`
    of Jabri et al., where abar follows a sigmoid.
    """

    def betas(self, start: float, end: float, steps: int) -> Tensor:
        return start + (end - start) * torch.linspace(-6, 6, steps, dtype=torch.float64, device="cpu").sigmoid()


class TrainedBetas(DiscreteBetas):
    """Given betas, such as the `trained_betas` of a scheduler of diffusers.

    Arguments:
        log_snr_max: log-SNR at t = 0, above that of the first step; `inf` means exact data.
        log_snr_min: log-SNR at t = 1; None = that of the last beta.
        betas: beta_1 .. beta_T, at least two numbers in (0, 1).

    Raises:
        ValueError: fewer than two betas, or a number out of range; an end outside the range of the betas.
    """

    def __init__(
        self, log_snr_max: float = math.inf, log_snr_min: float | None = None, betas: Sequence[float] = (1e-4, 0.02)
    ):
        given = torch.tensor(list(betas), dtype=torch.float64, device="cpu")
        if len(given) < 2 or not bool(((given > 0) & (given < 1)).all()):
            raise ValueError(f"betas must be at least two numbers in (0, 1), got {len(given)}: {list(betas)[:4]}")
        self.connect(given, log_snr_max, log_snr_min)


class SquaredCosine(DiscreteBetas):
    """beta_k = min(1 - f(k / T) / f((k - 1) / T), beta_max), f(u) = cos^2(pi / 2 (u + offset) / (1 + offset)).

    Nichol & Dhariwal, "Improved Denoising Diffusion Probabilistic Models", 2021, arXiv 2102.09672, eq. 17, with its clipped
    betas: diffusers' squaredcos_cap_v2, elementwise. `Cosine` is its continuous form, with finite ends in place of offset and
    clipping: for t in [0.01, 0.99] the two log-SNRs differ by up to 0.72.

    Arguments:
        log_snr_max: log-SNR at t = 0, above that of the first step (10.09).
        log_snr_min: log-SNR at t = 1; None = that of the last beta, -19.83.
        steps: number of betas T, at least 2.
        offset: s of the paper, at least 0.
        beta_max: largest beta, in (0, 1).

    Raises:
        ValueError: a number out of range; an end outside the range of the betas.
    """

    def __init__(
        self,
        log_snr_max: float = 12.0,
        log_snr_min: float | None = None,
        steps: int = 1000,
        offset: float = 0.008,
        beta_max: float = 0.999,
    ):
        check_range("offset", offset, "[0, inf)")
        check_range("beta_max", beta_max, "(0, 1)")
        u = torch.linspace(0, 1, check_whole("steps", steps, 2) + 1, dtype=torch.float64, device="cpu")
        f = torch.cos(math.pi / 2 * (u + offset) / (1 + offset)) ** 2
        self.connect((1 - f[1:] / f[:-1]).clamp(max=beta_max), log_snr_max, log_snr_min)
