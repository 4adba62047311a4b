"""Rules: how the strong and the weak prediction are combined.

    rule(strong, weak, scale, x_t, t, schedule, memory) -> Prediction

A rule that changes x_0 by d changes eps by -(alpha / sigma) d: alpha x_0 + sigma eps stays as it is, and so does a change of
eps by inner guidance. Two rules compare the predictions as velocities (`Velocity`): the output of a flow or v-prediction
network, up to a factor that depends on the level alone.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..models.protocols import Denoiser, Prediction, SamplingError, StackedPrediction
from ..runtime.ranges import check_range, check_whole
from ..schedules import Schedule, broadcast_rows
from .base import per_row

__all__ = ["CFGPlusPlus", "CFGZero", "Linear", "Mambo", "Rescale", "Rule", "Threshold"]


class Rule:
    """How two predictions are combined into one.

    Attributes:
        stateful: whether a level depends on the levels before it, so that all samples must be at one level.
        strong_at_1: whether scale 1 is `finish(strong)`, so that the weak prediction is not evaluated there.
        option: the name in the configuration of classifier-free guidance with it, for messages; "" = cfg.
        only_multiplies: whether predictions are multiplied with the scale as it is, which may then be in their precision.
        weak_at_0: whether scale 0 is `finish(weak)`, so that the strong prediction is not evaluated there.
        names_powers: whether the scale w stands for the law strong^w weak^(1 - w), however the rule departs from its score.
    """

    option = ""
    stateful = False
    strong_at_1 = True
    weak_at_0 = False
    only_multiplies = False
    names_powers = True

    def check(self, denoiser: Denoiser, scale: float) -> None:
        """Raises ValueError for a denoiser or a scale that the rule does not take."""

    def apply_ramp(self, scale: float, factor: Tensor) -> Tensor:
        """The scale times a ramp's factor of the guidance; 1 is off."""
        return 1 + (scale - 1) * factor

    def start(self, times: Tensor) -> Any:
        """The memory of one run over `times`; None outside a run."""
        return None

    def skips_step(self, t: Tensor, memory: Any) -> bool:
        """Whether a step of the run from t (0-d) leaves x unchanged."""
        return False

    def without_skipped_steps(self, memory: Any) -> Any:
        """The memory of the run after its skipped steps."""
        return memory

    def finish(self, side: Prediction, x_t: Tensor, t: Tensor, schedule: Schedule, memory: Any) -> Prediction:
        """The result for one prediction alone, where the scale needs no other."""
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


def interpolate(strong: Prediction, weak: Prediction, scale: Tensor) -> Prediction:
    """weak + scale (strong - weak), in both fields; scale 0-d, or as `strong.x_0`."""
    if isinstance(strong, StackedPrediction) and isinstance(weak, StackedPrediction):
        return StackedPrediction(weak.stack + scale * (strong.stack - weak.stack))
    return Prediction(weak.x_0 + scale * (strong.x_0 - weak.x_0), weak.eps + scale * (strong.eps - weak.eps))


def replace_x_0(side: Prediction, x_0: Tensor, t: Tensor, schedule: Schedule) -> Prediction:
    """The prediction with another x_0, and eps changed with it."""
    ratio = per_row(torch.exp(schedule.log_snr(t) / 2), x_0)
    return Prediction(x_0, side.eps - ratio * (x_0 - side.x_0))


def replace_eps(side: Prediction, eps: Tensor, t: Tensor, schedule: Schedule) -> Prediction:
    """The prediction with another eps, and x_0 changed with it; not at zero terminal SNR, where eps does not determine x_0."""
    return Prediction(side.x_0 - per_row(schedule.noise_level(t), eps) * (eps - side.eps), eps)


def sample_dims(x: Tensor) -> list[int]:
    """The dimensions of one sample."""
    return list(range(1, x.ndim))


