"""How much of a guidance's step length each step of a run gets."""

import copy

import torch
from torch import Tensor

from ...schedules import Schedule

__all__ = ["DecreasingSteps", "EvenSteps", "IncreasingSteps", "StepWeights"]


class StepWeights:
    """weights(t) -> w_i / mean_j w_j of the run's step i that t lies in, so that a run has the same total on any grid.

    Ye et al., "TFG: Unified Training-Free Guidance for Diffusion Models", 2024, arXiv 2409.15761, whose w_i are functions
    of alpha_i = abar_t / abar_s, what the step from t to s leaves of the signal's variance; abar = alpha^2 / (alpha^2 +
    sigma^2) on every schedule.
    """

    times: Tensor | None = None
    factors: Tensor

    def of(self, kept: Tensor) -> Tensor:
        """w_i, [steps], of alpha_i [steps]."""
        raise NotImplementedError

    def start(self, schedule: Schedule, times: Tensor) -> "StepWeights":
        """The weights of one run over `times`."""
        fresh, abar = copy.copy(self), torch.sigmoid(schedule.log_snr(times))
        weights = self.of(abar[:-1] / abar[1:])
        fresh.times, fresh.factors = times, weights / weights.mean()
        return fresh

    def __call__(self, t: Tensor) -> Tensor:
        """The factor at t, float64 in its shape; between the grid's times that of the step which passes there."""
        if self.times is None:
            raise ValueError(f"{type(self).__name__} are of a run's steps: call start(noise, times) first")
        step = torch.searchsorted(-self.times.to(t.device), -t.to(self.times), right=True) - 1
        return self.factors.to(t.device)[step.clamp(0, len(self.factors) - 1)]


class EvenSteps(StepWeights):
    """w = 1: all steps alike."""

    def start(self, schedule: Schedule, times: Tensor) -> "EvenSteps":
        return self

    def __call__(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)


class IncreasingSteps(StepWeights):
    """w = alpha_i: more towards the data; TFG's "increase"."""

    def of(self, kept: Tensor) -> Tensor:
        return kept


class DecreasingSteps(StepWeights):
    """w = 1 - alpha_i: more where noise goes fastest, early; TFG's "decrease"."""

    def of(self, kept: Tensor) -> Tensor:
        return 1 - kept
