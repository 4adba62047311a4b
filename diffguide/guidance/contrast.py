"""Contrast guidance: a strong and a weak prediction, a rule that combines them, a ramp over noise levels.

With the linear rule, weak + scale (strong - weak): scale 1 is off, the strong prediction alone; scale 0 is the weak one alone.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from ..backbones.conditions import Condition, concatenate_conditions, remove_condition
from ..class_names import ConditionValue
from ..models.protocols import Denoiser, DenoiserWrapper, Prediction, keep_variance
from ..randomness import Noise
from ..schedules import EVERYWHERE, TimeTable, time_key
from .base import ScaledGuidance, per_row, split_prediction, stack_rows
from .named import name_condition, name_nothing
from .ramps import Constant, Ramp
from .rules import Linear, Rule

__all__ = ["CONSTANT_RAMP", "LINEAR_RULE", "ClassifierFree", "Contrast", "Unguided"]

LINEAR_RULE = Linear()
CONSTANT_RAMP = Constant()


class Unguided(DenoiserWrapper):
    """No guidance: `Unguided(denoiser)` is the denoiser itself."""

    def __new__(cls, denoiser: Denoiser) -> Denoiser:  # type: ignore[misc]  # returns no instance of this class
        return denoiser


class Strength(NamedTuple):
    """Guidance at one time.

    Attributes:
        acts: whether its noise level lies in the interval.
        number: the scale.
        scale: the same, 0-d float64.
        casts: the same in other precisions.
    """

    acts: bool
    number: float
    scale: Tensor
    casts: dict[torch.dtype, Tensor]

    def scale_as(self, dtype: torch.dtype) -> Tensor:
        """The scale to multiply tensors of a type with: 0-d, a product with which needs no conversion."""
        if dtype not in self.casts:
            self.casts[dtype] = self.scale.to(dtype)
        return self.casts[dtype]


OUTSIDE = Strength(False, 1.0, torch.tensor(1.0, dtype=torch.float64), {})


class Contrast(ScaledGuidance):
    """rule(strong, weak, 1 + (scale - 1) ramp(level)) inside the interval, strong outside.

    The interval is that of Kynkaanniemi et al., 2024, arXiv 2404.07724. The weak prediction is not evaluated where the
    scale is 1 or outside the interval. With t [B] both are evaluated, and each row follows its own level. A learned variance
    is that of the strong prediction, as in ADM and DiT, or that of the weak one where it alone is evaluated.

    A subclass defines `predict_both`, and `predict_weak` where that alone is cheaper.

    Attributes:
        option: its name in the configuration, for messages.

    Arguments:
        denoiser: what is guided.
        scale: 1 = off (strong), 0 = weak, above 1 = guided; a rule may define it otherwise.
        interval: (lo, hi] in noise level sigma / alpha.
        rule: how the two predictions are combined.
        ramp: factor of (scale - 1) at each noise level.

    Raises:
        ValueError: a scale that the rule does not take, or a ramp that is undefined at a noise level where guidance acts.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        scale: float = 2.0,
        interval: Sequence[float] = EVERYWHERE,
        rule: Rule = LINEAR_RULE,
        ramp: Ramp = CONSTANT_RAMP,
    ):
        if self.needs_null:
            check_null(denoiser, rule.option if self.option == ClassifierFree.option and rule.option else self.option)
        super().__init__(denoiser, scale, interval)
        self.rule, self.ramp = rule, ramp
        self.memory: Any = None
        self.table: TimeTable | None = None  # of a run
        self.full: Strength | None = None  # in a run without a ramp
        rule.check(denoiser, self.scale)
        low, high = self.guided_range()
        if low < high:
            ramp.check(low, high)

    option = ""
    stateful = property(lambda self: self.rule.stateful or self.denoiser.stateful)

    def guided_range(self) -> tuple[float, float]:
        """The lowest and highest noise level of the schedule in the interval; lowest >= highest if there is none."""
        low, high = self.schedule.noise_level_range
        return max(self.interval.low, low), min(self.interval.high, high)

    def start(self, noise: Noise | None, times: Tensor) -> Self:
        fresh = super().start(noise, times)
        fresh.memory = self.rule.start(times)
        fresh.table = TimeTable()
        fresh.full = None
        if self.ramp.always_full:
            fresh.full = Strength(True, self.scale, torch.tensor(self.scale, dtype=torch.float64), {})
        return fresh

    def skips_step(self, t: Tensor) -> bool:
        own = self.rule.skips_step(t, self.memory) and bool(self.acts(t))
        return own or super().skips_step(t)

    def without_skipped_steps(self) -> Self:
        fresh = super().without_skipped_steps()
        fresh.memory = self.rule.without_skipped_steps(self.memory)
        return fresh

    def scale_at(self, t: Tensor) -> Tensor:
        """The scale inside the interval, 1 outside; float64 in the shape of t."""
        return torch.where(self.acts(t), self.ramped_scale(-self.schedule.log_snr(t) / 2), 1.0)

    def ramped_scale(self, log_level: Tensor) -> Tensor:
        """The scale at a log noise level, as if it were inside the interval."""
        factor = self.ramp(log_level)
        if self.ramp.of_whole_scale:
            return self.scale * factor
        return torch.where(factor == 1, self.scale, self.rule.apply_ramp(self.scale, factor))  # exactly `scale` at 1

    def strength_at(self, t: Tensor) -> Strength:
        """The guidance at a time, 0-d; in a run computed once per time."""
        time = None if self.table is None else time_key(t)
        if self.table is None or time is None:
            return self.compute_strength(t)
        return self.table.get(time) or self.table.add(time, self.compute_strength(t))

    def compute_strength(self, t: Tensor) -> Strength:
        level = self.schedule.levels(t)
        if not self.interval.contains(float(level.noise_level)):
            return OUTSIDE
        if self.full is not None:
            return self.full
        scale = self.ramped_scale(level.log_level)
        return Strength(True, float(scale), scale, {})

    def predict_both(self, x_t: Tensor, t: Tensor, y: Condition | None) -> tuple[Prediction, Prediction]:
        """The strong and the weak prediction, in one batched call where one network makes both."""
        raise NotImplementedError

    def predict_strong(self, x_t: Tensor, t: Tensor, y: Condition | None) -> Prediction:
        """The strong prediction alone."""
        return self.denoiser(x_t, t, y)

    def predict_weak(self, x_t: Tensor, t: Tensor, y: Condition | None) -> Prediction:
        """The weak prediction alone."""
        return self.predict_both(x_t, t, y)[1]

    def __call__(self, x_t: Tensor, t: Tensor, y: Condition | None = None) -> Prediction:
        if t.ndim:
            return self.predict_rows(x_t, t, y)
        strength = self.strength_at(t)
        if not strength.acts:
            return self.predict_strong(x_t, t, y)
        facts = (x_t, t, self.schedule, self.memory)
        if strength.number == 1 and self.rule.strong_at_1:
            side = self.predict_strong(x_t, t, y)
            return keep_variance(self.rule.finish(side, *facts), side)
        if strength.number == 0 and self.rule.weak_at_0:
            side = self.predict_weak(x_t, t, y)
            return keep_variance(self.rule.finish(side, *facts), side)
        strong, weak = self.predict_both(x_t, t, y)
        scale = strength.scale_as(strong.dtype) if self.rule.only_multiplies else strength.scale
        return keep_variance(self.rule(strong, weak, scale, *facts), strong)

    def guide_strong(self, strong: Prediction, x_t: Tensor, t: Tensor, y: Condition | None) -> Prediction:
        """The guided prediction, where the strong one is known: only the weak one is evaluated; `strong` where it is off."""
        if t.ndim:
            return self.combine_rows(strong, self.predict_weak(x_t, t, y), x_t, t)
        strength = self.strength_at(t)
        if not strength.acts or strength.number == 1 and self.rule.strong_at_1:
            return strong
        weak = self.predict_weak(x_t, t, y)
        return self.rule(strong, weak, strength.scale, x_t, t, self.schedule, self.memory)

    def predict_rows(self, x_t: Tensor, t: Tensor, y: Condition | None) -> Prediction:
        """For t [B]: both predictions for all rows, combined by each row's own level."""
        if self.rule.stateful:
            raise ValueError(
                f"the rule {type(self.rule).__name__} depends on earlier noise levels, so all samples must have the same one: "
                "take another rule, or a sampler with one grid for all samples"
            )
        return self.combine_rows(*self.predict_both(x_t, t, y), x_t, t)

    def combine_rows(self, strong: Prediction, weak: Prediction, x_t: Tensor, t: Tensor) -> Prediction:
        """The guided prediction from both, each row by its own level."""
        inside = per_row(self.acts(t), x_t).bool()
        scale = per_row(self.scale_at(t), x_t)
        guided = self.rule(strong, weak, scale, x_t, t, self.schedule, self.memory)
        if self.rule.strong_at_1:
            finished = self.rule.finish(strong, x_t, t, self.schedule, self.memory)
            guided = select_rows(scale == 1, finished, guided)
        return keep_variance(select_rows(inside, guided, strong), strong)


