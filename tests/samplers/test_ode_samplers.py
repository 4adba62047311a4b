"""The ODE samplers step by step: closed-form factors on a Gaussian, inversion, the adaptive one, what they refuse."""

import math
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from all_samplers import SAMPLERS, published
from closed_forms import ExactMixture, gaussian, karras_levels, two_classes
from scipy.integrate import solve_ivp

from diffguide.models.evaluation_counters import EvaluationCounter
from diffguide.samplers import (
    DDIM,
    DPM2,
    IPNDM,
    LMS,
    PNDM,
    DDIMInversion,
    Dopri5,
    DPMpp2M,
    DPMpp2S,
    DPMpp3M,
    Euler,
    UniPC,
)
from diffguide.samplers.grids import Karras, UniformT
from diffguide.schedules import EDM, Cosine, Flow, Linear

LOW, HIGH, VARIANCE = -2 * math.log(0.002), -2 * math.log(80), 0.25
GRID = Karras(7.0, None, None)


def eps(sigma: float) -> float:
    """eps / x of a zero-mean Gaussian under VE."""
    return sigma / (VARIANCE + sigma**2)


def x_0(sigma: float) -> float:
    return VARIANCE / (VARIANCE + sigma**2)


def dpm2(levels) -> float:
    x = 1.0
    for s, n in pairwise(levels):
        middle = math.sqrt(s * n)
        x *= 1 + (n - s) * eps(middle) * (1 + (middle - s) * eps(s))
    return x


def dpmpp_2s(levels) -> float:
    x = 1.0
    for s, n in pairwise(levels):
        middle = math.sqrt(s * n)
        at_middle = middle / s + (1 - middle / s) * x_0(s)
        x *= n / s + (1 - n / s) * x_0(middle) * at_middle
    return x


def adams_bashforth_2(levels) -> float:
    """x += h (e + (h / 2 h_before) (e - e_before)): the integral of the line through two values."""
    x, before = 1.0, None
    for s, n in pairwise(levels):
        e, h = eps(s) * x, n - s
        x, before = x + h * (e if before is None else e + h / (2 * before[1]) * (e - before[0])), (e, h)
    return x


def equal_adams_bashforth_2(levels) -> float:
    x, before = 1.0, None
    for s, n in pairwise(levels):
        e = eps(s) * x
        x, before = x + (n - s) * (e if before is None else 1.5 * e - 0.5 * before), e
    return x


def runge_kutta(levels, middles) -> float:
    """Classical weights, half-way where the sampler says."""
    x = 1.0
    for (s, n), m in zip(pairwise(levels), middles):
        e1 = eps(s) * x
        e2 = eps(m) * (x + (m - s) * e1)
        e3 = eps(m) * (x + (m - s) * e2)
        e4 = eps(n) * (x + (n - s) * e3)
        x += (n - s) * (e1 + 2 * e2 + 2 * e3 + e4) / 6
    return x


@pytest.mark.parametrize(
    "make, expected",
    [
        (lambda: DPM2(12, GRID), dpm2),
        (lambda: DPMpp2S(12, GRID), dpmpp_2s),
        (lambda: LMS(12, GRID, order=2), adams_bashforth_2),
        (lambda: IPNDM(12, GRID, order=2), equal_adams_bashforth_2),
    ],
    ids=["dpm2", "dpmpp_2s", "lms-2", "ipndm-2"],
)
def test_finite_steps_on_a_gaussian(make, expected):
    sampler, denoiser = published(make()), ExactMixture(gaussian([0.0], [[VARIANCE]]), EDM(LOW, HIGH))
    x = torch.tensor([[1.0], [-80.0]], dtype=torch.float64)
    factor = expected(karras_levels(13, 0.002, 80.0, 7.0))
    torch.testing.assert_close(sampler(denoiser, x, sampler.times(denoiser)), factor * x, rtol=1e-10, atol=0)


def test_the_first_steps_of_pndm_on_a_gaussian():
    schedule, times = EDM(LOW, HIGH), torch.tensor([0.6, 0.5, 0.4, 0.2], dtype=torch.float64)
    levels, middles = (schedule.noise_level(t).tolist() for t in (times, (times[1:] + times[:-1]) / 2))
    denoiser = ExactMixture(gaussian([0.0], [[VARIANCE]]), schedule)
    found = published(PNDM(3, UniformT()))(denoiser, torch.ones(1, 1, dtype=torch.float64), times)
    assert float(found) == pytest.approx(runge_kutta(levels, middles), rel=1e-10)


