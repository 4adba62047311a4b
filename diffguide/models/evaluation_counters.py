"""Counters of evaluations of a model and of its potentials: the cost of a run or a measurement."""

import copy
from typing import TypeVar

from torch import Tensor

from ..backbones.conditions import Condition
from ..backbones.perturbations import Perturbation
from .protocols import Denoiser, DenoiserWrapper, Energy, Prediction, Tally

__all__ = ["EvaluationCounter", "as_protocol", "count_evaluations", "count_potential"]

Protocol = TypeVar("Protocol")


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


def count_evaluations(model: Denoiser | Energy) -> tuple[Denoiser | Energy, Tally]:
    """(The model, the counters of its evaluations). Those of an energy are increased by its sampler."""
    if isinstance(model, Denoiser):
        counter = EvaluationCounter(model)
        return counter, counter.tally
    energy = copy.copy(model)
    energy.tally = Tally()
    return energy, energy.tally


def count_potential(denoiser: Denoiser, rows: int) -> None:
    """Adds `rows` evaluations of a classifier or another potential to the counters of the denoiser, if it has any."""
    if denoiser.tally is not None:
        denoiser.tally.potential_evaluations += rows


def as_protocol(model: Denoiser | Energy, protocol: type[Protocol]) -> Protocol | None:
    """The model, or the one that its passthrough wrappers wrap, if it implements the protocol; else None."""
    while isinstance(model, DenoiserWrapper) and model.passthrough and not isinstance(model, protocol):
        model = model.denoiser
    return model if isinstance(model, protocol) else None
