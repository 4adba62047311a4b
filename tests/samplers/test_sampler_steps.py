"""What every step of every sampler keeps to: where it starts, what it remembers."""

import math
from itertools import pairwise

import pytest
import torch
from all_samplers import every_sampler
from closed_forms import ExactMixture, two_classes

from diffguide.models.protocols import Denoiser, Prediction
from diffguide.randomness import Noise
from diffguide.samplers import DPMpp2MSDE, DPMpp3MSDE, SASolver
from diffguide.samplers.grids import UniformT
from diffguide.schedules import Cosine

COSINE, GRID = Cosine(12.0, -10.0), UniformT()
TIMES = torch.tensor([0.95, 0.8, 0.6, 0.4, 0.3, 0.2], dtype=torch.float64)


def points(n: int) -> torch.Tensor:
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Blind(Denoiser):
    """Fields that disagree and do not depend on x; counts its runs."""

    def __init__(self, schedule):
        self.schedule, self.runs = schedule, 0

    def __call__(self, x_t, t, y=None):
        u = float(t.reshape(-1)[0])
        return Prediction(torch.full_like(x_t, math.cos(3 * u)), torch.full_like(x_t, math.sin(5 * u) + 2))

    def start(self, noise, times):
        self.runs += 1
        return self


@every_sampler
def test_nothing_of_a_step_comes_from_x(make):
    """But through the denoiser, which a run starts once: where that is blind, every start has the same end."""
    denoiser, ends = Blind(COSINE), []
    for x in (points(3), 10 + points(3)):
        ends.append(make(5)(denoiser, x, TIMES, noise=Noise(range(3), (2,), COSINE, dtype=torch.float64)))
    torch.testing.assert_close(*ends, rtol=0, atol=1e-12)
    assert denoiser.runs == 2


@pytest.mark.parametrize("corrector", [1, 2, 3])
def test_the_corrector_of_sa_solver_keeps_changes_of_x_between_steps(corrector):
    """As the Langevin steps of langevin_pc do: a nudge between two steps has the effect that it has without corrector."""
    denoiser, nudge, effects = ExactMixture(two_classes(), COSINE), 1e-4, []
    t, s, u = torch.tensor([0.5, 0.45, 0.4], dtype=torch.float64)
    for order in (0, corrector):
        sampler, ends = SASolver(2, GRID, 2, order, 0.0, 0.0, 9.0), []
        for push in (0.0, nudge):
            memory: dict = {}
            x = sampler.step(denoiser, points(8), t, s, None, None, memory) + push
            ends.append(sampler.step(denoiser, x, s, u, None, None, memory))
        effects.append((ends[1] - ends[0]) / nudge)
    assert float(effects[0].abs().mean()) > 0.5
    torch.testing.assert_close(effects[1], effects[0], rtol=0, atol=0.25)


MEMORY = {  # tensors after a step: values of x_0; SA-Solver's start, noise and end of the step to correct
    "dpmpp_2m_sde": (DPMpp2MSDE(9, GRID, 1.0, 1.0), 1),
    "dpmpp_3m_sde": (DPMpp3MSDE(9, GRID, 1.0, 1.0), 2),
    "sa_solver-3-0": (SASolver(9, GRID, 3, 0, 1.0, 0.0, 9.0), 2),
    "sa_solver-2-3": (SASolver(9, GRID, 2, 3, 1.0, 0.0, 9.0), 2 + 3),
}


@pytest.mark.parametrize("name", MEMORY)
def test_no_more_history_than_the_order_needs(name):
    sampler, count = MEMORY[name]
    x, memory, noise = points(3), {}, Noise(range(3), (2,), COSINE, dtype=torch.float64)
    for t, s in pairwise(TIMES):
        x = sampler(ExactMixture(two_classes(), COSINE), x, torch.stack([t, s]), None, noise, memory=memory)
    assert sum(value.ndim > 0 for value in tensors(memory)) == count


def tensors(memory) -> list[torch.Tensor]:
    if isinstance(memory, dict):
        memory = list(memory.values())
    return (
        [memory]
        if isinstance(memory, torch.Tensor)
        else sum(map(tensors, memory), [])
        if isinstance(memory, list | tuple)
        else []
    )
