"""Rules: what becomes of the strong and the weak side.

    rule(strong, weak, scale, x_t, t, schedule, memory) -> Prediction

A rule that changes x_0 by d changes eps by -(alpha / sigma) d, so that the two agree as far as the sides did: what a
guidance further inside re-noises on purpose survives. Two rules compare the sides as velocities (`Velocity`): what the
network of a flow or of v-prediction puts out, up to a factor that depends on the level alone.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..models.protocols import Denoiser, Prediction, SamplingError
from ..schedules import Schedule

__all__ = ["CFGPlusPlus", "CFGZero", "Linear", "Mambo", "Rescale", "Rule", "Threshold"]


class Rule:
    """How the two sides make one prediction.

    Attributes:
        stateful: whether a level depends on the levels before it, so that all samples must be at one level.
        strong_at_1: whether scale 1 is `alone(strong)`, so that the weak side is not needed there.
        weak_at_0: whether scale 0 is `alone(weak)`, so that the strong side is not needed there.
    """

    stateful = False
    strong_at_1 = True
    weak_at_0 = False

    def check(self, denoiser: Denoiser, scale: float) -> None:
        """Raises ValueError where the rule cannot work with a denoiser or a scale."""

    def ramped(self, scale: float, factor: Tensor) -> Tensor:
        """The scale where a ramp lets `factor` of the guidance act; 1 is off."""
        return 1 + (scale - 1) * factor

    def start(self, times: Tensor) -> Any:
        """The memory of one run over `times`; a rule that is called outside a run has the memory None."""
        return None

    def skips_step(self, t: Tensor, memory: Any) -> bool:
        """Whether a step of the run from t (0-d) is to leave x where it is."""
        return False

    def without_skipped_steps(self, memory: Any) -> Any:
        """The memory of the run after its still steps."""
        return memory

    def alone(self, side: Prediction, x_t: Tensor, t: Tensor, schedule: Schedule, memory: Any) -> Prediction:
        """What the rule makes of one side by itself."""
        return side

    def __call__(
        self, strong: Prediction, weak: Prediction, scale: Tensor, x_t: Tensor, t: Tensor, schedule: Schedule, memory: Any
    ) -> Prediction:  # fmt: skip
        """The guided prediction.

        Arguments:
            scale: 0-d, or [B, 1, ...] where t is [B].
            memory: what `start` returned.
        """
        raise NotImplementedError


def mixed(strong: Prediction, weak: Prediction, scale: Tensor) -> Prediction:
    """weak + scale (strong - weak), in both fields."""
    return Prediction(*(w + scale * (s - w) for s, w in zip(strong, weak)))


def moved(side: Prediction, x_0: Tensor, t: Tensor, schedule: Schedule) -> Prediction:
    """The side with another x_0, and eps moved with it."""
    ratio = beside(torch.exp(schedule.log_snr(t) / 2), x_0)
    return Prediction(x_0, side.eps - ratio * (x_0 - side.x_0))


def beside(value: Tensor, x: Tensor) -> Tensor:
    """A number per level, 0-d or [B], shaped and cast to stand beside x [B, ...]."""
    return value.to(x).reshape(-1, *[1] * (x.ndim - 1)) if value.ndim else value


def over_sample(x: Tensor) -> list[int]:
    """The dimensions of one sample."""
    return list(range(1, x.ndim))


def inner(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> per sample, [B, 1, ...]."""
    return (a * b).sum(over_sample(a), keepdim=True)


def norm(a: Tensor) -> Tensor:
    """|a| per sample, [B, 1, ...]."""
    return torch.linalg.vector_norm(a, dim=over_sample(a), keepdim=True)


