"""Contrast guidance: a strong and a weak side, a rule that combines them, a ramp over noise levels.

With the linear rule, weak + scale (strong - weak): scale 1 is off, the strong side alone; scale 0 is the weak side alone.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..backbones.conditions import Condition, concatenate_conditions, remove_condition
from ..models.protocols import Denoiser, DenoiserWrapper, Prediction
from .ramps import Constant, Ramp
from .rules import Linear, Rule, beside

__all__ = ["CONSTANT", "LINEAR", "ClassifierFree", "Contrast", "Unguided", "check_null"]

LINEAR, CONSTANT = Linear(), Constant()


class Unguided(DenoiserWrapper):
    """The conditional denoiser as it is."""

    passthrough = True

    def __call__(self, x_t: Tensor, t: Tensor, y: Condition | None = None) -> Prediction:
        return self.denoiser(x_t, t, y)


class Contrast(DenoiserWrapper):
    """rule(strong, weak, 1 + (scale - 1) ramp(level)) inside the interval, strong outside.

    The interval is that of Kynkaanniemi et al., 2024, arXiv 2404.07724. Where the scale is 1, and outside the
    interval, the weak side is not evaluated. With t [B] both sides are, and each row follows its own level.

    A subclass says what is weak: `sides`, and `weak` where that alone is cheaper.

    Arguments:
        denoiser: what is guided.
        scale: 1 = off (strong), 0 = weak, above 1 = guided; a rule may read it otherwise.
        interval: (lo, hi) in noise level sigma / alpha: guidance acts where lo < sigma / alpha <= hi.
        rule: what becomes of the two sides.
        ramp: factor of (scale - 1) at each noise level.

    Raises:
        ValueError: a scale that is not finite or that the rule does not take, an interval with lo >= hi, a ramp that does
            not reach over the noise levels where guidance acts.
    """

    def __init__(
        self, denoiser: Denoiser, scale: float, interval: Sequence[float], rule: Rule = LINEAR, ramp: Ramp = CONSTANT
    ):  # fmt: skip
        super().__init__(denoiser)
        if not math.isfinite(scale):
            raise ValueError(f"scale must be a finite number, got {scale}")
        if len(interval) != 2 or not 0 <= interval[0] < interval[1]:
            raise ValueError(f"interval must be a pair 0 <= lo < hi of noise levels sigma/alpha, got {list(interval)}")
        self.scale, self.interval = float(scale), (float(interval[0]), float(interval[1]))
        self.rule, self.ramp, self.memory = rule, ramp, None
        rule.check(denoiser, self.scale)
        low, high = self.levels_guided()
        if low < high:
            ramp.check(low, high)

    @property
    def stateful(self) -> bool:
        return self.rule.stateful or self.denoiser.stateful

    def levels_guided(self) -> tuple[float, float]:
        """The noise levels of the schedule that lie in the interval, lowest and highest; lowest >= highest = none does."""
        ends = math.exp(-self.schedule.log_snr_max / 2), math.exp(-self.schedule.log_snr_min / 2)
        return max(self.interval[0], ends[0]), min(self.interval[1], ends[1])

    def start(self, noise, times: Tensor) -> "Contrast":
        fresh = super().start(noise, times)
        fresh.memory = self.rule.start(times)
        return fresh

    def skips_step(self, t: Tensor) -> bool:
        own = self.rule.skips_step(t, self.memory) and bool(self.inside(t))
        return own or super().skips_step(t)

    def without_skipped_steps(self) -> "Contrast":
        fresh = super().without_skipped_steps()
        fresh.memory = self.rule.without_skipped_steps(self.memory)
        return fresh

    def inside(self, t: Tensor) -> Tensor:
        """Whether guidance acts at t, in the shape of t."""
        low, high = self.interval
        level = self.schedule.noise_level(t)
        return (low < level) & (level <= high)

    def acts_at(self, times: Tensor, labelled: bool) -> bool:
        return bool(self.inside(times).any())

    def scale_at(self, t: Tensor) -> Tensor:
        """The scale inside the interval, 1 outside; float64 in the shape of t."""
        factor = self.ramp(-self.schedule.log_snr(t) / 2)
        ramped = self.rule.ramped(self.scale, factor)
        scale = torch.where(factor == 1, self.scale, ramped)  # exactly `scale` without a ramp
        return torch.where(self.inside(t), scale, 1.0)

    def sides(self, x_t: Tensor, t: Tensor, y: Condition | None) -> tuple[Prediction, Prediction]:
        """The strong and the weak prediction, in one batched call where one network makes both."""
        raise NotImplementedError

    def strong(self, x_t: Tensor, t: Tensor, y: Condition | None) -> Prediction:
        """The strong prediction alone."""
        return self.denoiser(x_t, t, y)

    def weak(self, x_t: Tensor, t: Tensor, y: Condition | None) -> Prediction:
        """The weak prediction alone."""
        return self.sides(x_t, t, y)[1]

    def __call__(self, x_t: Tensor, t: Tensor, y: Condition | None = None) -> Prediction:
        if t.ndim:
            return self.by_row(x_t, t, y)
        if not self.inside(t):
            return self.strong(x_t, t, y)
        scale, facts = self.scale_at(t), (x_t, t, self.schedule, self.memory)
        if scale == 1 and self.rule.strong_at_1:
            return self.rule.alone(self.strong(x_t, t, y), *facts)
        if scale == 0 and self.rule.weak_at_0:
            return self.rule.alone(self.weak(x_t, t, y), *facts)
        strong, weak = self.sides(x_t, t, y)
        return self.rule(strong, weak, scale, *facts)

    def by_row(self, x_t: Tensor, t: Tensor, y: Condition | None) -> Prediction:
        """With t [B]: both sides everywhere, and of each row what its level asks for."""
        if self.rule.stateful:
            raise ValueError(
                f"the rule {type(self.rule).__name__} remembers from level to level, so all samples must be at one noise "
                "level: take another rule, or a sampler with one grid for all"
            )
        strong, weak = self.sides(x_t, t, y)
        inside, scale = beside(self.inside(t), x_t).bool(), beside(self.scale_at(t), x_t)
        guided = self.rule(strong, weak, scale, x_t, t, self.schedule, self.memory)
        if self.rule.strong_at_1:
            guided = chosen(scale == 1, self.rule.alone(strong, x_t, t, self.schedule, self.memory), guided)
        return chosen(inside, guided, strong)


def chosen(rows: Tensor, one: Prediction, other: Prediction) -> Prediction:
    """`one` where rows [B, 1, ...] are True, `other` elsewhere."""
    return Prediction(*(torch.where(rows, a, b) for a, b in zip(one, other)))


def check_null(denoiser: Denoiser, guidance: str) -> None:
    """Raises ValueError where a denoiser knows no condition, or never learned to work without."""
    if not denoiser.conditional:
        raise ValueError(
            f"guidance={guidance} needs a conditional model, and this one has no classes; take guidance=none"
        )
    if not denoiser.has_null:
        raise ValueError(
            f"guidance={guidance} needs a model that also learned to work without its condition, and this one never dropped "
            "its label; train with guidance=cfg (p_uncond=0.1), or take guidance=none"
        )


class ClassifierFree(Contrast):
    """Weak: the same network without its condition.

    Ho & Salimans, "Classifier-Free Diffusion Guidance", 2022, arXiv 2207.12598, eq. 6, with scale = 1 + their w. Both sides
    are one batched call. A row without condition, and y = None, is strong and weak at once.

    Arguments:
        denoiser: conditional denoiser that was trained with the null condition.
        scale: 1 = off (conditional), 0 = unconditional, above 1 = guided.
        interval, rule, ramp: as in `Contrast`.

    Raises:
        ValueError: a denoiser without condition or without a null condition; as `Contrast`.
    """

    needs_null = uses_condition = True

    def __init__(
        self, denoiser: Denoiser, scale: float, interval: Sequence[float], rule: Rule = LINEAR, ramp: Ramp = CONSTANT
    ):  # fmt: skip
        check_null(denoiser, "cfg")
        super().__init__(denoiser, scale, interval, rule, ramp)

    def acts_at(self, times: Tensor, labelled: bool) -> bool:
        return labelled and super().acts_at(times, labelled)

    def sides(self, x_t: Tensor, t: Tensor, y: Condition | None) -> tuple[Prediction, Prediction]:
        if y is None:
            side = self.denoiser(x_t, t, None)
            return side, side
        both = self.denoiser(
            torch.cat([x_t, x_t]),
            torch.cat([t, t]) if t.ndim else t,
            concatenate_conditions([y, remove_condition(y)]),
        )
        strong, weak = zip(*(field.chunk(2) for field in both))
        return Prediction(*strong), Prediction(*weak)

    def weak(self, x_t: Tensor, t: Tensor, y: Condition | None) -> Prediction:
        return self.denoiser(x_t, t, None if y is None else remove_condition(y))
