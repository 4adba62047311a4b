"""Gradient descent on an energy, from N(0, I), without noise levels."""

import torch
from torch import Tensor

from ..backbones.conditions import Condition
from ..models.evaluation_counters import as_protocol
from ..models.level_classifier import value_and_gradient
from ..models.protocols import Denoiser, Energy, LogDensity
from ..randomness import Noise
from ..runtime.ranges import check_range, check_whole
from .base import MAX_STEPS, Memory, Sampler
from .noise import StepNoise

__all__ = ["Descent"]


class Descent(Sampler):
    """x <- x + step_size g, g = grad log p(x + step_size momentum g'), g' that of the last step; x from N(0, I).

    Nesterov's gradient descent as Wang, Du, "Equilibrium Matching", 2025, arXiv 2510.02300, sample their energies: the authors'
    code with momentum 0.3, 250 steps and step_size 0.0017 for images in latents; momentum 0 is plain descent. It ends near
    a maximum of the log-density. A model with noise levels is descended at t = 0. The times only count steps.

    Arguments:
        steps: 1 to 10^5.
        step_size: of the gradient, above 0.
        momentum: look-ahead in units of the last step, in [0, 1).
    """

    order = 1
    at_data = True
    needs = LogDensity

    def __init__(self, steps: int = 250, step_size: float = 0.004, momentum: float = 0.3):
        self.steps = check_whole("steps", steps, 1, MAX_STEPS)
        self.step_size = check_range("step_size", step_size, "(0, inf)")
        self.momentum = check_range("momentum", momentum, "[0, 1)")

    def times(self, denoiser: Denoiser | Energy) -> Tensor:
        self.check(denoiser)
        return torch.linspace(1, 0, self.steps + 1, dtype=torch.float64)

    def begin(self, denoiser: Denoiser | Energy, times: Tensor, noise: Noise) -> Tensor:
        return noise.normal(times[0], 0)

    def step(
        self,
        denoiser: Denoiser | Energy,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        y: Condition | None,
        noise: StepNoise,
        memory: Memory,
    ) -> Tensor:
        model = as_protocol(denoiser, LogDensity)
        assert model is not None
        level = None if denoiser.schedule is None else torch.zeros_like(t)
        if denoiser.tally is not None:
            denoiser.tally.evaluations += len(x)
        ahead = x + self.step_size * self.momentum * memory["gradient"] if "gradient" in memory else x
        with torch.no_grad():
            _, memory["gradient"] = value_and_gradient(lambda x: model.log_density(x, level, y), ahead)
        return x + self.step_size * memory["gradient"]