class Velocity(NamedTuple):
    """u = p x_0 + q eps, along which x_t moves on the ODE; x_0 = q x_t - sigma u, eps = alpha u - p x_t.

    p and q are the derivatives of alpha and sigma, over alpha sigma' - sigma alpha': u is eps - x_0 where alpha + sigma = 1,
    v = alpha eps - sigma x_0 where alpha^2 + sigma^2 = 1, and eps where alpha = 1.
    """

    alpha: Tensor
    sigma: Tensor
    p: Tensor
    q: Tensor

    @classmethod
    def at(cls, t: Tensor, schedule: Schedule, x: Tensor) -> "Velocity":
        log_snr = schedule.log_snr(t).clamp(-32, 32)  # beyond, derivatives round to nothing
        (alpha, sigma), (da, ds) = torch.func.jvp(schedule.normalisation, (log_snr,), (torch.ones_like(log_snr),))
        determinant = alpha * ds - sigma * da
        return cls(*(beside(value, x) for value in (alpha, sigma, da / determinant, ds / determinant)))

    def of(self, side: Prediction) -> Tensor:
        return self.p * side.x_0 + self.q * side.eps

    def moved(self, side: Prediction, change: Tensor) -> Prediction:
        """The side with its velocity changed."""
        return Prediction(side.x_0 - self.sigma * change, side.eps + self.alpha * change)

    def still(self, x_t: Tensor) -> Prediction:
        """What does not move x_t."""
        return Prediction(self.q * x_t, -self.p * x_t)


class Linear(Rule):
    """weak + scale (strong - weak). Ho & Salimans 2022, arXiv 2207.12598, eq. 6, with scale = 1 + their w."""

    weak_at_0 = True

    def __call__(self, strong, weak, scale, x_t, t, schedule, memory) -> Prediction:
        return mixed(strong, weak, scale)


class Threshold(Linear):
    """Linear, then x_0 / s clipped to [-1, 1] with s = max(1, the quantile of |x_0| over the sample's values).

    Dynamic thresholding: Saharia et al., "Imagen", 2022, arXiv 2205.11487, section 2.3. For data in [-1, 1].

    Arguments:
        quantile: in (0, 1]; 0.995 in the paper.

    Raises:
        ValueError: a quantile out of range.
    """

    def __init__(self, quantile: float):
        if not 0 < quantile <= 1:
            raise ValueError(f"quantile must be in (0, 1], got {quantile}")
        self.quantile = float(quantile)

    def alone(self, side, x_t, t, schedule, memory) -> Prediction:
        size = side.x_0.abs().flatten(1).quantile(self.quantile, dim=1).clamp(min=1)
        size = size.reshape(-1, *[1] * (side.x_0.ndim - 1))
        return moved(side, side.x_0.clamp(-size, size) / size, t, schedule)

    def __call__(self, strong, weak, scale, x_t, t, schedule, memory) -> Prediction:
        return self.alone(mixed(strong, weak, scale), x_t, t, schedule, memory)


class Rescale(Rule):
    """x_0 = (phi std(strong.x_0) / std(g) + 1 - phi) g, with g = weak.x_0 + scale (strong.x_0 - weak.x_0).

    Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed", 2023, arXiv 2305.08891, section 3.4, for
    x_0; the standard deviation is over the values of a sample.

    Arguments:
        phi: in [0, 1]: 0 = linear, 1 = the strong side's standard deviation; 0.7 in the paper.

    Raises:
        ValueError: phi out of range.
    """

    def __init__(self, phi: float):
        if not 0 <= phi <= 1:
            raise ValueError(f"phi must be in [0, 1], got {phi}")
        self.phi = float(phi)

    def __call__(self, strong, weak, scale, x_t, t, schedule, memory) -> Prediction:
        guided = mixed(strong, weak, scale)
        wanted, found = (side.x_0.std(over_sample(x_t), keepdim=True, correction=0) for side in (strong, guided))
        ratio = torch.where(found > 0, wanted / found, 1)  # a sample of equal values has nothing to rescale
        return moved(guided, (self.phi * ratio + (1 - self.phi)) * guided.x_0, t, schedule)


class CFGPlusPlus(Rule):
    """x_0 = weak.x_0 + scale (strong.x_0 - weak.x_0), with the noise of the weak side: eps = weak.eps.

    Chung et al., "CFG++: Manifold-constrained Classifier Free Guidance", 2024, arXiv 2406.08070, algorithm 2, where scale is
    lambda: 0 = the weak side, 1 = x_0 of the strong one. The fields disagree on purpose: the x_0 that is estimated gets the
    noise that the unconditional model sees. More steps guide more, as each moves x_t by its share. A ramp multiplies lambda;
    outside the interval the strong side is left as it is, its own noise included.

    Raises:
        ValueError: from `check`, a scale outside [0, 1].
    """

    strong_at_1 = False
    weak_at_0 = True

    def check(self, denoiser: Denoiser, scale: float) -> None:
        if not 0 <= scale <= 1:
            raise ValueError(f"scale must be in [0, 1] with rule=cfgpp, where it is lambda of CFG++, got {scale}")

    def ramped(self, scale: float, factor: Tensor) -> Tensor:
        return scale * factor

    def __call__(self, strong, weak, scale, x_t, t, schedule, memory) -> Prediction:
        return Prediction(mixed(strong, weak, scale).x_0, weak.eps)


