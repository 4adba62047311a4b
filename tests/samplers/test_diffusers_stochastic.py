"""Stochastic trajectories and discrete grids against diffusers' schedulers, with the same noise on both sides.

As in test_diffusers: the exact eps of a mixture at DDPM's 1000 levels, in float64 where diffusers keeps it (its float32
tables are replaced). Index k there is t = (k + 1) / 1000 here.
"""

import math
import sys

import diffusers
import numpy as np
import pytest
import torch
from all_samplers import published
from closed_forms import ExactMixture, two_classes
from test_diffusers import ABAR, CONFIG, FLOAT32, SCHEDULE, TRAILING, eps, noise_level, scale, start, uniform

from diffguide.samplers import DDPM, DPMpp2MSDE, DPMpp3MSDE, EulerAncestral, SASolver
from diffguide.samplers.discrete_grids import Leading, Linspace, Trailing
from diffguide.samplers.grids import UniformT

GRID, MODEL = UniformT(), ExactMixture(two_classes(), SCHEDULE)
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # NumPy 2


class DPMSolverSDE3(diffusers.DPMSolverMultistepScheduler):
    """With -2 phi_3 of the second difference, the integral of the parabola, where diffusers has -1 + phi_3.

    Its "(1 - e^-2h - 2h) / (2h)^2 - 1/2" should be "+ 1/2", as k-diffusion has it, which is -phi_3 and still half of it.
    """

    def multistep_dpm_solver_third_order_update(self, outputs, sample=None, noise=None):
        levels = [self.sigmas[self.step_index + k] for k in (1, 0, -1, -2)]
        end, u0, u1, u2 = (-float(torch.log(sigma)) for sigma in levels)  # log(alpha / sigma)
        h, first, second = end - u0, (outputs[-1] - outputs[-2]) / (u0 - u1), (outputs[-2] - outputs[-3]) / (u1 - u2)
        difference, a = h**2 * (first - second) / (u0 - u2), 2 * h
        theirs = (1 - math.exp(-a) - a) / a**2 - 0.5
        right = 1 - 2 / a * (1 - (1 - math.exp(-a)) / a)  # int_0^1 a e^(-a (1 - v)) v^2 dv, by parts
        alpha = 1 / math.hypot(1, math.exp(-end))
        return super().multistep_dpm_solver_third_order_update(outputs, sample=sample, noise=noise) + (
            alpha * (right - theirs) * difference
        )


# Its second step, of order 2, is exact as ours with solver_type="heun"; k-diffusion's 3M has that form too.


class SASolverExact(diffusers.SASolverScheduler):
    """Without the term of third order that the authors' code adds to coefficients of order 2, and the paper has not."""

    corrects = False

    def stochastic_adams_moulton_update(self, *args, **arguments):
        self.corrects = True
        result = super().stochastic_adams_moulton_update(*args, **arguments)
        self.corrects = False
        return result

    def get_coefficients_fn(self, order, start, end, nodes, tau):
        found = super().get_coefficients_fn(order, start, end, nodes, tau)
        if order == 2:
            a, h = 1 + tau**2, end - start
            exact = (h * a - 1 + math.exp(-a * h)) / a**2
            extra = math.exp(a * end) * (
                h / 2 - exact / h if self.corrects else (h**2 / 2 - exact) / (start - nodes[1])
            )
            found = [found[0] - extra, found[1] + extra]
        return found


def sde(make, order, solver_type="midpoint"):
    return lambda: make(
        solver_order=order,
        solver_type=solver_type,
        algorithm_type="sde-dpmsolver++",
        lower_order_final=False,
        **TRAILING,
    )


def sa(predictor, corrector):
    """tau = 1 at indices 200 to 800, the default there."""
    low, high = (float(noise_level((k + 1) / 1000)) for k in (200, 800))
    return (
        lambda n: SASolver(n, GRID, predictor, corrector, 1.0, low * 0.999, high * 1.001),
        lambda: SASolverExact(
            predictor_order=predictor, corrector_order=corrector, lower_order_final=False, **TRAILING
        ),
        False,
        1e-3,
        1e-9,
    )


