"""Contrasts between conditions: away from one class, or several classes at once."""

import math
from collections.abc import Sequence

from torch import Tensor

from ..backbones.conditions import Condition
from ..class_names import ConditionValue, ConditionValues
from ..models.protocols import Denoiser, Prediction, keep_variance
from ..models.tilts import Tilt
from ..schedules import EVERYWHERE
from .base import split_prediction, stack_conditions
from .contrast import CONSTANT_RAMP, LINEAR_RULE, Contrast
from .named import name_condition, name_conditions, name_nothing
from .ramps import Ramp
from .rules import Rule

__all__ = ["ClassComposition", "NegativeCondition"]


def check_named(denoiser: Denoiser, guidance: str) -> None:
    """Raises ValueError for a denoiser without conditions that have names: classes, texts, ..."""
    if not denoiser.conditional or denoiser.num_classes == 0 and denoiser.conditioning is None:
        raise ValueError(f"guidance={guidance} needs a model with classes, and this one has none")


class NegativeCondition(Contrast):
    """Weak: the same network with an unwanted condition, in every row.

    As the negative prompts of text-to-image models; Liu et al. 2022, arXiv 2206.01714, with two terms.

    Arguments:
        denoiser: with conditions that have names.
        condition: unwanted class, by name or index, see `class_index`; or a text, or another value that its conditioning reads.
        scale: 1 = off, 0 = the unwanted class, above 1 = away from it.
        interval, rule, ramp: as in `Contrast`.

    Raises:
        ValueError: a model without classes, or without this one.
    """

    option = "negative"
    uses_condition = has_law = True

    def __init__(
        self,
        denoiser: Denoiser,
        condition: ConditionValue,
        scale: float = 2.0,
        interval: Sequence[float] = EVERYWHERE,
        rule: Rule = LINEAR_RULE,
        ramp: Ramp = CONSTANT_RAMP,
    ):
        check_named(denoiser, "negative")
        self.unwanted, self.nothing = name_condition(denoiser, condition, "condition"), name_nothing(denoiser)
        self.condition = self.unwanted.condition
        super().__init__(denoiser, scale, interval, rule, ramp)

    def tilt_sides(self, inner: Tilt) -> tuple[Tilt, Tilt] | None:
        return (inner, inner.given(self.condition)) if isinstance(self.condition, int) else None

    def predict_both(self, x_t: Tensor, t: Tensor, y: Condition | None) -> tuple[Prediction, Prediction]:
        wanted = self.nothing.rows(x_t, self.denoiser) if y is None else y
        unwanted = self.unwanted.rows(x_t, self.denoiser, like=wanted)
        both = self.denoiser(*stack_conditions(x_t, t, [wanted, unwanted]))
        strong, weak = split_prediction(both, 2)
        return strong, weak

    def predict_weak(self, x_t: Tensor, t: Tensor, y: Condition | None) -> Prediction:
        return self.denoiser(x_t, t, self.unwanted.rows(x_t, self.denoiser))


class ClassComposition(Contrast):
    """Strong: weak + sum_i w_i (D(x_t, c_i) - weak); weak: the same network without condition.

    Conjunction (AND) of conditions, or negation (NOT, a negative weight). Liu, Li, Du, Torralba, Tenenbaum, "Compositional
    Visual Generation with Composable Diffusion Models", 2022, arXiv 2206.01714, section 4. The conditions replace y
    in every row, in one batched call; guidance around this one cannot use y. A learned variance is that of the first one.

    Arguments:
        denoiser: with conditions that have names, trained with the null condition.
        conditions: at least one: classes, by name or index, see `class_indices`; or texts, or other values that its
            conditioning reads.
        weights: w_i, one for each; 1 = plain, negative = NOT.
        scale: of the whole sum: 1 = the sum, 0 = unconditional.
        interval, rule, ramp: as in `Contrast`.

    Raises:
        ValueError: a model without these classes or without a trained null condition.
    """

    option = "compose"
    needs_null = uses_condition = has_law = True
    conditional = embeds = False

    def __init__(
        self,
        denoiser: Denoiser,
        conditions: ConditionValues,
        weights: Sequence[float],
        scale: float = 2.0,
        interval: Sequence[float] = EVERYWHERE,
        rule: Rule = LINEAR_RULE,
        ramp: Ramp = CONSTANT_RAMP,
    ):
        super().__init__(denoiser, scale, interval, rule, ramp)
        check_named(denoiser, self.option)
        self.terms, self.nothing = name_conditions(denoiser, conditions, "conditions"), name_nothing(denoiser)
        self.conditions = [term.condition for term in self.terms]
        if not self.conditions or len(self.conditions) != len(weights) or not all(map(math.isfinite, weights)):
            raise ValueError(
                "conditions and weights must be lists of one length, at least 1, with finite weights, got "
                f"{conditions} and {list(weights)}"
            )
        self.weights = [float(weight) for weight in weights]

    def tilt_sides(self, inner: Tilt) -> tuple[Tilt, Tilt] | None:
        """weak prod_i (p_i / weak)^w_i, and weak."""
        weak = inner.given(-1)
        strong = weak.raised(1 - sum(self.weights))
        for weight, condition in zip(self.weights, self.conditions):
            if not isinstance(condition, int):
                return None
            strong = strong.times(inner.given(condition).raised(weight))
        return strong, weak

    def predict_all(self, x_t: Tensor, t: Tensor) -> list[Prediction]:
        """The predictions without condition and under each condition."""
        conditions = [named.rows(x_t, self.denoiser) for named in [self.nothing, *self.terms]]
        return split_prediction(self.denoiser(*stack_conditions(x_t, t, conditions)), len(conditions))

    def predict_powers(
        self, x_t: Tensor, t: Tensor, y: Condition | None
    ) -> tuple[Sequence[Prediction], Sequence[float]]:
        exponents = [self.scale * weight for weight in self.weights]
        return self.predict_all(x_t, t), [1 - sum(exponents), *exponents]

    def predict_both(self, x_t: Tensor, t: Tensor, y: Condition | None) -> tuple[Prediction, Prediction]:
        weak, *parts = self.predict_all(x_t, t)
        terms = zip(weak, *parts)
        strong = (w + sum(weight * (c - w) for weight, c in zip(self.weights, cs)) for w, *cs in terms)
        return keep_variance(Prediction(*strong), parts[0]), weak

    def predict_strong(self, x_t: Tensor, t: Tensor, y: Condition | None) -> Prediction:
        if self.weights == [1.0]:
            return self.denoiser(x_t, t, self.terms[0].rows(x_t, self.denoiser))
        return self.predict_both(x_t, t, y)[0]

    def predict_weak(self, x_t: Tensor, t: Tensor, y: Condition | None) -> Prediction:
        return self.denoiser(x_t, t, self.nothing.rows(x_t, self.denoiser))