class CFGZero(Rule):
    """u = s weak + scale (strong - s weak) for the velocities, s = <strong, weak> / |weak|^2; u = 0 in the first steps.

    Fan et al., "CFG-Zero*: Improved Classifier-Free Guidance for Flow Matching Models", 2025, arXiv 2503.18886,
    algorithm 1. A step of velocity 0 is a whole step: samplers leave x where it is, x_s = x_t, and begin after it, whatever
    they evaluate within a step and remember of it (`skips_step`). A prediction there is one that does not move.

    Arguments:
        zero_init_steps: steps of the sampler's grid whose velocity is 0; about 4 % of them in the paper, at least 0.

    Raises:
        ValueError: a number out of range.
        SamplingError: from `start`, a run of no more steps, which would not move at all.
    """

    def __init__(self, zero_init_steps: int):
        if not isinstance(zero_init_steps, int) or zero_init_steps < 0:
            raise ValueError(f"zero_init_steps must be a whole number of at least 0, got {zero_init_steps!r}")
        self.zero_init_steps = zero_init_steps

    def start(self, times: Tensor) -> float:
        """The time above which the velocity is 0."""
        steps = len(times) - 1
        if self.zero_init_steps >= steps:
            raise SamplingError(
                f"zero_init_steps must be below the sampler's steps, got {self.zero_init_steps} of {steps}: nothing would "
                f"move; take sampler.steps={self.zero_init_steps + 1} at least, or guidance.rule.zero_init_steps=0"
            )
        return float(times[self.zero_init_steps])

    def skips_step(self, t: Tensor, memory: float | None) -> bool:
        return memory is not None and self.zero_init_steps > 0 and float(t) > memory

    def without_skipped_steps(self, memory: float | None) -> None:
        return None

    def alone(self, side, x_t, t, schedule, memory) -> Prediction:
        if memory is None or not self.zero_init_steps:
            return side
        still = Velocity.at(t, schedule, x_t).still(x_t)
        return Prediction(*(torch.where(beside(t > memory, x_t).bool(), a, b) for a, b in zip(still, side)))

    def __call__(self, strong, weak, scale, x_t, t, schedule, memory) -> Prediction:
        velocity = Velocity.at(t, schedule, x_t)
        u_strong, u_weak = velocity.of(strong), velocity.of(weak)
        u_weak = inner(u_strong, u_weak) / inner(u_weak, u_weak).clamp(min=torch.finfo(u_weak.dtype).tiny) * u_weak
        guided = velocity.moved(strong, (scale - 1) * (u_strong - u_weak))
        return self.alone(guided, x_t, t, schedule, memory)


class Mambo(Rule):
    """Linear with the scale 1 + (scale - 1) exp(-damping |strong - weak| / |weak|), the sides compared as velocities.

    MAMBO-G: "Magnitude-Aware Mitigation for Boosted Guidance", 2025, arXiv 2508.03442: where the sides differ much, early,
    guidance would overshoot.

    Arguments:
        damping: alpha of the paper, at least 0; 0 = linear, 8 is diffusers' default.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(self, damping: float):
        if not 0 <= damping < math.inf:
            raise ValueError(f"damping must be at least 0, got {damping}")
        self.damping = float(damping)

    def __call__(self, strong, weak, scale, x_t, t, schedule, memory) -> Prediction:
        velocity = Velocity.at(t, schedule, x_t)
        u_strong, u_weak = velocity.of(strong), velocity.of(weak)
        ratio = norm(u_strong - u_weak) / norm(u_weak).clamp(min=torch.finfo(u_weak.dtype).tiny)
        return mixed(strong, weak, 1 + (scale - 1) * torch.exp(-self.damping * ratio))
