"""Counters of evaluations of a model and of its potentials: the cost of a run or a measurement."""

import copy
from typing import TypeVar, overload

from torch import Tensor

from ..backbones.conditions import Condition
from ..backbones.perturbations import Perturbation
from .preconditioned import Preconditioned
from .protocols import Denoiser, DenoiserWrapper, Energy, Prediction, Tally, is_guided

__all__ = ["EvaluationCounter", "as_protocol", "count_evaluations", "count_potential", "unwrap", "without_guidance"]

Protocol = TypeVar("Protocol")
Model = TypeVar("Model", bound=Denoiser | Energy)


class EvaluationCounter(DenoiserWrapper):
    """Counts evaluations of a denoiser, one per row: two conditions of B images are 2 B.

    Arguments:
        denoiser: the denoiser to count.
        tally: the counters to increase; None = new ones.
    """

    passthrough = True
    tally: Tally

    def __init__(self, denoiser: Denoiser, tally: Tally | None = None):
        super().__init__(denoiser)
        self.tally = Tally() if tally is None else tally

    def __call__(self, x_t: Tensor, t: Tensor, y: Condition | None = None) -> Prediction:
        self.tally.evaluations += len(x_t)
        return self.denoiser(x_t, t, y)

    def predict_perturbed(self, x_t: Tensor, t: Tensor, y: Condition | None, perturbation: Perturbation) -> Prediction:
        self.tally.evaluations += len(x_t)
        return self.denoiser.predict_perturbed(x_t, t, y, perturbation)

    def guided_log_density(self, x_t: Tensor, t: Tensor, y: Condition | None) -> Tensor:
        self.tally.evaluations += len(x_t)
        return self.denoiser.guided_log_density(x_t, t, y)


def count_evaluations(model: Model, tally: Tally | None = None) -> tuple[Model, Tally]:
    """A copy of the model that counts its evaluations in a tally, and the tally; None = a new one.

    A network counts its own evaluations, and the sampler counts those of an energy; other denoisers are wrapped.
    """
    tally = Tally() if tally is None else tally
    if not isinstance(model, Preconditioned | Energy):
        return EvaluationCounter(model, tally), tally  # type: ignore[return-value]
    counted = copy.copy(model)
    counted.tally = tally
    return counted, tally


def count_potential(denoiser: Denoiser, rows: int) -> None:
    """Adds `rows` evaluations of a classifier or another potential to the counters of the denoiser, if it has any."""
    if denoiser.tally is not None:
        denoiser.tally.potential_evaluations += rows


def as_protocol(model: Denoiser | Energy, protocol: type[Protocol]) -> Protocol | None:
    """The model, or the one that its passthrough wrappers wrap, if it implements the protocol; else None."""
    while isinstance(model, DenoiserWrapper) and model.passthrough and not isinstance(model, protocol):
        model = model.denoiser
    return model if isinstance(model, protocol) else None


def without_guidance(model: Denoiser) -> Denoiser:
    """The model inside all guidance, which still counts its evaluations."""
    while is_guided(model):
        assert isinstance(model, DenoiserWrapper)
        model = model.denoiser
    return model


@overload
def unwrap(model: Denoiser) -> Denoiser: ...
@overload
def unwrap(model: Energy) -> Energy: ...
def unwrap(model: Denoiser | Energy) -> Denoiser | Energy:
    """The model inside all guidance."""
    while isinstance(model, DenoiserWrapper):
        model = model.denoiser
    return model
