"""Langevin samplers: a predictor with Langevin corrections, and annealed Langevin dynamics."""

import torch
from torch import Tensor

from ..backbones.conditions import Condition
from ..models.protocols import Denoiser
from ..runtime.ranges import check_range, check_whole
from .ancestral import DDPM
from .base import CompositeSampler, Memory, Sampler
from .grids import UNIFORM_LOG_SNR, Grid
from .heun import CHURN_DRAW
from .noise import StepNoise
from .step_limits import MAX_FALL

__all__ = ["AnnealedLangevin", "LangevinPC", "langevin"]

MAX_CORRECTIONS = 10**4


def langevin(denoiser: Denoiser, x: Tensor, t: Tensor, y: Condition | None, z: Tensor, step: float) -> Tensor:
    """x + e score + sqrt(2 e) z with e = step sigma_t^2, in fields: alpha x_0 + sigma ((1 - step) eps + sqrt(2 step) z)."""
    alpha, sigma = denoiser.schedule.alpha_sigma(t)
    prediction = denoiser(x, t, y)
    return alpha * prediction.x_0 + (sigma * (1 - step)) * prediction.eps + (sigma * (2 * step) ** 0.5) * z


class LangevinPC(CompositeSampler):
    """Predictor-corrector sampling: a step of another sampler, then Langevin steps at the level that it reaches.

        x <- x + e score + sqrt(2 e) z,  e = 2 (snr sigma)^2

    Song et al., "Score-Based Generative Modeling through SDEs", 2021, arXiv 2011.13456, algorithms 2 to 5. Their step
    size depends on the norms of score and noise over the batch; here |score| is replaced by its expectation
    |z| / sigma, so that a sample does not depend on its batch. Their predictors are ddpm (ancestral sampling; variance 0
    for VE, 1 for VP) and euler_maruyama with diffusion=forward (reverse diffusion).

    Arguments:
        inner: the predictor, with its steps and grid; None = `DDPM()`.
        corrections: Langevin steps per level, 1 to 10^4.
        snr: of a Langevin step, in (0, 1); 0.16 in the paper for VE, 0.17 for VP.

    Raises:
        ValueError: a predictor with Langevin steps of its own.
    """

    def __init__(self, inner: Sampler | None = None, corrections: int = 1, snr: float = 0.16):
        inner = DDPM() if inner is None else inner
        super().__init__(inner)
        if isinstance(inner, LangevinPC | AnnealedLangevin):  # both would draw the same noise at the same level
            raise ValueError(
                f"inner must be a sampler without Langevin steps, got {type(inner).__name__}: set its corrections instead"
            )
        self.snr = check_range("snr", snr, "(0, 1)")
        self.corrections = check_whole("corrections", corrections, 1, MAX_CORRECTIONS)

    def step(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, y: Condition | None, noise: StepNoise, memory: Memory
    ) -> Tensor:
        x = self.inner(denoiser, x, torch.stack([t, s]), y, noise, memory=memory)
        if denoiser.schedule.alpha_sigma(s)[1] > 0:
            for draw in range(CHURN_DRAW + 1, CHURN_DRAW + 1 + self.corrections):
                x = langevin(denoiser, x, s, y, noise.normal(s, draw), 2 * self.snr**2)
        return x


class AnnealedLangevin(Sampler):
    """Langevin steps at every noise level; x / alpha is kept from one level to the next.

        x <- x + e score + sqrt(2 e) z,  e = step_size sigma^2

    Song & Ermon, "Generative Modeling by Estimating Gradients of the Data Distribution", 2019, arXiv 1907.05600,
    algorithm 1, whose alpha_i / 2 is e: step_size = epsilon / (2 sigma_L^2), 0.1 in the paper. A wide step, from alpha = 0
    or to sigma = 0 for example, is DDIM's (`step_limits`).

    Arguments:
        steps, grid: as for every sampler; the paper's levels are a geometric sequence (grid=uniform_log_snr).
        corrections: Langevin steps per level, 1 to 10^4; 100 in the paper.
        step_size: e / sigma^2, in (0, 1); None = technique 4 of Song & Ermon 2020, arXiv 2006.09011: what best
            turns noise of the previous level into noise of this level.
    """

    order = 1
    stochastic = True
    max_fall = MAX_FALL

    def __init__(
        self, steps: int = 50, grid: Grid = UNIFORM_LOG_SNR, corrections: int = 5, step_size: float | None = None
    ):
        super().__init__(steps, grid)
        self.corrections = check_whole("corrections", corrections, 1, MAX_CORRECTIONS)
        self.step_size = None if step_size is None else check_range("step_size", step_size, "(0, 1)")

    def step(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, y: Condition | None, noise: StepNoise, memory: Memory
    ) -> Tensor:
        schedule = denoiser.schedule
        x = (schedule.alpha_sigma(s)[0] / schedule.alpha_sigma(t)[0]) * x
        size = self.step_size
        if size is None:
            size = select_step_size(float(schedule.noise_level(t) / schedule.noise_level(s)), self.corrections)
        for draw in range(CHURN_DRAW + 1, CHURN_DRAW + 1 + self.corrections):
            x = langevin(denoiser, x, s, y, noise.normal(s, draw), size)
        return x


def select_step_size(ratio: float, corrections: int) -> float:
    """The step size in [1e-5, 1) for which noise of `ratio` times the level ends nearest to the level.

    (1 - r)^(2 T) (ratio^2 - u) + u = 1, u = 2 / (2 - r) the variance of the chain's own law (arXiv 2006.09011, eq. 7).
    """
    r = torch.logspace(-5, 0, 5001, dtype=torch.float64)[:-1]
    u = 2 / (2 - r)
    return float(r[((1 - r) ** (2 * corrections) * (ratio**2 - u) + u - 1).abs().argmin()])
