"""Feedback guidance: a scale per sample, from how likely its own path makes the condition."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..models.protocols import Denoiser, Prediction
from ..runtime.ranges import check_finite, check_range
from ..schedules import Schedule
from .base import per_row_float
from .memories import LevelMemory
from .rules import Rule, interpolate, sample_dims

__all__ = ["Feedback"]

REFERENCE_SCALE = 3.0  # lambda_ref of the authors' code: the scale that is reached at `rise` if the path says nothing
BALANCE = 10.0  # alpha of the authors' code
LARGEST_LOG_POSTERIOR = 3.0


class Feedback(Rule):
    """Linear with the scale e^L / (e^L - (1 - mixing)) + scale - 1 of each sample, where L is log p(y | path) up to a constant:

        L = 0 at the first level,  L <- L - temperature / (2 v) (|x_s - mu_strong|^2 - |x_s - mu_weak|^2) + offset,
        mu = r x_t + (1 - r) x_0,  v = s^2 (1 - r),  r = s^2 / t^2

    from each noise level t (sigma / alpha, with x / alpha for x) to the next one, s. L stays between the value at which the
    scale is max_scale, and 3. Koulischer, Handke, Deleu, Demeester, Ambrogioni, "Feedback Guidance of Diffusion Models",
    NeurIPS 2025, arXiv 2506.06085, algorithm 1, where scale is 1; above 1 it is their combination with CFG, whose constant
    part a ramp may limit to some levels. A level at which the network is evaluated counts as a step.

    Arguments:
        mixing: pi, how much of the conditional model is in the learned one, in (0, 1]; 1 = off, 0.999 for class labels.
        rise: t_0, share of the run (1 = noise) where the scale reaches 3 for a path that says nothing, in [0, 1).
        fall: t_1, share of the run where what the path says outweighs the offset, in [0, 1].
        max_scale: largest scale, above 1 and above `scale`.
        temperature: tau, at least 0; None = from rise and fall.
        offset: delta per step, at most 0; None = from rise.

    Raises:
        ValueError: from `check`, a scale of at least max_scale.
    """

    option = "fbg"
    stateful = True
    strong_at_1 = False

    def __init__(
        self,
        mixing: float = 0.95,
        rise: float = 0.5,
        fall: float = 0.4,
        max_scale: float = 10.0,
        temperature: float | None = None,
        offset: float | None = None,
    ):
        self.mixing, self.rise = check_range("mixing", mixing, "(0, 1]"), check_range("rise", rise, "[0, 1)")
        self.fall, self.max_scale = check_range("fall", fall, "[0, 1]"), check_range("max_scale", max_scale, "(1, inf)")
        self.temperature = None if temperature is None else check_range("temperature", temperature, "[0, inf)")
        self.offset = None if offset is None else check_finite("offset", offset)

    def check(self, denoiser: Denoiser, scale: float) -> None:
        if scale >= self.max_scale:
            raise ValueError(f"with rule=fbg, scale must be below max_scale {self.max_scale:g}, got {scale:g}")

    def start(self, times: Tensor) -> "FeedbackMemory":
        return FeedbackMemory(times)

    def __call__(self, strong, weak, scale, x_t, t, schedule, memory: "FeedbackMemory | None") -> Prediction:
        if self.mixing == 1:
            return interpolate(strong, weak, scale)
        log_posterior = x_t.new_zeros(len(x_t), dtype=torch.promote_types(x_t.dtype, torch.float32))
        if memory is not None:
            before = memory.recall(t, len(x_t))
            if before is not None:
                log_posterior = self.update(Step(*before), x_t, t, float(scale), schedule, memory)
            memory.store(log_posterior, x_t, strong.x_0, weak.x_0, t)
        odds = torch.exp(log_posterior)
        own = per_row_float(odds / (odds - (1 - self.mixing)), x_t)
        return interpolate(strong, weak, own + (scale - 1))

    def update(
        self, step: "Step", x_s: Tensor, s: Tensor, scale: float, schedule: Schedule, memory: "FeedbackMemory"
    ) -> Tensor:
        """L at s, [B], after the step from the previous level to x_s."""
        (alpha, sigma), alpha_s = schedule.alpha_sigma(step.t), schedule.alpha_sigma(s)[0]
        r = torch.exp(schedule.log_snr(step.t) - schedule.log_snr(s))
        v = schedule.noise_level(s) ** 2 * (1 - r)
        here = (schedule.noise_level(s) / sigma) ** 2 * alpha * step.x_t  # r x_t / alpha, finite in pure noise
        strong, weak = (x_s / alpha_s - here - (1 - r) * x_0 for x_0 in (step.strong, step.weak))
        difference = (strong.square() - weak.square()).sum(sample_dims(x_s)).to(step.log_posterior)
        temperature, offset = self.resolve(memory.times, schedule)
        changed = step.log_posterior - temperature / (2 * v) * difference + offset
        room = max(self.max_scale - scale + 1, 1 + 1e-6)  # a ramp may lift the scale above max_scale
        return changed.clamp(math.log((1 - self.mixing) * room / (room - 1)), LARGEST_LOG_POSTERIOR)

    def resolve(self, times: Tensor, schedule: Schedule) -> tuple[float, float]:
        """temperature and offset of a run over `times`, as the authors' code derives them from rise and fall."""
        steps = len(times) - 1
        offset = self.offset
        if offset is None:
            reached = (1 - self.mixing) * REFERENCE_SCALE / (REFERENCE_SCALE - 1)
            offset = math.log(reached) / ((1 - self.rise) * steps)
        if self.temperature is not None:
            return self.temperature, offset
        log_snr = schedule.log_snr(times)
        v = schedule.noise_level(times[1:]) ** 2 * (1 - torch.exp(log_snr[:-1] - log_snr[1:]))
        rising = [*v.flip(0).tolist(), float(v[0])]  # of the steps from the data on
        whole = min(int(self.fall * steps), steps - 1)
        share = self.fall * steps - whole
        return abs(2 * ((1 - share) * rising[whole] + share * rising[whole + 1]) * offset / BALANCE), offset


class Step(NamedTuple):
    """What the next level needs of this one: L [B], x_t, both x_0, and t."""

    log_posterior: Tensor
    x_t: Tensor
    strong: Tensor
    weak: Tensor
    t: Tensor


class FeedbackMemory(LevelMemory):
    """The steps of one run over `times`."""

    def __init__(self, times: Tensor):
        super().__init__()
        self.times = times
