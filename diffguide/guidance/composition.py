"""Contrasts between conditions: away from one class, or several classes at once."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..backbones.conditions import Condition, Embedding
from ..class_names import ClassLabel, ClassLabels, class_index, class_indices
from ..models.protocols import Denoiser, Prediction, keep_variance
from ..schedules import EVERYWHERE
from .base import split_prediction, stack_conditions
from .contrast import CONSTANT_RAMP, LINEAR_RULE, Contrast
from .ramps import Ramp
from .rules import Rule

__all__ = ["ClassComposition", "NegativeCondition"]


def check_classes(denoiser: Denoiser, guidance: str) -> None:
    """Raises ValueError for a denoiser without classes."""
    if denoiser.num_classes == 0 or not denoiser.conditional:
        raise ValueError(f"guidance={guidance} needs a model with classes, and this one has none")


def fill_rows(x_t: Tensor, condition: int) -> Tensor:
    """One class, or -1, for every row of x_t."""
    return torch.full((len(x_t),), condition, device=x_t.device)


class NegativeCondition(Contrast):
    """Weak: the same network with an unwanted condition, in every row.

    As the negative prompts of text-to-image models; Liu et al. 2022, arXiv 2206.01714, with two terms.

    Arguments:
        denoiser: with class indices for conditions.
        condition: unwanted class, by name or index, see `class_index`.
        scale: 1 = off, 0 = the unwanted class, above 1 = away from it.
        interval, rule, ramp: as in `Contrast`.

    Raises:
        ValueError: a model without classes, or without this one.
    """

    uses_condition = True

    def __init__(
        self,
        denoiser: Denoiser,
        condition: ClassLabel,
        scale: float = 2.0,
        interval: Sequence[float] = EVERYWHERE,
        rule: Rule = LINEAR_RULE,
        ramp: Ramp = CONSTANT_RAMP,
    ):
        check_classes(denoiser, "negative")
        self.condition = class_index(condition, denoiser.class_names, "condition", denoiser.num_classes)
        super().__init__(denoiser, scale, interval, rule, ramp)

    def predict_both(self, x_t: Tensor, t: Tensor, y: Condition | None) -> tuple[Prediction, Prediction]:
        unwanted: Condition = fill_rows(x_t, self.condition)
        wanted = fill_rows(x_t, -1) if y is None else y
        if isinstance(wanted, Embedding):  # guidance around this one embedded it
            unwanted = self.denoiser.embed(unwanted)
        both = self.denoiser(*stack_conditions(x_t, t, [wanted, unwanted]))
        strong, weak = split_prediction(both, 2)
        return strong, weak

    def predict_weak(self, x_t: Tensor, t: Tensor, y: Condition | None) -> Prediction:
        return self.denoiser(x_t, t, fill_rows(x_t, self.condition))


class ClassComposition(Contrast):
    """Strong: weak + sum_i w_i (D(x_t, c_i) - weak); weak: the same network without condition.

    Conjunction (AND) of conditions, or negation (NOT, a negative weight). Liu, Li, Du, Torralba, Tenenbaum, "Compositional
    Visual Generation with Composable Diffusion Models", 2022, arXiv 2206.01714, section 4. The conditions replace y
    in every row, in one batched call; guidance around this one cannot use y. A learned variance is that of the first one.

    Arguments:
        denoiser: with class indices for conditions, trained with the null condition.
        conditions: classes, by name or index, at least one, see `class_indices`.
        weights: w_i, one for each; 1 = plain, negative = NOT.
        scale: of the whole sum: 1 = the sum, 0 = unconditional.
        interval, rule, ramp: as in `Contrast`.

    Raises:
        ValueError: a model without these classes or without a trained null condition.
    """

    option = "compose"
    needs_null = uses_condition = True
    conditional = embeds = False

    def __init__(
        self,
        denoiser: Denoiser,
        conditions: ClassLabels,
        weights: Sequence[float],
        scale: float = 2.0,
        interval: Sequence[float] = EVERYWHERE,
        rule: Rule = LINEAR_RULE,
        ramp: Ramp = CONSTANT_RAMP,
    ):
        super().__init__(denoiser, scale, interval, rule, ramp)
        check_classes(denoiser, self.option)
        self.conditions = class_indices(conditions, denoiser.class_names, "conditions", denoiser.num_classes)
        if not self.conditions or len(self.conditions) != len(weights) or not all(map(math.isfinite, weights)):
            raise ValueError(
                "conditions and weights must be lists of one length, at least 1, with finite weights, got "
                f"{conditions} and {list(weights)}"
            )
        self.weights = [float(weight) for weight in weights]

    def predict_both(self, x_t: Tensor, t: Tensor, y: Condition | None) -> tuple[Prediction, Prediction]:
        conditions = [fill_rows(x_t, condition) for condition in [-1, *self.conditions]]
        weak, *parts = split_prediction(self.denoiser(*stack_conditions(x_t, t, conditions)), len(conditions))
        terms = zip(weak, *parts)
        strong = (w + sum(weight * (c - w) for weight, c in zip(self.weights, cs)) for w, *cs in terms)
        return keep_variance(Prediction(*strong), parts[0]), weak

    def predict_strong(self, x_t: Tensor, t: Tensor, y: Condition | None) -> Prediction:
        if self.weights == [1.0]:
            return self.denoiser(x_t, t, fill_rows(x_t, self.conditions[0]))
        return self.predict_both(x_t, t, y)[0]

    def predict_weak(self, x_t: Tensor, t: Tensor, y: Condition | None) -> Prediction:
        return self.denoiser(x_t, t, fill_rows(x_t, -1))
