"""Counters of evaluations: what a run or a measurement costs, whatever is wrapped around its model."""

from typing import TypeVar

from torch import Tensor

from ..backbones.conditions import Condition
from ..backbones.perturbations import Perturbation
from .protocols import Denoiser, DenoiserWrapper, Energy, Prediction

__all__ = ["EnergyCounter", "EvaluationCounter", "as_protocol", "count_evaluations"]

Protocol = TypeVar("Protocol")


class EnergyCounter(Energy):
    """Counts evaluations of an energy, one per row, as `EvaluationCounter` does those of a denoiser."""

    potential_evaluations = 0

    def __init__(self, energy: Energy):
        self.energy, self.evaluations = energy, 0

    normalized = property(lambda self: self.energy.normalized)
    num_classes = property(lambda self: self.energy.num_classes)
    has_null = property(lambda self: self.energy.has_null)
    class_names = property(lambda self: self.energy.class_names)
    shape = property(lambda self: self.energy.shape)

    def log_density(self, x: Tensor, t: Tensor | None, y: Condition | None = None) -> Tensor:
        return self.energy.log_density(x, t, y)

    def count_evaluations(self, rows: int) -> None:
        self.evaluations += rows


class EvaluationCounter(DenoiserWrapper):
    """Counts evaluations, one per row (two conditions of B images are 2 B): of the network, and apart of potentials.

    Attributes:
        evaluations, potential_evaluations: so far.
    """

    passthrough = True

    def __init__(self, denoiser: Denoiser):
        super().__init__(denoiser)
        self.count = [0, 0]  # a list, so that the copies which `start` makes count together

    evaluations = property(lambda self: self.count[0])
    potential_evaluations = property(lambda self: self.count[1])

    def counted(self, other: Denoiser) -> "EvaluationCounter":
        counter = EvaluationCounter(other)
        counter.count = self.count
        return counter

    def count_potential(self, rows: int) -> None:
        self.count[1] += rows

    def count_evaluations(self, rows: int) -> None:
        self.count[0] += rows

    def __call__(self, x_t: Tensor, t: Tensor, y: Condition | None = None) -> Prediction:
        self.count[0] += len(x_t)
        return self.denoiser(x_t, t, y)

    def predict_perturbed(self, x_t: Tensor, t: Tensor, y: Condition | None, perturbation: Perturbation) -> Prediction:
        self.count[0] += len(x_t)
        return self.denoiser.predict_perturbed(x_t, t, y, perturbation)


def count_evaluations(model: Denoiser | Energy) -> EvaluationCounter | EnergyCounter:
    """The model, with its evaluations counted."""
    return EnergyCounter(model) if isinstance(model, Energy) else EvaluationCounter(model)


def as_protocol(denoiser: Denoiser | Energy, protocol: type[Protocol]) -> Protocol | None:
    """The model itself, or the one whose law it shows, where it has a protocol; None where it has not."""
    while isinstance(denoiser, DenoiserWrapper) and denoiser.passthrough and not isinstance(denoiser, protocol):
        denoiser = denoiser.denoiser
    if isinstance(denoiser, EnergyCounter) and not isinstance(denoiser, protocol):
        denoiser = denoiser.energy
    return denoiser if isinstance(denoiser, protocol) else None
