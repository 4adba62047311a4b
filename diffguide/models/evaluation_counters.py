"""Counting evaluations of a model and of potentials around it: the cost of a run or a measurement."""

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
        denoiser: what is counted.
        tally: where; None = a new one.
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
    """The model with its evaluations counted, and where; the sampler of an energy counts them."""
    if isinstance(model, Denoiser):
        counter = EvaluationCounter(model)
        return counter, counter.tally
    energy = copy.copy(model)
    energy.tally = Tally()
    return energy, energy.tally


def count_potential(denoiser: Denoiser, rows: int) -> None:
    """Counts an evaluation of a classifier or another potential, where those of the denoiser are counted."""
    if denoiser.tally is not None:
        denoiser.tally.potential_evaluations += rows


def as_protocol(model: Denoiser | Energy, protocol: type[Protocol]) -> Protocol | None:
    """The model itself, or the one that it passes through, where it has a protocol; None where it does not."""
    while isinstance(model, DenoiserWrapper) and model.passthrough and not isinstance(model, protocol):
        model = model.denoiser
    return model if isinstance(model, protocol) else None
