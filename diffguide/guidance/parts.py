"""Classifier-free guidance with a scale per condition, for models with several conditions."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from ..backbones.conditions import Condition, Several
from ..models.protocols import Denoiser, Prediction, keep_variance
from ..runtime.ranges import check_finite
from ..schedules import EVERYWHERE
from .base import ScaledGuidance, per_row, split_prediction, stack_conditions
from .contrast import check_null

__all__ = ["PartScales"]


class PartScales(ScaledGuidance):
    """D_0 + sum_k w_k (D_k - D_(k-1)), where D_k has the first k conditions of `scales`, in their order.

    Brooks, Holynski & Efros, "InstructPix2Pix", 2023, arXiv 2211.09800, eq. 3, for any number of conditions. D_0 has the
    conditions that `scales` does not name. With all w_k = 1 it is the model with all conditions, off. All predictions are
    one batched call. A learned variance is that of the model with all conditions.

    Arguments:
        denoiser: of a model with `condition=several`, trained with each part dropped.
        scales: condition -> w_k; the order matters.
        interval: (lo, hi] in noise level sigma / alpha; outside, all conditions have scale 1.

    Raises:
        ValueError: a model without these conditions, or without a trained null condition.
    """

    needs_null = uses_condition = True

    def __init__(self, denoiser: Denoiser, scales: Mapping[str, float], interval: Sequence[float] = EVERYWHERE):
        check_null(denoiser, "cfg_parts")
        super().__init__(denoiser, 1.0, interval)
        part = getattr(denoiser.conditioning, "part", None)
        if part is None or not scales:
            raise ValueError(
                "guidance=cfg_parts needs a model with condition=several, and a scale for one of its conditions"
            )
        for name in scales:
            part(name)  # raises for an unknown one
        self.scales = {name: check_finite(f"scales.{name}", scale) for name, scale in scales.items()}

    def acts_at(self, times: Tensor, labelled: bool) -> bool:
        return labelled and super().acts_at(times, labelled)

    def __call__(self, x_t: Tensor, t: Tensor, y: Condition | None = None) -> Prediction:
        inside = self.acts(t)
        if y is None or set(self.scales.values()) == {1.0} or not inside.any():
            return self.denoiser(x_t, t, y)
        if not isinstance(y, Several):
            raise ValueError(f"guidance=cfg_parts needs Several conditions, got {type(y).__name__}")
        names = [name for name in y.parts if name not in self.scales]
        steps: list[Condition] = [y.only(names)]
        for name in self.scales:
            names.append(name)
            steps.append(y.only(names))
        sides = split_prediction(self.denoiser(*stack_conditions(x_t, t, steps)), len(steps))
        x_0, eps = sides[0].x_0, sides[0].eps
        for scale, before, after in zip(self.scales.values(), sides, sides[1:]):
            factor = per_row(1 + (scale - 1) * inside.double(), x_t) if t.ndim else scale
            x_0, eps = x_0 + factor * (after.x_0 - before.x_0), eps + factor * (after.eps - before.eps)
        return keep_variance(Prediction(x_0, eps), sides[-1])
