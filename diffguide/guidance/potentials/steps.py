"""How the step length of guidance is distributed over the steps of a run."""

import copy
from typing import Self

import torch
from torch import Tensor

from ...schedules import Schedule

__all__ = ["INCREASING_STEPS", "DecreasingSteps", "EvenSteps", "IncreasingSteps", "StepWeights"]


class StepWeights:
    """weights(t) -> w_i / mean_j w_j of the run's step i that contains t: the total of a run is the same on any grid.

    Ye et al., "TFG: Unified Training-Free Guidance for Diffusion Models", 2024, arXiv 2409.15761, whose w_i are functions
    of alpha_i = abar_t / abar_s, the share of the signal's variance that remains from s to t; abar = alpha^2 / (alpha^2 +
    sigma^2) on every schedule.
    """

    times: Tensor | None = None
    factors: Tensor

    def weigh(self, kept: Tensor) -> Tensor:
        """w_i, [steps], of alpha_i [steps]."""
        raise NotImplementedError

    def start(self, schedule: Schedule, times: Tensor) -> Self:
        """The weights of one run over `times`."""
        fresh = copy.copy(self)
        abar = torch.sigmoid(schedule.log_snr(times))
        weights = self.weigh(abar[:-1] / abar[1:])
        fresh.times = times
        fresh.factors = weights / weights.mean()
        return fresh

    def __call__(self, t: Tensor) -> Tensor:
        """The factor at t, float64 in its shape; between grid times that of the step which contains t."""
        if self.times is None:
            raise ValueError(f"{type(self).__name__} depend on a run's steps: call start(noise, times) first")
        step = torch.searchsorted(-self.times.to(t.device), -t.to(self.times), right=True) - 1
        return self.factors.to(t.device)[step.clamp(0, len(self.factors) - 1)]


class EvenSteps(StepWeights):
    """w = 1: all steps equal."""

    def start(self, schedule: Schedule, times: Tensor) -> Self:
        return self

    def __call__(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)


class IncreasingSteps(StepWeights):
    """w = alpha_i: more towards the data; TFG's "increase"."""

    def weigh(self, kept: Tensor) -> Tensor:
        return kept


INCREASING_STEPS = IncreasingSteps()


class DecreasingSteps(StepWeights):
    """w = 1 - alpha_i: more where noise is removed fastest, early; TFG's "decrease"."""

    def weigh(self, kept: Tensor) -> Tensor:
        return 1 - kept
