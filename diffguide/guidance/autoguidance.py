"""Autoguidance: a contrast with a worse model of the same data."""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from ..backbones.conditions import Condition
from ..models.evaluation_counters import count_evaluations
from ..models.protocols import Denoiser, Prediction
from ..randomness import Noise
from ..schedules import EVERYWHERE, Schedule, same_schedule
from .base import per_row
from .contrast import CONSTANT_RAMP, LINEAR_RULE, Contrast
from .contrast_laws import LogDensityPrediction
from .ramps import Ramp
from .rules import Rule

__all__ = ["Autoguidance"]


class Autoguidance(Contrast):
    """Weak: another denoiser of the same data with the same condition, a smaller or earlier one.

    With a guide without classes it is classifier-free guidance by two networks, as in EDM2 (arXiv 2312.02696, section 4).
    Karras et al., "Guiding a Diffusion Model with a Bad Version of Itself", 2024, arXiv 2406.02507. A guide with
    another schedule is evaluated at equal log-SNR, with x_t rescaled to that schedule.

    Arguments:
        denoiser: what is guided; it needs no condition.
        guide: the worse model.
        scale: 1 = off (the good model), 0 = the guide.
        interval, rule, ramp: as in `Contrast`.

    Raises:
        ValueError: a guide that is no denoiser, or one of other data, other classes, other legal times or noise levels.
    """

    option = "autoguidance"
    has_law = True

    def __init__(
        self,
        denoiser: Denoiser,
        guide: Denoiser,
        scale: float = 2.0,
        interval: Sequence[float] = EVERYWHERE,
        rule: Rule = LINEAR_RULE,
        ramp: Ramp = CONSTANT_RAMP,
    ):
        super().__init__(denoiser, scale, interval, rule, ramp)
        if not isinstance(guide, Denoiser):
            raise ValueError(f"guide must be a denoiser of the same data, got a {type(guide).__name__}")
        check_same_data(denoiser, guide)
        if guide.levels is not None and (denoiser.levels is None or not torch.equal(guide.levels, denoiser.levels)):
            raise ValueError("the guide has discrete noise levels other than the model's; take another guide")
        check_reach(guide.schedule, *self.guided_range())
        self.guide = guide if denoiser.tally is None else count_evaluations(guide, denoiser.tally)[0]

    embeds = False  # two networks have two tables of classes
    is_compiled = property(lambda self: self.denoiser.is_compiled or self.guide.is_compiled)
    has_null = property(lambda self: self.denoiser.has_null and self.guide.has_null)
    stateful = property(lambda self: self.rule.stateful or self.denoiser.stateful or self.guide.stateful)

    def start(self, noise: Noise | None, times: Tensor) -> Self:
        fresh = super().start(noise, times)
        there = times if self.same_schedule else self.guide_time(times).unique(sorted=True).flip(0)
        fresh.guide = self.guide.start(noise, there)
        return fresh

    @property
    def same_schedule(self) -> bool:
        return same_schedule(self.guide.schedule, self.schedule)

    def guide_time(self, t: Tensor) -> Tensor:
        """The guide's time of equal log-SNR."""
        return self.guide.schedule.t_of(self.schedule.log_snr(t)).clamp(0, 1)

    def explain_no_density(self) -> str | None:
        reason = self.guide.explain_no_density()
        return super().explain_no_density() or (reason and f"of the guide, {reason}")

    def of_log_densities(self) -> Self:
        fresh = super().of_log_densities()
        fresh.guide = LogDensityPrediction(self.guide)
        return fresh

    def predict_both(self, x_t: Tensor, t: Tensor, y: Condition | None) -> tuple[Prediction, Prediction]:
        return self.denoiser(x_t, t, y), self.predict_weak(x_t, t, y)

    def predict_weak(self, x_t: Tensor, t: Tensor, y: Condition | None) -> Prediction:
        if self.same_schedule:
            return self.guide(x_t, t, y)
        there = self.guide_time(t)
        here, wanted = (
            torch.hypot(*s.alpha_sigma(time)) for s, time in ((self.schedule, t), (self.guide.schedule, there))
        )
        return self.guide(per_row(wanted / here, x_t) * x_t, there, y)


def check_same_data(denoiser: Denoiser, guide: Denoiser) -> None:
    """Raises ValueError for two denoisers of different data."""
    shapes = [None if part.shape is None else list(part.shape) for part in (denoiser, guide)]
    if None not in shapes and shapes[0] != shapes[1]:
        raise ValueError(f"the guide generates data of shape {shapes[1]}, the model of shape {shapes[0]}")
    if guide.num_classes not in (0, denoiser.num_classes):
        raise ValueError(f"the guide has {guide.num_classes} classes, the model {denoiser.num_classes}")


def check_reach(schedule: Schedule, low: float, high: float) -> None:
    """Raises ValueError if a guide's schedule does not cover the noise levels where guidance acts."""
    ends = schedule.noise_level_range
    if low < high and (low * (1 + 1e-6) < ends[0] or high > ends[1] * (1 + 1e-6)):
        shared = [max(low, ends[0]), min(high, ends[1])]
        narrowed = f"guidance.interval=[{shared[0]:.7g},{shared[1]:.7g}]"
        raise ValueError(
            f"the guide has noise levels {ends[0]:.6g} to {ends[1]:.6g}, guidance acts from {low:.6g} to {high:.6g}: "
            + (f"set {narrowed}" if shared[0] < shared[1] else "they do not overlap, take another guide")
        )
