"""Markov chains at one noise level: Langevin and Hamiltonian steps, with or without acceptance."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..runtime.ranges import check_range, check_whole
from ..schedules import broadcast_rows
from .heun import CHURN_DRAW
from .noise import StepNoise
from .particles import to_uniform

__all__ = ["Chain", "Moved", "Point"]

MAX_LEAPFROGS = 1000
MAX_BURN_IN = 10**4
GAIN = 0.5  # of the logarithm of the step size, per unit of acceptance


class Point(NamedTuple):
    """A place of a chain, and the law there.

    Attributes:
        x: [B, ...].
        slope: the score at x, in its shape; None = not evaluated yet.
        value: log q(x), [B]; None = unknown.
    """

    x: Tensor
    slope: Tensor | None = None
    value: Tensor | None = None


Law = Callable[[Tensor], Point]  # x -> the law there


class Moved(NamedTuple):
    """What steps of a chain lead to.

    Attributes:
        x: [B, ...].
        log_step: logarithm of the step size of each sample, [B] float64.
        acceptance: probability of acceptance per step with a fixed step size, and sample, [steps, B]; None = no acceptance.
    """

    x: Tensor
    log_step: Tensor
    acceptance: Tensor | None


class Chain:
    """Hamiltonian steps: momentum v from N(0, I), L leapfrogs of length h, and acceptance of the end.

        v <- v + (h / 2) u score(x),  x <- x + h u v,  v <- v + (h / 2) u score(x)          h = sqrt(2 step_size)
        accepted with probability min(1, q(x') / q(x) exp((|v|^2 - |v'|^2) / 2))            u^2 = sigma^2 + (alpha width)^2

    One leapfrog is a Langevin step, x + e score + sqrt(2 e) z with e = step_size u^2, and its acceptance is that of the
    Metropolis-adjusted Langevin algorithm: |v'| is the noise of the step back. Neal, "MCMC using Hamiltonian dynamics", 2011,
    arXiv 1206.1901, section 5; Du et al., "Reduce, Reuse, Recycle", 2023, arXiv 2302.11552, for all noise levels, with and
    without acceptance.

    Without acceptance the law is reached as steps shrink. A gradient is then that of the prediction, with CFG++ and its kin
    too; else it is that of the log-density.

    Step sizes are adapted per sample, from its own chain alone (Robbins-Monro): each of the first steps at a level changes
    the logarithm by 0.5 (acceptance - target). Then they are fixed for the level, and the next level begins with them.

    Arguments:
        step_size: e / u^2, above 0, of the first level; None = half of the variance that the sampler's step to this level
            removes, (1 - SNR_t / SNR_s) / 2: what turns CFG's ODE into its SDE (arXiv 2408.09000).
        leapfrogs: L, evaluations per step, 1 to 1000.
        damping: part of the momentum that is kept from one step to the next, in [0, 1).
        adjusted: whether steps are accepted or refused, which needs a log-density.
        width: standard deviation of the narrowest part of the clean law, at least 0: then e stays near step_size width^2 at
            low noise levels, where sigma is much smaller than the law.
        burn_in: steps at the start of each level that adapt the step size; 0 = it stays.
        target: acceptance that the step size is adapted to, in (0, 1).

    Raises:
        ValueError: an argument out of range; adaptation without acceptance, or of a step size that the sampler gives.
    """

    def __init__(
        self,
        step_size: float | None = 0.3,
        leapfrogs: int = 1,
        damping: float = 0.0,
        adjusted: bool = True,
        width: float = 0.0,
        burn_in: int = 3,
        target: float = 0.6,
    ):
        self.step_size = None if step_size is None else check_range("step_size", step_size, "(0, inf)")
        self.leapfrogs = check_whole("leapfrogs", leapfrogs, 1, MAX_LEAPFROGS)
        self.damping, self.adjusted = check_range("damping", damping, "[0, 1)"), adjusted
        self.width, self.target = check_range("width", width, "[0, inf)"), check_range("target", target, "(0, 1)")
        self.burn_in = check_whole("burn_in", burn_in, 0, MAX_BURN_IN)
        if burn_in and (not adjusted or step_size is None):
            raise ValueError(
                "burn_in must be 0 without acceptance (adjusted=false) or step_size, since nothing is adapted"
            )

    def run(
        self, law: Law, x: Tensor, unit: float, noise: StepNoise, level: Tensor, count: int, log_step: Tensor
    ) -> Moved:
        """`count` steps from x.

        Arguments:
            law: x -> x, its score and, with acceptance, log q(x).
            unit: u.
            level: the time of the draws.
            log_step: logarithm of the step size of each sample, [B] float64.
        """
        point, momentum, rates = law(x), None, []
        for index in range(count):
            draw = CHURN_DRAW + 1 + 2 * index
            fresh = noise.normal(level, draw)
            kept = 0.0 if momentum is None else self.damping
            v = fresh if momentum is None else kept * momentum + math.sqrt(1 - kept**2) * fresh
            length = broadcast_rows((2 * log_step.exp()).sqrt(), x.ndim).to(v)
            end, w = self.leap(law, law(point.x) if point.slope is None else point, v, length, unit)
            if not self.adjusted:
                point, momentum = end, w
                continue
            change = energy_change(point, v, end, w)
            probability = change.clamp(max=0).exp()
            taken = to_uniform(noise.normal(level, draw + 1).flatten(1)[:, 0]).to(change) < probability
            point, momentum = choose(taken, end, point), torch.where(broadcast_rows(taken, x.ndim), w, -v)
            if index < self.burn_in:
                log_step = log_step + GAIN * (probability - self.target)
            else:
                rates.append(probability)
        return Moved(point.x, log_step, torch.stack(rates) if rates else None)

    def leap(self, law: Law, point: Point, v: Tensor, length: Tensor, unit: float) -> tuple[Point, Tensor]:
        """The end of the leapfrogs and its momentum; without the law at the end where no further step reads it."""
        kick = length * (unit / 2)
        for index in range(self.leapfrogs):
            assert point.slope is not None
            v = v + kick * point.slope
            x = point.x + length * unit * v
            if index + 1 == self.leapfrogs and not self.adjusted and self.damping == 0:
                return Point(x), v
            point = law(x)
            assert point.slope is not None
            v = v + kick * point.slope
        return point, v


def energy_change(start: Point, v: Tensor, end: Point, w: Tensor) -> Tensor:
    """log q(x') - log q(x) + (|v|^2 - |w|^2) / 2 per sample, [B] float64; -inf where it is no number."""
    assert start.value is not None and end.value is not None
    kinetic = (v.double().square() - w.double().square()).flatten(1).sum(1) / 2
    change = end.value.double() - start.value.double() + kinetic
    return torch.where(change.isnan(), -torch.inf, change)


def choose(taken: Tensor, one: Point, other: Point) -> Point:
    """One point where `taken` [B], the other elsewhere; both are known."""
    parts = [(a, b) for a, b in zip(one, other) if a is not None and b is not None]
    return Point(*(torch.where(broadcast_rows(taken, a.ndim), a, b) for a, b in parts))
