"""The laws of contrasts: strong^scale weak^(1 - scale), and what weights of particles need to reach them."""

import copy
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from ..backbones.conditions import Condition
from ..models.protocols import DenoiserWrapper, Prediction, WeightedPrediction, is_guided, keep_variance
from ..models.tilts import Tilt
from ..schedules import EVERYWHERE
from .base import ScaledGuidance
from .ramps import Ramp
from .rules import Linear, Rule

__all__ = ["ContrastLaw", "LogDensityPrediction", "weigh"]


class ContrastLaw(ScaledGuidance):
    """The base of contrasts as laws.

    Attributes:
        option: its name in the configuration, for messages.
        has_law: whether its weak side is a denoiser of a law, at every noise level.
    """

    rule: Rule
    ramp: Ramp
    option = ""
    has_law = False

    def tilt(self) -> Tilt | None:
        """strong^scale weak^(1 - scale), whatever the rule, the ramp and the interval make of it."""
        inner = self.denoiser.tilt()
        sides = None if inner is None or not self.rule.names_powers else self.tilt_sides(inner)
        return None if sides is None else sides[0].raised(self.scale).times(sides[1].raised(1 - self.scale))

    def tilt_sides(self, inner: Tilt) -> tuple[Tilt, Tilt] | None:
        """The laws of the strong and the weak side; None = one of them has none, or is that of another model."""
        return None

    def explain_no_law(self) -> str | None:
        if not self.has_law:
            return f"guidance={self.option or type(self).__name__.lower()} has none"
        if type(self.rule) is not Linear:
            name = self.rule.option or type(self.rule).__name__
            return f"the rule {name} departs from it; take guidance/rule=linear, as guidance=cfg has"
        if not self.ramp.always_full or self.interval != EVERYWHERE:
            return "a scale that changes with the noise level has none; take guidance/ramp=constant and no guidance.interval"
        if is_guided(self.denoiser):
            return "a contrast around other guidance has none; list potentials after it"
        return None

    def predict_weighted(self, x_t: Tensor, t: Tensor, y: Condition | None) -> WeightedPrediction:
        sides, exponents = self.predict_powers(x_t, t, y)
        return weigh(sides, exponents)

    def predict_powers(
        self, x_t: Tensor, t: Tensor, y: Condition | None
    ) -> tuple[Sequence[Prediction], Sequence[float]]:
        """Predictions of laws, and the exponents of these laws, whose sum is 1; the learned variance is that of the last."""
        if self.scale in (0.0, 1.0):  # one side is not evaluated
            return [self(x_t, t, y)], [1.0]
        strong, weak = self.predict_both(x_t, t, y)
        return [weak, strong], [1 - self.scale, self.scale]

    def guided_log_density(self, x_t: Tensor, t: Tensor, y: Condition | None) -> Tensor:
        """sum_i w_i log p_i(x_t), of the sides of the predictions, which the same code evaluates."""
        sides, exponents = self.of_log_densities().predict_powers(x_t, t, y)
        return torch.stack([exponent * side.x_0 for side, exponent in zip(sides, exponents)]).sum(0)

    def of_log_densities(self) -> Self:
        """The same contrast of `LogDensityPrediction`s."""
        fresh = copy.copy(self)
        fresh.denoiser = LogDensityPrediction(self.denoiser)
        return fresh

    def predict_both(self, x_t: Tensor, t: Tensor, y: Condition | None) -> tuple[Prediction, Prediction]:
        """The strong and the weak prediction, in one batched call where one network makes both."""
        raise NotImplementedError


class LogDensityPrediction(DenoiserWrapper):
    """log p(x_t) [B] in place of both fields of a prediction."""

    passthrough = True

    def __call__(self, x_t: Tensor, t: Tensor, y: Condition | None = None) -> Prediction:
        value = self.denoiser.guided_log_density(x_t, t, y)
        return Prediction(value, value)


def weigh(sides: Sequence[Prediction], exponents: Sequence[float]) -> WeightedPrediction:
    """The prediction of a product of powers, sum_i w_i eps_i, and its spread, for exponents w_i that add up to 1.

    With d_i = eps_i - eps_0 the spread is sum_i w_i |d_i|^2 - |sum_i w_i d_i|^2, without the digits that |eps_i|^2 loses.
    """
    first, *others = sides
    x_0, eps = first.x_0, first.eps
    shift = torch.zeros_like(eps)
    spread = x_0.new_zeros(len(x_0), dtype=torch.float64)
    for side, exponent in zip(others, exponents[1:]):
        difference = side.eps - first.eps
        x_0, shift = x_0 + exponent * (side.x_0 - first.x_0), shift + exponent * difference
        spread = spread + exponent * squared_norm(difference)
    guided = keep_variance(Prediction(x_0, eps + shift), sides[-1])
    return WeightedPrediction(guided, guided, spread - squared_norm(shift))


def squared_norm(x: Tensor) -> Tensor:
    """|x|^2 per sample, [B] float64."""
    return x.flatten(1).double().square().sum(1)