def test_inversion_on_a_gaussian():
    """Every step up multiplies by 1 + h f(sigma) at its lower end."""
    denoiser = ExactMixture(gaussian([0.0], [[VARIANCE]]), EDM(LOW, HIGH))
    levels = karras_levels(13, 0.002, 80.0, 7.0)[::-1]
    factor = math.prod(1 + (n - s) * eps(s) for s, n in pairwise(levels))
    x = torch.tensor([[1.0], [-0.5]], dtype=torch.float64)
    found = DDIMInversion()(denoiser, x, Euler(12, GRID).times(denoiser))
    torch.testing.assert_close(found, factor * x, rtol=1e-10, atol=0)


@pytest.mark.parametrize("y", [None, torch.tensor([0, 1, -1, 0])])
def test_inversion_is_undone_by_ddim(y):
    """Up to O(1 / steps): the error halves with the steps."""
    denoiser, x = (
        ExactMixture(two_classes(), Cosine(12.0, -10.0)),
        torch.from_numpy(two_classes().sample(4, np.random.default_rng(0))[0]),
    )
    errors = []
    for steps in (50, 100, 200, 400):
        sampler = DDIM(steps, UniformT(), eta=0.0)
        times = sampler.times(denoiser)
        noise = DDIMInversion()(denoiser, x, times, y)
        errors.append(float((sampler(denoiser, noise, times, y) - x).abs().max()))
    assert errors[-1] < 0.05
    assert math.log2(errors[0] / errors[-1]) / 3 == pytest.approx(1, abs=0.25)


def test_inversion_refuses_exact_data_and_rising_times():
    denoiser, x = ExactMixture(two_classes(), EDM(math.inf, HIGH)), torch.zeros(1, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match="times must end above sigma = 0"):
        DDIMInversion()(denoiser, x, torch.tensor([0.5, 0.0], dtype=torch.float64))
    with pytest.raises(ValueError, match="times must decrease strictly"):
        DDIMInversion()(denoiser, x, torch.tensor([0.1, 0.5], dtype=torch.float64))


def dopri5(**options) -> Dopri5:
    return Dopri5(
        **dict(steps=1, grid=UniformT(), atol=1e-5, rtol=1e-5, max_evaluations=1000, noise_level_min=0.002) | options
    )


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("tolerance", [1e-3, 1e-5, 1e-8])
@pytest.mark.parametrize(
    "schedule", [Cosine(12.0, -10.0), Flow(12.0, -math.inf), EDM(LOW, HIGH)], ids=["cosine", "flow", "edm"]
)
def test_dopri5_is_within_sixty_times_its_tolerance(schedule, tolerance, steps):
    """Against SciPy on dx / dt = eps - x_0 of the flow, regular at pure noise, with a tolerance of 1e-12."""
    mixture, denoiser, sampler = two_classes(), None, dopri5(steps=steps, atol=tolerance, rtol=tolerance)
    denoiser = EvaluationCounter(ExactMixture(mixture, schedule))
    noise = np.random.default_rng(0).standard_normal((12, 2))
    times = sampler.times(denoiser)
    (alpha, sigma), (last_alpha, last_sigma) = ([float(v) for v in schedule.alpha_sigma(t)] for t in times[[0, -1]])

    def velocity(u, flat):
        x = flat.reshape(noise.shape)
        return (-u * mixture.score(x, 1 - u, u) - mixture.mean(x, 1 - u, u)).ravel()

    span = sigma / (alpha + sigma), last_sigma / (last_alpha + last_sigma)
    start = sigma * noise / (alpha + sigma)
    exact = (
        solve_ivp(velocity, span, start.ravel(), method="DOP853", rtol=1e-12, atol=1e-12).y[:, -1].reshape(noise.shape)
    )
    found = sampler(denoiser, torch.from_numpy(sigma * noise), times) / (last_alpha + last_sigma)
    assert np.abs(found.numpy() - exact).max() < 60 * tolerance
    assert denoiser.tally.evaluations < 12 * {1e-3: 60, 1e-5: 100, 1e-8: 220}[tolerance]


def test_dopri5_ends_at_exact_data_by_a_last_step():
    """From noise_level_min the denoised itself; nothing is evaluated at sigma = 0, nor where the level is not passed."""
    denoiser, x = ExactMixture(two_classes(), EDM(math.inf, HIGH)), torch.ones(2, 2, dtype=torch.float64)
    sampler, times = dopri5(noise_level_min=0.01), torch.tensor([0.5, 0.0], dtype=torch.float64)
    low = denoiser.schedule.t_of(torch.tensor(-2 * math.log(0.01), dtype=torch.float64))
    at_low = sampler(denoiser, x, torch.stack([times[0], low]))
    torch.testing.assert_close(sampler(denoiser, x, times), denoiser(at_low, low).x_0, rtol=1e-12, atol=1e-12)
    below = torch.stack([low / 2, times[1]])
    torch.testing.assert_close(sampler(denoiser, x, below), denoiser(x, below[0]).x_0, rtol=0, atol=0)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"atol": 0.0}, "atol must be"),
        ({"rtol": -1e-3}, "rtol must be"),
        ({"atol": math.nan}, "atol must be"),
        ({"max_evaluations": 8}, "max_evaluations must be"),
        ({"noise_level_min": 0.0}, "noise_level_min must be"),
    ],
)
def test_dopri5_refuses_impossible_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        dopri5(**options)


