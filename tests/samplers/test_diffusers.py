"""Trajectories against diffusers' schedulers, an independent implementation, elementwise after every step.

Both sides see the same smooth nonlinear model (the exact eps of a mixture) at the same times of DDPM's 1000 levels, in
float64 where diffusers keeps it: its tables are float32 and are replaced by the same numbers in float64. Index k there is
t = (k + 1) / 1000 here. Both take every step as published, however wide: a run of diffguide would take the widest at first
order (test_few_steps), where diffusers extrapolates.
"""

import math

import diffusers
import numpy as np
import pytest
import torch
from all_samplers import published
from closed_forms import ExactMixture, two_classes

from diffguide.samplers import DDIM, IPNDM, LMS, PNDM, DPMpp2M, DPMpp3M, Euler, Heun, LogRhoDEIS, UniPC
from diffguide.samplers.grids import UniformT
from diffguide.schedules import Linear

SCHEDULE, GRID = Linear(math.inf), UniformT()
MODEL = ExactMixture(two_classes(), SCHEDULE)
CONFIG = dict(beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
ABAR = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
FLOAT32 = 3e-5  # Euler and the DPM-Solvers cast the sample to float32 in every step

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # NumPy 2


class DPMSolver3(diffusers.DPMSolverMultistepScheduler):
    """With all of the second derivative: diffusers, like the paper's code, gives it half its weight, which is order 2."""

    def multistep_dpm_solver_third_order_update(self, outputs, sample=None, noise=None):
        levels = [self.sigmas[self.step_index + k] for k in (1, 0, -1, -2)]
        end, u0, u1, u2 = (-float(torch.log(sigma)) for sigma in levels)  # log(alpha / sigma)
        h, first, second = end - u0, (outputs[-1] - outputs[-2]) / (u0 - u1), (outputs[-2] - outputs[-3]) / (u1 - u2)
        half = h**2 * (first - second) / (u0 - u2)
        alpha = 1 / math.hypot(1, math.exp(-end))
        missing = alpha * ((math.exp(-h) - 1 + h) / h**2 - 0.5) * half
        return super().multistep_dpm_solver_third_order_update(outputs, sample=sample) - missing


def uniform(n: int, last: float) -> np.ndarray:
    """1, 1 - 1/n, ... and `last` in place of 0: diffusers' trailing spacing."""
    return np.append(1 - np.arange(n) / n, last)


def noise_level(times) -> np.ndarray:
    """sigma / alpha at levels, from DDPM's own table."""
    abar = np.append(1.0, ABAR)[np.round(1000 * np.asarray(times)).astype(int)]
    return np.sqrt((1 - abar) / abar)


def scale(t: float, scaled: bool) -> float:
    """1 / alpha where diffusers' x is x / alpha."""
    return math.hypot(1, noise_level(t)) if scaled else 1.0


TRAILING = dict(timestep_spacing="trailing", **CONFIG)
# a lower order at the end is a choice of diffusers, not of the papers
MULTISTEP = dict(lower_order_final=False, **TRAILING)
CASES = {  # ours; theirs; whether x is x / alpha there; last time; tolerance
    "ddim": (
        lambda n: DDIM(n, GRID, eta=0.0), lambda: diffusers.DDIMScheduler(clip_sample=False, **TRAILING), False, 0.0, 1e-9,
    ),
    "euler": (lambda n: Euler(n, GRID), lambda: diffusers.EulerDiscreteScheduler(**TRAILING), True, 0.0, FLOAT32),
    "heun": (lambda n: Heun(n, GRID), lambda: diffusers.HeunDiscreteScheduler(**TRAILING), True, 0.0, 1e-9),
    "lms": (lambda n: LMS(n, GRID, order=4), lambda: diffusers.LMSDiscreteScheduler(**TRAILING), True, 0.0, 1e-9),
    "dpmpp_2m": (
        lambda n: DPMpp2M(n, GRID),
        lambda: diffusers.DPMSolverMultistepScheduler(solver_order=2, **MULTISTEP), False, 0.0, FLOAT32,
    ),
    "dpmpp_3m": (lambda n: DPMpp3M(n, GRID), lambda: DPMSolver3(solver_order=3, **MULTISTEP), False, 0.0, FLOAT32),
    "unipc-1": (
        lambda n: UniPC(n, GRID, order=1), lambda: diffusers.UniPCMultistepScheduler(solver_order=1, **MULTISTEP), False,
        1e-3, 1e-9,
    ),
    "unipc-2": (
        lambda n: UniPC(n, GRID, order=2), lambda: diffusers.UniPCMultistepScheduler(solver_order=2, **MULTISTEP), False,
        1e-3, 1e-9,
    ),
    "unipc-3": (
        lambda n: UniPC(n, GRID, order=3), lambda: diffusers.UniPCMultistepScheduler(solver_order=3, **MULTISTEP), False,
        1e-3, 1e-9,
    ),  # to sigma = 0 diffusers needs lower_order_final, and so do its weights: the comparison ends at the first level
    "deis_log_rho-2": (
        lambda n: LogRhoDEIS(n, GRID, order=2), lambda: diffusers.DEISMultistepScheduler(solver_order=2, **MULTISTEP),
        False, 1e-3, 1e-9,
    ),
    "deis_log_rho-3": (
        lambda n: LogRhoDEIS(n, GRID, order=3), lambda: diffusers.DEISMultistepScheduler(solver_order=3, **MULTISTEP),
        False, 1e-3, 1e-9,
    ),  # log(sigma) again: it ends at the first level
}  # fmt: skip


def start() -> torch.Tensor:
    return torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def ours(sampler, times, x: torch.Tensor) -> list[torch.Tensor]:
    states = []
    published(sampler)(
        MODEL, x, torch.tensor(times, dtype=torch.float64), on_step=lambda _, state: states.append(state)
    )
    return states


def eps(x: torch.Tensor, t: float) -> torch.Tensor:
    return MODEL(x, torch.tensor(t, dtype=torch.float64)).eps


@pytest.mark.parametrize("n", [5, 20])
@pytest.mark.parametrize("name", CASES)
def test_a_trajectory_is_that_of_diffusers(name, n):
    make, scheduler, scaled, last, tolerance = CASES[name]
    times, x, scheduler = uniform(n, last), start(), scheduler()
    expected = ours(make(n), times, x)
    scheduler.set_timesteps(n)
    levels, repeated = torch.from_numpy(noise_level(times)), name == "heun"  # whose tables hold every inner level twice
    if repeated:
        levels = torch.cat([levels[:1], levels[1:-1].repeat_interleave(2), levels[-1:]])
    if name == "ddim":
        scheduler.alphas_cumprod = torch.from_numpy(ABAR)
    else:
        assert torch.allclose(scheduler.sigmas.double()[:-1], levels[:-1], rtol=1e-4)  # the same, but for float32
        scheduler.sigmas = levels
    visited = [(int(k) + 1) / 1000 for k in scheduler.timesteps]
    assert sorted(set(visited), reverse=True) == pytest.approx(times[:-1], abs=1e-9)
    x, found = x * scale(times[0], scaled), []
    for index, (t, k) in enumerate(zip(visited, scheduler.timesteps)):
        if scaled:
            scheduler.scale_model_input(x, k)
        x = scheduler.step(eps(x / scale(t, scaled), t), k, x).prev_sample
        if not repeated or index % 2 == 1 or index == 2 * n - 2:
            found.append(x / scale(times[len(found) + 1], scaled))
    assert len(found) == len(expected) == n
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("n", [5, 20])
def test_pndm_is_that_of_diffusers(n):
    """Leading spacing, whose half-way times are levels too; its last step is the short one from level 1 to t = 0."""
    scheduler = diffusers.PNDMScheduler(timestep_spacing="leading", set_alpha_to_one=True, **CONFIG)
    scheduler.set_timesteps(n)
    scheduler.alphas_cumprod = torch.from_numpy(ABAR)
    x = start()
    expected = ours(PNDM(n, GRID), [*((1000 // n * k + 1) / 1000 for k in reversed(range(n))), 0.0], x)
    found = []
    for index, k in enumerate(scheduler.timesteps):
        x = scheduler.step(eps(x, (int(k) + 1) / 1000), k, x).prev_sample
        if index >= 12 or index % 4 == 3:
            found.append(x)
    assert len(found) == n
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("n", [5, 20])
def test_ipndm_is_that_of_diffusers(n):
    """Its own schedule begins at alpha = 0, where it divides by 1e-8, so ours takes its place; its model predicts v."""
    scheduler, times, x, found = diffusers.IPNDMScheduler(), uniform(n, 0.0), start(), []
    scheduler.set_timesteps(n)
    scheduler.alphas = torch.from_numpy(1 / np.hypot(1, noise_level(times)))
    scheduler.betas = torch.from_numpy(noise_level(times)) * scheduler.alphas  # what it calls betas is sigma
    for k, t in enumerate(times[:-1]):
        x_0, noise = MODEL(x, torch.tensor(t, dtype=torch.float64))
        v = scheduler.alphas[k] * noise - scheduler.betas[k] * x_0
        x = scheduler.step(v, scheduler.timesteps[k], x).prev_sample
        found.append(x)
    for a, b in zip(found, ours(IPNDM(n, GRID, order=4), times, start())):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
