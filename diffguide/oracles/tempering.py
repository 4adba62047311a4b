"""Samples of a density in many dimensions: sequential Monte Carlo from a law that can be sampled to one that cannot.

    log gamma_b = (1 - b) log q + b log p,    b from 0 to 1

Del Moral, Doucet, Jasra, "Sequential Monte Carlo samplers", 2006, section 3.3.2.3, with steps of b by the effective sample
size, and moves by Metropolis-adjusted Langevin dynamics (Roberts & Tweedie 1996), scaled by the population's covariance.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["temper"]

LogDensityFunction = Callable[[Tensor], Tensor]
ESS_SHARE = 0.7  # of the population after a step of b
MOVES, LAST_MOVES = 5, 60  # per step of b, and at the end, so that copies of one point part
GOAL = 0.574  # acceptance at which Langevin proposals are most efficient in many dimensions
MAX_LEVELS = 2000


def temper(log_q: LogDensityFunction, log_p: LogDensityFunction, x: Tensor, rng: torch.Generator) -> Tensor:
    """Samples [n, D] of exp(log_p) / Z, from samples x [n, D] of q; both float64.

    The samples are nearly independent: copies of one ancestor have moved apart for LAST_MOVES steps.

    Arguments:
        log_q: log q of points [n, D], up to a constant; positive wherever p is.
        log_p: log p, up to a constant; differentiable.

    Raises:
        ValueError: a law so far from q that the steps do not end, or that is not normalisable.
    """
    b, step = 0.0, 1.0
    for _ in range(MAX_LEVELS):
        log_ratio = log_p(x) - log_q(x)
        increase = choose_increase(log_ratio, 1 - b)
        if b + increase == b or not bool(x.isfinite().all()):
            break
        b += increase
        x = x[resample((increase * log_ratio).softmax(0), rng)]
        target = blend(log_q, log_p, b)
        x, step = move(target, x, step, MOVES if b < 1 else LAST_MOVES, rng)
        if b >= 1:
            return x
    raise ValueError("the law is too far from those that can be sampled, or not normalisable")


def blend(log_q: LogDensityFunction, log_p: LogDensityFunction, b: float) -> LogDensityFunction:
    """(1 - b) log q + b log p."""
    return log_p if b >= 1 else lambda x: (1 - b) * log_q(x) + b * log_p(x)


def choose_increase(log_ratio: Tensor, most: float) -> float:
    """The largest step of b, at most `most`, that keeps ESS_SHARE of the effective sample size."""

    def share(increase: float) -> float:
        weights = (increase * log_ratio).softmax(0)
        return float(1 / weights.square().sum()) / len(weights)

    if share(most) >= ESS_SHARE:
        return most
    low, high = 0.0, most
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if share(middle) >= ESS_SHARE else (low, middle)
    return low


def resample(weights: Tensor, rng: torch.Generator) -> Tensor:
    """Systematic resampling: the ancestors [n] of equally weighted points."""
    n = len(weights)
    places = (torch.arange(n, dtype=weights.dtype) + torch.rand(1, generator=rng, dtype=weights.dtype)) / n
    mass = weights.cumsum(0)
    return torch.searchsorted(mass / mass[-1], places).clamp(max=n - 1)


def value_and_gradient(log_p: LogDensityFunction, x: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = log_p(x)
        return value.detach(), torch.autograd.grad(value.sum(), x)[0]


def move(log_p: LogDensityFunction, x: Tensor, step: float, count: int, rng: torch.Generator) -> tuple[Tensor, float]:
    """Langevin proposals x + (step^2 / 2) C grad log p + step C^(1/2) z, accepted by Metropolis and Hastings.

    C is the covariance of the population before the moves; `step` follows the acceptance between the moves.
    """
    covariance = torch.cov(x.mT).reshape(x.shape[1], x.shape[1])
    ridge = 1e-6 * covariance.diagonal().mean() * torch.eye(x.shape[1], dtype=x.dtype)
    root = torch.linalg.cholesky(covariance + ridge)
    value, gradient = value_and_gradient(log_p, x)
    for _ in range(count):
        z = torch.randn(x.shape, generator=rng, dtype=x.dtype)
        moved = x + step**2 / 2 * gradient @ root @ root.mT + step * z @ root.mT
        new_value, new_gradient = value_and_gradient(log_p, moved)
        back = z + step / 2 * (gradient + new_gradient) @ root  # minus the noise of the way back
        log_ratio = new_value - value + 0.5 * (z.square().sum(1) - back.square().sum(1))
        accepted = torch.rand(len(x), generator=rng, dtype=x.dtype).log() < log_ratio
        rows = accepted[:, None]
        x, gradient = torch.where(rows, moved, x), torch.where(rows, new_gradient, gradient)
        value = torch.where(accepted, new_value, value)
        step *= math.exp(accepted.double().mean().item() - GOAL)
    return x, step
