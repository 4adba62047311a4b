"""Tilted laws: products of powers of the laws of a model, and of exponentials of log-potentials.

    p(x) = prod_i p(x | c_i)^w_i exp(sum_j s_j f_j(x, y)) / Z

Guidance names such a law: classifier-free guidance of scale w means p(x | y)^w p(x)^(1 - w). Its samples have another one.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..backbones.conditions import Condition
from .log_densities import LogDensity
from .predictions import Prediction, WeightedPrediction

__all__ = ["NamesLaw", "PotentialTerm", "Power", "Tilt"]

OWN = None  # the condition of the sample itself


class Power(NamedTuple):
    """p(x | condition)^exponent; the condition is a class, -1 for none, None for that of the sample."""

    exponent: float
    condition: int | None = OWN


class PotentialTerm(NamedTuple):
    """exp(scale f(x, condition)).

    Attributes:
        scale: of f.
        function: f(x, y) -> [B], in nats.
        of_class: whether it reads y; then it is 0 in rows without a class.
        condition: as of a `Power`.
    """

    scale: float
    function: Callable[[Tensor, Any], Tensor]
    of_class: bool = False
    condition: int | None = OWN


class Tilt(NamedTuple):
    """A law up to its normaliser: powers of laws of the innermost model, and potentials.

    Attributes:
        powers: of conditional laws; the default is the law of the model itself.
        potentials: of the clean x.
    """

    powers: tuple[Power, ...] = (Power(1.0),)
    potentials: tuple[PotentialTerm, ...] = ()

    def given(self, condition: int | None) -> "Tilt":
        """The law of samples with this condition; None leaves it open."""
        if condition is OWN:
            return self
        powers = (power._replace(condition=condition) if power.condition is OWN else power for power in self.powers)
        potentials = [term._replace(condition=condition) if term.condition is OWN else term for term in self.potentials]
        return Tilt(
            merge(powers),
            tuple(term for term in potentials if not (term.of_class and term.condition == -1)),
        )

    def raised(self, exponent: float) -> "Tilt":
        """The law to a power."""
        return Tilt(
            tuple(Power(exponent * power.exponent, power.condition) for power in self.powers),
            tuple(term._replace(scale=exponent * term.scale) for term in self.potentials),
        )

    def times(self, other: "Tilt") -> "Tilt":
        """The product of two laws."""
        return Tilt(merge((*self.powers, *other.powers)), (*self.potentials, *other.potentials))

    def describe(self) -> str:
        """The law in words, such as p(x | y)^3 p(x)^-2."""
        names = {None: "p(x | y)", -1: "p(x)"}
        parts = [
            names.get(label, f"p(x | {label})") + ("" if exponent == 1 else f"^{exponent:.6g}")
            for exponent, label in self.powers
        ]
        for term in self.potentials:
            parts.append(f"exp({term.scale:.6g} {getattr(term.function, '__name__', type(term.function).__name__)})")
        return " ".join(parts) or "1"


def merge(powers: Iterable[Power]) -> tuple[Power, ...]:
    """The same product with one power per condition, without those whose exponents cancel."""
    exponents: dict[int | None, float] = {}
    for exponent, label in powers:
        exponents[label] = exponents.get(label, 0.0) + exponent
    return tuple(Power(exponent, label) for label, exponent in exponents.items() if exponent)


class NamesLaw:
    """What a denoiser knows of the law that its guidance names; here that of a model without guidance."""

    def __call__(self, x_t: Tensor, t: Tensor, y: Condition | None = None) -> Prediction:
        raise NotImplementedError

    def tilt(self) -> Tilt | None:
        """The law that guidance names, of the clean laws of the innermost model; None = it names none.

        Plain samplers of a guided model reach another law; `sampler=fkc` corrects that.
        """
        return Tilt()

    def explain_no_law(self) -> str | None:
        """Why the law that guidance names is not known at every noise level, for `predict_weighted`; None = it is."""
        return None

    def predict_weighted(self, x_t: Tensor, t: Tensor, y: Condition | None) -> WeightedPrediction:
        """The prediction with what the weights of `sampler=fkc` need; t 0-d, without gradients."""
        prediction = self(x_t, t, y)
        return WeightedPrediction(prediction, prediction, x_t.new_zeros(len(x_t), dtype=torch.float64))

    def end_value(self, x: Tensor, y: Condition | None) -> Tensor | None:
        """The log-potentials of the law at clean data, [B] float64; None = it has none."""
        return None

    def explain_no_density(self) -> str | None:
        """Why the law that guidance names has no log-density at every noise level; None = it has one."""
        return None if isinstance(self, LogDensity) else "this model has none"

    def guided_log_density(self, x_t: Tensor, t: Tensor, y: Condition | None) -> Tensor:
        """log q_t(x_t) in nats [B], for the law q_t whose score guidance gives at a level; up to a constant per level and y."""
        assert isinstance(self, LogDensity)
        return self.log_density(x_t, t, y)