def select_rows(rows: Tensor, one: Prediction, other: Prediction) -> Prediction:
    """`one` where rows [B, 1, ...] are True, `other` elsewhere."""
    return Prediction(torch.where(rows, one.x_0, other.x_0), torch.where(rows, one.eps, other.eps))


def check_null(denoiser: Denoiser, guidance: str) -> None:
    """Raises ValueError for a denoiser without a condition, or without a trained null condition."""
    if not denoiser.conditional:
        raise ValueError(
            f"guidance={guidance} needs a model with classes, and this one has none; take guidance=none, or autoguidance, pag, "
            "seg, slg or a potential, which need none"
        )
    if not denoiser.has_null:
        raise ValueError(
            f"guidance={guidance} needs a model trained with label dropout, and this one was trained without; train with "
            "guidance=cfg (p_uncond=0.1), take guidance=none, or for a folder of diffusers with such a row say null_class=<row>"
        )


class ClassifierFree(Contrast):
    """Weak: the same network without its condition.

    Ho & Salimans, "Classifier-Free Diffusion Guidance", 2022, arXiv 2207.12598, eq. 6, with scale = 1 + their w. Both
    predictions are one batched call. In a row without condition, and for y = None, they are equal.

    Arguments:
        denoiser: conditional denoiser that was trained with the null condition.
        scale: 1 = off (conditional), 0 = unconditional, above 1 = guided.
        interval, rule, ramp: as in `Contrast`.
        negative: condition of the weak side, in place of none: a class or a text, as of `NegativeCondition`; None = none.

    Raises:
        ValueError: a denoiser without a condition, without a trained null condition, or without the negative one.
    """

    option = "cfg"
    needs_null = uses_condition = True

    def __init__(
        self,
        denoiser: Denoiser,
        scale: float = 2.0,
        interval: Sequence[float] = EVERYWHERE,
        rule: Rule = LINEAR_RULE,
        ramp: Ramp = CONSTANT_RAMP,
        negative: ConditionValue = None,
    ):
        super().__init__(denoiser, scale, interval, rule, ramp)
        self.negative = None if negative is None else name_condition(denoiser, negative, "negative")
        self.nothing = None if negative is None else name_nothing(denoiser)

    def acts_at(self, times: Tensor, labelled: bool) -> bool:
        return (labelled or self.negative is not None) and super().acts_at(times, labelled)

    def predict_both(self, x_t: Tensor, t: Tensor, y: Condition | None) -> tuple[Prediction, Prediction]:
        if y is None and self.nothing is not None:
            y = self.nothing.rows(x_t, self.denoiser)
        if y is None:
            side = self.denoiser(x_t, t, None)
            return side, side
        both = self.denoiser(*stack_rows(x_t, t, 2), self.strong_and_weak(x_t, y))
        strong, weak = split_prediction(both, 2)
        return strong, weak

    def strong_and_weak(self, x_t: Tensor, y: Condition) -> Condition:
        """The rows of y, then those of the weak side; in a run computed once, as long as y is the same."""
        if self.table is None or isinstance(y, Tensor) and y.is_inference():
            return concatenate_conditions([y, self.weak_rows(x_t, y)])
        version = y._version if isinstance(y, Tensor) else 0  # nobody writes into the tensors of other conditions
        before = self.table.get("y")
        if before is None or before[0] is not y or before[1] != version:
            before = self.table.add("y", (y, version, concatenate_conditions([y, self.weak_rows(x_t, y)])))
        return before[2]

    def weak_rows(self, x_t: Tensor, y: Condition) -> Condition:
        """The rows of the weak side: y without its condition, or the negative condition."""
        return remove_condition(y) if self.negative is None else self.negative.rows(x_t, self.denoiser, like=y)

    def predict_weak(self, x_t: Tensor, t: Tensor, y: Condition | None) -> Prediction:
        if self.negative is not None:
            return self.denoiser(x_t, t, self.negative.rows(x_t, self.denoiser))
        return self.denoiser(x_t, t, None if y is None else remove_condition(y))
