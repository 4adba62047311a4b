"""Autoguidance: a contrast between a model and a worse one."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..backbones.conditions import Condition
from ..models.protocols import Denoiser, Prediction
from ..schedules import Schedule
from .contrast import CONSTANT, LINEAR, Contrast
from .ramps import Ramp
from .rules import Rule, beside

__all__ = ["Autoguidance"]


class Autoguidance(Contrast):
    """Weak: another denoiser of the same data with the same condition, a smaller or earlier one.

    Karras et al., "Guiding a Diffusion Model with a Bad Version of Itself", 2024, arXiv 2406.02507. A guide with
    another schedule is evaluated at equal log-SNR, with x_t rescaled to what that schedule makes of it.

    Arguments:
        denoiser: what is guided; it needs no condition.
        guide: the bad version.
        scale: 1 = off (the good model), 0 = the guide.
        interval, rule, ramp: as in `Contrast`.

    Raises:
        ValueError: a guide that is no denoiser, one of other data, classes or legal times, or that does not know the noise
            levels where guidance acts; as `Contrast`.
    """

    def __init__(
        self, denoiser: Denoiser, guide: Denoiser, scale: float, interval: Sequence[float], rule: Rule = LINEAR,
        ramp: Ramp = CONSTANT,
    ):  # fmt: skip
        super().__init__(denoiser, scale, interval, rule, ramp)
        if not isinstance(guide, Denoiser):
            raise ValueError(f"guide must be a generator of the same data, got a {type(guide).__name__}")
        check_same_data(denoiser, guide)
        if guide.levels is not None and (denoiser.levels is None or not torch.equal(guide.levels, denoiser.levels)):
            raise ValueError("the guide knows only its own noise levels, and the model has others; take another guide")
        check_reach(guide.schedule, *self.levels_guided())
        self.guide = denoiser.counted(guide)

    embeds = False  # two networks have two tables of classes

    @property
    def compiled(self) -> bool:
        return self.denoiser.compiled or self.guide.compiled

    @property
    def stateful(self) -> bool:
        return super().stateful or self.guide.stateful

    def start(self, noise, times: Tensor) -> "Autoguidance":
        fresh = super().start(noise, times)
        there = times if self.same_schedule else self.there(times).unique(sorted=True).flip(0)
        fresh.guide = self.guide.start(noise, there)
        return fresh

    @property
    def has_null(self) -> bool:
        return self.denoiser.has_null and self.guide.has_null

    @property
    def same_schedule(self) -> bool:
        return self.guide.schedule is self.schedule

    def there(self, t: Tensor) -> Tensor:
        """The guide's time of equal log-SNR."""
        return self.guide.schedule.t_of(self.schedule.log_snr(t)).clamp(0, 1)

    def sides(self, x_t: Tensor, t: Tensor, y: Condition | None) -> tuple[Prediction, Prediction]:
        return self.denoiser(x_t, t, y), self.weak(x_t, t, y)

    def weak(self, x_t: Tensor, t: Tensor, y: Condition | None) -> Prediction:
        if self.same_schedule:
            return self.guide(x_t, t, y)
        there = self.there(t)
        here, wanted = (
            torch.hypot(*s.alpha_sigma(time)) for s, time in ((self.schedule, t), (self.guide.schedule, there))
        )
        return self.guide(beside(wanted / here, x_t) * x_t, there, y)


def check_same_data(denoiser: Denoiser, guide: Denoiser) -> None:
    """Raises ValueError where two denoisers are of other data, as far as they say."""
    shapes = [None if part.shape is None else list(part.shape) for part in (denoiser, guide)]
    if None not in shapes and shapes[0] != shapes[1]:
        raise ValueError(f"the guide makes data of shape {shapes[1]}, the model of shape {shapes[0]}")
    if guide.num_classes != denoiser.num_classes:
        raise ValueError(f"the guide has {guide.num_classes} classes, the model {denoiser.num_classes}")


def check_reach(schedule: Schedule, low: float, high: float) -> None:
    """Raises ValueError where a guide's schedule does not reach over the noise levels where guidance acts."""
    ends = math.exp(-schedule.log_snr_max / 2), math.exp(-schedule.log_snr_min / 2)
    if low < high and (low * (1 + 1e-6) < ends[0] or high > ends[1] * (1 + 1e-6)):
        shared = [max(low, ends[0]), min(high, ends[1])]
        narrowed = f"guidance.interval=[{shared[0]:.7g},{shared[1]:.7g}]"
        raise ValueError(
            f"the guide knows noise levels {ends[0]:.6g} to {ends[1]:.6g}, guidance acts from {low:.6g} to {high:.6g}: "
            + (f"narrow it, {narrowed}" if shared[0] < shared[1] else "they share none, take another guide")
        )