def test_dopri5_rejects_a_noise_level_min_above_the_start():
    denoiser = ExactMixture(two_classes(), EDM(math.inf, HIGH))
    top = float(denoiser.schedule.noise_level(torch.tensor(1.0, dtype=torch.float64)))
    with pytest.raises(ValueError, match=f"noise_level_min .* {top:.6g}, got {top:g}"):
        dopri5(noise_level_min=top).times(denoiser)
    dopri5(noise_level_min=0.99 * top).times(denoiser)
    dopri5(noise_level_min=2 * top).times(ExactMixture(two_classes(), EDM(LOW, HIGH)))  # there it is not used


def test_dopri5_without_torchode_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchode", None)
    with pytest.raises(ValueError, match=r"pip install 'diffguide\[ode\]'"):
        dopri5()


@pytest.mark.parametrize("steps", [1, 4])
def test_dopri5_raises_beyond_max_evaluations(steps):
    """Counted over the whole run, whatever the grid."""
    denoiser = EvaluationCounter(ExactMixture(two_classes(), Cosine(12.0, -10.0)))
    sampler = dopri5(steps=steps, max_evaluations=30)
    with pytest.raises(ValueError, match="max_evaluations=30 .* atol=1e-05"):
        sampler(denoiser, torch.ones(1, 2, dtype=torch.float64), sampler.times(denoiser))
    assert denoiser.tally.evaluations <= 30


def test_dopri5_raises_for_numbers_that_are_not_finite():
    denoiser, sampler = ExactMixture(two_classes(), Cosine(12.0, -10.0)), dopri5()
    with pytest.raises(ValueError, match="not finite between t = 1 and 0"):
        sampler(denoiser, torch.full((2, 2), math.nan, dtype=torch.float64), sampler.times(denoiser))


@pytest.mark.parametrize("name", ["dpm2", "dpmpp_2s", "pndm", "dopri5"])
def test_a_model_with_levels_refuses_evaluations_between_them(name):
    denoiser = ExactMixture(two_classes(), Linear(math.inf))
    denoiser.levels = torch.arange(1000, -1, -1, dtype=torch.float64) / 1000
    with pytest.raises(ValueError, match="sampler=ddim"):
        SAMPLERS[name](10).times(denoiser)


EVALUATIONS = {"dpm2": 20, "dpmpp_2s": 20, "pndm": 19, "heun": 20}  # of 10 steps


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "dopri5" and not SAMPLERS[name](10).stochastic])
def test_evaluations_per_step(name):
    denoiser = EvaluationCounter(ExactMixture(two_classes(), Cosine(12.0, -10.0)))
    sampler = SAMPLERS[name](10)
    sampler(denoiser, torch.ones(1, 2, dtype=torch.float64), torch.linspace(0.9, 0.1, 11, dtype=torch.float64))
    assert denoiser.tally.evaluations == EVALUATIONS.get(name, 10)


HISTORY = {
    "dpmpp_2m": 1,
    "dpmpp_3m": 2,
    "unipc-1": 1,
    "unipc-2": 2,
    "unipc-3": 3,
    "deis": 2,
    "lms": 3,
    "ipndm": 3,
    "pndm": 3,
}


@pytest.mark.parametrize("name", HISTORY)
def test_no_more_history_than_the_order_needs(name):
    denoiser, sampler, memory = ExactMixture(two_classes(), Cosine(12.0, -10.0)), SAMPLERS[name](10), {}
    x = torch.ones(2, 2, dtype=torch.float64)
    for t, s in pairwise(torch.linspace(0.9, 0.1, 9, dtype=torch.float64)):
        x = sampler.step(denoiser, x, t, s, None, None, memory)
    assert len(memory["history"]) == HISTORY[name]


@pytest.mark.parametrize("make", [DPMpp2M, DPMpp3M, lambda n, grid: UniPC(n, grid, order=3)], ids=["2m", "3m", "unipc"])
def test_a_step_from_an_infinite_level_clears_the_history(make):
    """From pure noise the first step is DDIM's, and the rest of the run is the run that begins after it."""
    denoiser, x = ExactMixture(two_classes(), Flow(12.0, -math.inf)), torch.ones(3, 2, dtype=torch.float64)
    times = torch.tensor([1.0, 0.8, 0.6, 0.4, 0.2], dtype=torch.float64)
    first = Euler(1, UniformT())(denoiser, x, times[:2])
    sampler = make(4, UniformT())
    torch.testing.assert_close(sampler(denoiser, x, times), sampler(denoiser, first, times[1:]), rtol=1e-12, atol=1e-12)
