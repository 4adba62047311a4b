"""The derivative of the state and the log-density along the probability-flow ODE."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...backbones.conditions import Condition
from ...models.protocols import Denoiser
from ..noise_levels import time_of_log_snr

__all__ = ["FlowSlope"]


@dataclass
class FlowSlope:
    """slope(u, state): the derivative of the state (v, log-density) [B, D + 1] over u = log s.

    Arguments:
        denoiser, y: model and condition.
        shape: of an example; D is its number of values.
        dtype: of the denoiser.
        probes: (number of the evaluation) -> the vectors of the trace and their factor.
        ends: of u, from data to noise, for the progress.
        progress: called with the fraction of the path done.
    """

    denoiser: Denoiser
    y: Condition | None
    shape: torch.Size
    dtype: torch.dtype
    probes: Callable[[int], tuple[Tensor, float]]
    ends: tuple[float, float]
    progress: Callable[[float], None] | None

    def __post_init__(self) -> None:
        self.size = math.prod(self.shape)
        self.evaluation = 0
        self.scale = 1 / math.sqrt(self.size)  # gives the log-density the weight of all other columns in an error norm

    def __call__(self, u: Tensor, state: Tensor) -> Tensor:
        x_0, eps, divergence = self.predict(u, state)
        phi = u.exp().atan()[:, None]
        if self.progress is not None:
            low, high = self.ends
            self.progress(min(1.0, (float(u.min()) - low) / (high - low)))
        velocity = phi.sin() * phi.cos() * (phi.cos() * eps - phi.sin() * x_0)  # dv / du
        growth = phi.sin() * divergence[:, None] - self.size * phi.sin() ** 2  # of the volume of v
        return torch.cat([velocity, self.scale * growth], dim=1)

    def predict(self, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x_0 and eps [B, D], and the divergence of eps over v [B], float64."""
        schedule = self.denoiser.schedule
        t = time_of_log_snr(-2 * u, schedule, self.denoiser.levels)
        scale = torch.hypot(*schedule.scales(-2 * u, 2))
        vectors, factor = self.probes(self.evaluation)
        self.evaluation += 1
        if self.denoiser.tally is not None:
            self.denoiser.tally.backward_passes += len(vectors) * len(state)
        with torch.enable_grad():
            v = state[:, :-1].detach().requires_grad_()
            x_0, eps = self.denoiser((scale * v).to(self.dtype).unflatten(1, self.shape), t, self.y)
            eps = eps.flatten(1)
            divergence = torch.zeros(len(state), dtype=state.dtype, device=state.device)
            for k, vector in enumerate(vectors):
                last = k + 1 == len(vectors)
                (product,) = torch.autograd.grad(eps, v, vector.expand_as(eps).to(eps), retain_graph=not last)
                divergence += (product * vector).sum(1)
        return x_0.detach().flatten(1).double(), eps.detach().double(), factor * divergence
