"""Weak sides beside "no condition": another condition, several conditions, another network."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..backbones.conditions import Condition, Embedding, concatenate_conditions
from ..class_names import ClassLabel, ClassLabels, class_index, class_indices
from ..models.protocols import Denoiser, Prediction
from ..schedules import Schedule
from .contrast import CONSTANT, LINEAR, Contrast, check_null
from .ramps import Ramp
from .rules import Rule, beside

__all__ = ["Auto", "Compose", "Negative"]


def check_classes(denoiser: Denoiser, guidance: str) -> None:
    """Raises ValueError where a denoiser cannot be told a class."""
    if denoiser.num_classes == 0 or not denoiser.conditional:
        raise ValueError(f"guidance={guidance} needs a model with classes, and this one has none")


def batched(denoiser: Denoiser, x_t: Tensor, t: Tensor, conditions: Sequence[Condition]) -> list[Prediction]:
    """One prediction per condition, by one call."""
    times = len(conditions)
    whole = denoiser(
        torch.cat([x_t] * times), torch.cat([t] * times) if t.ndim else t, concatenate_conditions(conditions)
    )
    return [Prediction(*fields) for fields in zip(*(field.chunk(times) for field in whole))]


class Negative(Contrast):
    """Weak: the same network with a condition that is not wanted, in every row.

    As the negative prompts of text-to-image models; Liu et al. 2022, arXiv 2206.01714, with two terms.

    Arguments:
        denoiser: with class indices for conditions.
        condition: class that is not wanted, by name or index, see `class_index`.
        scale: 1 = off, 0 = the unwanted class, above 1 = away from it.
        interval, rule, ramp: as in `Contrast`.

    Raises:
        ValueError: a model without classes, or without this one; as `Contrast`.
    """

    uses_condition = True

    def __init__(
        self, denoiser: Denoiser, condition: ClassLabel, scale: float, interval: Sequence[float], rule: Rule = LINEAR,
        ramp: Ramp = CONSTANT,
    ):  # fmt: skip
        check_classes(denoiser, "negative")
        self.condition = class_index(condition, denoiser.class_names, "condition", denoiser.num_classes)
        super().__init__(denoiser, scale, interval, rule, ramp)

    def unwanted(self, x_t: Tensor) -> Tensor:
        return torch.full((len(x_t),), self.condition, device=x_t.device)

    def sides(self, x_t: Tensor, t: Tensor, y: Condition | None) -> tuple[Prediction, Prediction]:
        unwanted = self.unwanted(x_t)
        wanted = torch.full_like(unwanted, -1) if y is None else y
        if isinstance(wanted, Embedding):  # as a guidance around this one embedded it
            unwanted = self.denoiser.embed(unwanted)
        strong, weak = batched(self.denoiser, x_t, t, [wanted, unwanted])
        return strong, weak

    def weak(self, x_t: Tensor, t: Tensor, y: Condition | None) -> Prediction:
        return self.denoiser(x_t, t, self.unwanted(x_t))


class Compose(Contrast):
    """Strong: weak + sum_i w_i (D(x_t, c_i) - weak); weak: the same network without condition.

    Several conditions at once (AND), or not (NOT, a negative weight). Liu, Li, Du, Torralba, Tenenbaum, "Compositional
    Visual Generation with Composable Diffusion Models", 2022, arXiv 2206.01714, section 4. The conditions take the
    place of y in every row, and all are one batched call; y means nothing to what is around it.

    Arguments:
        denoiser: with class indices for conditions, trained with the null condition.
        conditions: classes, by name or index, at least one, see `class_indices`.
        weights: w_i, one for each; 1 = as it is, negative = NOT.
        scale: of the whole sum: 1 = the sum, 0 = unconditional.
        interval, rule, ramp: as in `Contrast`.

    Raises:
        ValueError: no such classes, another number of weights, a model without null condition; as `Contrast`.
    """

    needs_null = uses_condition = True
    conditional = embeds = False

    def __init__(
        self, denoiser: Denoiser, conditions: ClassLabels, weights: Sequence[float], scale: float,
        interval: Sequence[float], rule: Rule = LINEAR, ramp: Ramp = CONSTANT,
    ):  # fmt: skip
        check_null(denoiser, "compose")
        check_classes(denoiser, "compose")
        self.conditions = class_indices(conditions, denoiser.class_names, "conditions", denoiser.num_classes)
        if not self.conditions or len(self.conditions) != len(weights) or not all(map(math.isfinite, weights)):
            raise ValueError(
                f"conditions and weights must be as many, at least one of each, and the weights finite, got "
                f"{conditions} and {list(weights)}"
            )
        self.weights = [float(weight) for weight in weights]
        super().__init__(denoiser, scale, interval, rule, ramp)

    def rows(self, x_t: Tensor, condition: int) -> Tensor:
        return torch.full((len(x_t),), condition, device=x_t.device)

    def sides(self, x_t: Tensor, t: Tensor, y: Condition | None) -> tuple[Prediction, Prediction]:
        weak, *parts = batched(
            self.denoiser, x_t, t, [self.rows(x_t, condition) for condition in [-1, *self.conditions]]
        )
        terms = zip(weak, *parts)
        strong = (w + sum(weight * (c - w) for weight, c in zip(self.weights, cs)) for w, *cs in terms)
        return Prediction(*strong), weak

    def strong(self, x_t: Tensor, t: Tensor, y: Condition | None) -> Prediction:
        if self.weights == [1.0]:
            return self.denoiser(x_t, t, self.rows(x_t, self.conditions[0]))
        return self.sides(x_t, t, y)[0]

    def weak(self, x_t: Tensor, t: Tensor, y: Condition | None) -> Prediction:
        return self.denoiser(x_t, t, self.rows(x_t, -1))


class Auto(Contrast):
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

    def start(self, noise, times: Tensor) -> "Auto":
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