CASES = {  # ours; theirs; whether x is x / alpha there; last time; tolerance
    "ddpm-small": (
        lambda n: DDPM(n, GRID, variance=0.0),
        lambda: diffusers.DDPMScheduler(variance_type="fixed_small", clip_sample=False, **TRAILING), False, 0.0, 1e-9,
    ),
    "ddpm-large": (
        lambda n: DDPM(n, GRID, variance=1.0),
        lambda: diffusers.DDPMScheduler(variance_type="fixed_large", clip_sample=False, **TRAILING), False, 0.0, 1e-9,
    ),
    "euler_ancestral": (
        lambda n: EulerAncestral(n, GRID, eta=1.0, s_noise=1.0),
        lambda: diffusers.EulerAncestralDiscreteScheduler(**TRAILING), True, 0.0, FLOAT32,
    ),
    "dpmpp_2m_sde": (
        lambda n: DPMpp2MSDE(n, GRID, eta=1.0, s_noise=1.0), sde(diffusers.DPMSolverMultistepScheduler, 2), False, 0.0,
        FLOAT32,
    ),
    "dpmpp_3m_sde": (lambda n: DPMpp3MSDE(n, GRID, eta=1.0, s_noise=1.0), sde(DPMSolverSDE3, 3, "heun"), False, 0.0, FLOAT32),
    "sa_solver-11": sa(1, 1),
    "sa_solver-22": sa(2, 2),
    "sa_solver-33": sa(3, 3),
    "sa_solver-34": sa(3, 4),
}  # fmt: skip


class SameNoise:
    """Row k for step k, here and there; no noise in a last step to exact data, where diffusers' fixed_large adds some."""

    def __init__(self, n: int, last: float):
        self.z = torch.randn(n, 6, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        self.z[-1] *= last > 0
        self.step = 0

    def increment(self, t, s):
        return self.z[self.step]

    def theirs(self, shape, generator=None, device=None, dtype=None, layout=None):
        return self.z[self.step].to(dtype)


@pytest.mark.parametrize("n", [5, 20])
@pytest.mark.parametrize("name", CASES)
def test_a_trajectory_is_that_of_diffusers(name, n, monkeypatch):
    make, scheduler, scaled, last, tolerance = CASES[name]
    times, x, scheduler, noise, expected = uniform(n, last), start(), scheduler(), SameNoise(n, last), []

    def on_step(step, state):
        expected.append(state)
        noise.step = step

    published(make(n))(MODEL, x, torch.tensor(times, dtype=torch.float64), noise=noise, on_step=on_step)
    module = sys.modules[type(scheduler).__mro__[1 if type(scheduler).__module__ == __name__ else 0].__module__]
    monkeypatch.setattr(module, "randn_tensor", noise.theirs)
    scheduler.set_timesteps(n)
    np.testing.assert_array_equal(np.asarray(scheduler.timesteps) + 1, np.round(1000 * times[:-1]))
    if hasattr(scheduler, "sigmas"):
        scheduler.sigmas = torch.from_numpy(noise_level(times))
    else:
        scheduler.alphas_cumprod = torch.from_numpy(ABAR)
    state = scale(times[0], scaled) * x
    for k, index in enumerate(scheduler.timesteps):
        noise.step, t = k, float(times[k])
        scheduler.scale_model_input(state, index)
        output = eps(state / scale(t, scaled), t)
        state = scheduler.step(output, index if scaled else int(index), state).prev_sample
        np.testing.assert_allclose(
            state.double() / scale(times[k + 1], scaled),
            expected[k],
            rtol=tolerance,
            atol=tolerance,
            err_msg=f"step {k}",
        )


@pytest.mark.parametrize("n", [2, 5, 20, 30, 999, 1000])
def test_discrete_grids_have_diffusers_indices(n):
    """And the step to t = 0 after them."""
    for spacing, grid, extra in (
        ("leading", Leading(1000, 0), {}),
        ("leading", Leading(1000, 1), {"steps_offset": 1} if n < 1000 else None),
        ("trailing", Trailing(1000), {}),
        ("linspace", Linspace(1000), {}),
    ):
        if extra is None:
            continue
        scheduler = diffusers.DDPMScheduler(timestep_spacing=spacing, **CONFIG, **extra)
        scheduler.set_timesteps(n)
        times = grid(SCHEDULE, n)
        np.testing.assert_allclose(1000 * times[:-1] - 1, scheduler.timesteps, rtol=0, atol=1e-9)
        assert times[-1] == 0 and times.dtype == torch.float64