def inner(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> per sample, [B, 1, ...]."""
    return (a * b).sum(sample_dims(a), keepdim=True)


def norm(a: Tensor) -> Tensor:
    """|a| per sample, [B, 1, ...]."""
    return torch.linalg.vector_norm(a, dim=sample_dims(a), keepdim=True)


def damp_along(d: Tensor, reference: Tensor, share: float) -> Tensor:
    """d with its part along the reference, per sample, times `share`."""
    direction = reference / norm(reference).clamp(min=torch.finfo(d.dtype).tiny)
    along = inner(d, direction) * direction
    return d - along + share * along


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
        log_snr = schedule.log_snr(t).clamp(-32, 32)  # beyond, the derivatives round to 0
        scales, slopes = torch.func.jvp(schedule.normalisation, (log_snr,), (torch.ones_like(log_snr),))[:2]
        (alpha, sigma), (da, ds) = scales, slopes
        determinant = alpha * ds - sigma * da
        return cls(*(per_row(value, x) for value in (alpha, sigma, da / determinant, ds / determinant)))

    def compute(self, side: Prediction) -> Tensor:
        return self.p * side.x_0 + self.q * side.eps

    def shift(self, side: Prediction, change: Tensor) -> Prediction:
        """The prediction with its velocity changed."""
        return Prediction(side.x_0 - self.sigma * change, side.eps + self.alpha * change)

    def stop(self, x_t: Tensor) -> Prediction:
        """The prediction with velocity 0 at x_t."""
        return Prediction(self.q * x_t, -self.p * x_t)


class Linear(Rule):
    """weak + scale (strong - weak). Ho & Salimans 2022, arXiv 2207.12598, eq. 6, with scale = 1 + their w."""

    weak_at_0 = only_multiplies = True

    def __call__(self, strong, weak, scale, x_t, t, schedule, memory) -> Prediction:
        return interpolate(strong, weak, scale)


class Threshold(Linear):
    """Linear, then x_0 / s clipped to [-1, 1] with s = max(1, the quantile of |x_0| over the sample's values).

    Dynamic thresholding: Saharia et al., "Imagen", 2022, arXiv 2205.11487, section 2.3. For data in [-1, 1].

    Arguments:
        quantile: in (0, 1]; 0.995 in the paper.
    """

    option = "threshold"

    def __init__(self, quantile: float = 0.995):
        self.quantile = check_range("quantile", quantile, "(0, 1]")

    def finish(self, side, x_t, t, schedule, memory) -> Prediction:
        size = side.x_0.abs().flatten(1).quantile(self.quantile, dim=1).clamp(min=1)
        size = broadcast_rows(size, side.x_0.ndim)
        return replace_x_0(side, side.x_0.clamp(-size, size) / size, t, schedule)

    def __call__(self, strong, weak, scale, x_t, t, schedule, memory) -> Prediction:
        return self.finish(interpolate(strong, weak, scale), x_t, t, schedule, memory)


class Rescale(Rule):
    """x_0 = (phi std(strong.x_0) / std(g) + 1 - phi) g, with g = weak.x_0 + scale (strong.x_0 - weak.x_0).

    Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed", 2023, arXiv 2305.08891, section 3.4, for
    x_0; the standard deviation is over the values of a sample.

    Arguments:
        phi: in [0, 1]: 0 = linear, 1 = the standard deviation of the strong x_0; 0.7 in the paper.
    """

    option = "cfg_rescale"

    def __init__(self, phi: float = 0.7):
        self.phi = check_range("phi", phi, "[0, 1]")

    def __call__(self, strong, weak, scale, x_t, t, schedule, memory) -> Prediction:
        return self.match(strong, interpolate(strong, weak, scale), t, schedule)

    def match(self, strong: Prediction, guided: Prediction, t: Tensor, schedule: Schedule) -> Prediction:
        """The guided prediction with the standard deviation of its x_0 moved towards that of the strong one."""
        wanted, found = (side.x_0.std(sample_dims(side.x_0), keepdim=True, correction=0) for side in (strong, guided))
        ratio = torch.where(found > 0, wanted / found, 1)  # constant samples cannot be rescaled
        return replace_x_0(guided, (self.phi * ratio + (1 - self.phi)) * guided.x_0, t, schedule)


class CFGPlusPlus(Rule):
    """x_0 = weak.x_0 + scale (strong.x_0 - weak.x_0), with the weak eps: eps = weak.eps.

    Chung et al., "CFG++: Manifold-constrained Classifier Free Guidance", 2024, arXiv 2406.08070, algorithm 2, where scale is
    lambda: 0 = the weak prediction, 1 = the strong x_0. Each step combines the guided x_0 with the unconditional noise, so
    that more steps guide more. A ramp multiplies lambda; outside the interval the prediction is the strong one.
    """

    option = "cfgpp"
    strong_at_1 = False
    weak_at_0 = True
    names_powers = False

    def check(self, denoiser: Denoiser, scale: float) -> None:
        check_range("with rule=cfgpp, scale (lambda of CFG++)", scale, "[0, 1]")

    def apply_ramp(self, scale: float, factor: Tensor) -> Tensor:
        return scale * factor

    def __call__(self, strong, weak, scale, x_t, t, schedule, memory) -> Prediction:
        return Prediction(interpolate(strong, weak, scale).x_0, weak.eps)


class CFGZero(Rule):
    """u = s weak + scale (strong - s weak) for the velocities, s = <strong, weak> / |weak|^2; u = 0 in the first steps.

    Fan et al., "CFG-Zero*: Improved Classifier-Free Guidance for Flow Matching Models", 2025, arXiv 2503.18886,
    algorithm 1. Samplers skip the steps of velocity 0, x_s = x_t, and start after them (`skips_step`).

    Arguments:
        zero_init_steps: steps of the sampler's grid with velocity 0; about 4 % of them in the paper, at least 0.

    Raises:
        SamplingError: from `start`, a run of at most these steps.
    """

    option = "cfg_zero"

    def __init__(self, zero_init_steps: int = 1):
        self.zero_init_steps = check_whole("zero_init_steps", zero_init_steps, 0)

    def start(self, times: Tensor) -> float:
        """The time above which the velocity is 0."""
        steps = len(times) - 1
        if self.zero_init_steps >= steps:
            raise SamplingError(
                f"zero_init_steps must be below the sampler's steps, got {self.zero_init_steps} of {steps}: take at least "
                f"sampler.steps={self.zero_init_steps + 1}, or guidance.rule.zero_init_steps=0"
            )
        return float(times[self.zero_init_steps])

    def skips_step(self, t: Tensor, memory: float | None) -> bool:
        return memory is not None and self.zero_init_steps > 0 and float(t) > memory

    def without_skipped_steps(self, memory: float | None) -> None:
        return None

    def finish(self, side, x_t, t, schedule, memory) -> Prediction:
        if memory is None or not self.zero_init_steps:
            return side
        stopped = Velocity.at(t, schedule, x_t).stop(x_t)
        early = per_row(t > memory, x_t).bool()
        return Prediction(torch.where(early, stopped.x_0, side.x_0), torch.where(early, stopped.eps, side.eps))

    def __call__(self, strong, weak, scale, x_t, t, schedule, memory) -> Prediction:
        velocity = Velocity.at(t, schedule, x_t)
        u_strong, u_weak = velocity.compute(strong), velocity.compute(weak)
        u_weak = inner(u_strong, u_weak) / inner(u_weak, u_weak).clamp(min=torch.finfo(u_weak.dtype).tiny) * u_weak
        guided = velocity.shift(strong, (scale - 1) * (u_strong - u_weak))
        return self.finish(guided, x_t, t, schedule, memory)


class Mambo(Rule):
    """Linear with the scale 1 + (scale - 1) exp(-damping |strong - weak| / |weak|), for predictions as velocities.

    "MAMBO-G: Magnitude-Aware Mitigation for Boosted Guidance", 2025, arXiv 2508.03442. Less guidance where the predictions
    differ much, as at high noise levels.

    Arguments:
        damping: alpha of the paper, at least 0; 0 = linear, 8 is diffusers' default.
    """

    option = "mambo_g"

    def __init__(self, damping: float = 8.0):
        self.damping = check_range("damping", damping, "[0, inf)")

    def __call__(self, strong, weak, scale, x_t, t, schedule, memory) -> Prediction:
        velocity = Velocity.at(t, schedule, x_t)
        u_strong, u_weak = velocity.compute(strong), velocity.compute(weak)
        ratio = norm(u_strong - u_weak) / norm(u_weak).clamp(min=torch.finfo(u_weak.dtype).tiny)
        return interpolate(strong, weak, 1 + (scale - 1) * torch.exp(-self.damping * ratio))
