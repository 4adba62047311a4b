"""Stochastic samplers on a Gaussian, whose law after finitely many steps is a closed recursion."""

import math
import warnings
from itertools import pairwise

import numpy as np
import pytest
from affine import terminal_law
from all_samplers import published
from closed_forms import ExactMixture, gaussian, karras_levels

from diffguide.models.evaluation_counters import EvaluationCounter
from diffguide.samplers import (
    DDPM,
    AnnealedLangevin,
    EulerAncestral,
    EulerMaruyama,
    Heun,
    LangevinPC,
    Restart,
    generate,
)
from diffguide.samplers.grids import Karras, UniformLogSNR, UniformT
from diffguide.samplers.langevin import select_step_size
from diffguide.samplers.maruyama import ForwardDiffusion, SigmaDiffusion, SineDiffusion
from diffguide.schedules import EDM, Cosine, Flow, Linear, Monotone

M, L = 0.7, 0.25  # mean and variance of the data
LOW, HIGH = -2 * math.log(0.002), -2 * math.log(80)
SCHEDULES = {"cosine": Cosine(12.0, -10.0), "flow": Flow(12.0, -12.0), "linear": Linear(12.0), "edm": EDM(LOW, HIGH)}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


def law_of(sampler, schedule, data=None):
    """Mean and variance at the end, from x = sigma z at times[0], of the method as published."""
    published(getattr(sampler, "inner", sampler))
    denoiser = ExactMixture(data or gaussian([M], [[L]]), schedule)
    times = sampler.times(denoiser)
    mean, covariance = terminal_law(sampler, denoiser, times, [0.0], [[float(schedule.alpha_sigma(times[0])[1]) ** 2]])
    return times, (float(mean[0]), float(covariance[0, 0]))


def fields(alpha, sigma):
    """x_0 and eps as (offset, slope) of x."""
    gain = alpha * L / (alpha**2 * L + sigma**2)
    x_0 = (M - gain * alpha * M, gain)
    return x_0, (-alpha * x_0[0] / sigma, (1 - alpha * x_0[1]) / sigma)


def moved(law, a, b, alpha, sigma, variance):
    """The law of a x_0 + b eps + sqrt(variance) z, x_0 and eps of the state before."""
    x_0, eps = fields(alpha, sigma)
    offset, slope = a * x_0[0] + b * eps[0], a * x_0[1] + b * eps[1]
    return offset + slope * law[0], slope**2 * law[1] + variance


def corrected(law, alpha, sigma, e):
    """The law of x + e score + sqrt(2 e) z."""
    pull = e / (alpha**2 * L + sigma**2)
    return law[0] - pull * (law[0] - alpha * M), (1 - pull) ** 2 * law[1] + 2 * e


def scales(schedule, times):
    alpha, sigma = (a.tolist() for a in schedule.alpha_sigma(times))
    return list(pairwise(zip(alpha, sigma)))


@every_schedule
@pytest.mark.parametrize("eta, s_noise", [(1.0, 1.0), (0.6, 1.0), (1.0, 1.2), (0.0, 1.0)])
def test_the_law_of_euler_ancestral(schedule, eta, s_noise):
    """k-diffusion's sigma_up and sigma_down, in x / alpha."""
    times, found = law_of(EulerAncestral(30, UniformT(), eta, s_noise), schedule)
    law = 0.0, float(schedule.alpha_sigma(times[0])[1]) ** 2
    for (a, s), (a_next, s_next) in scales(schedule, times):
        n, n_next = s / a, s_next / a_next
        up = eta * math.sqrt(n_next**2 * (n**2 - n_next**2) / n**2)
        down = math.sqrt(n_next**2 - up**2)
        law = moved(law, a_next, a_next * down, a, s, (a_next * s_noise * up) ** 2)
    np.testing.assert_allclose(found, law, rtol=1e-10)


@every_schedule
@pytest.mark.parametrize("variance", [0.0, 1.0])
def test_the_law_of_ddpm(schedule, variance):
    """Eq. 7 of arXiv 2006.11239 with alpha_t|s = alpha_t / alpha_s, beta = sigma_t^2 - alpha_t|s^2 sigma_s^2."""
    times, found = law_of(DDPM(30, UniformT(), variance), schedule)
    law = 0.0, float(schedule.alpha_sigma(times[0])[1]) ** 2
    for k, ((a, s), (a_next, s_next)) in enumerate(scales(schedule, times), start=1):
        ratio = a / a_next
        beta = s**2 - ratio**2 * s_next**2
        from_x_0, from_x = a_next * beta / s**2, ratio * s_next**2 / s**2
        small = beta * s_next**2 / s**2
        x_0, _ = fields(a, s)
        slope = from_x_0 * x_0[1] + from_x
        law = from_x_0 * x_0[0] + slope * law[0], slope**2 * law[1] + (beta if variance and k < 30 else small)
    np.testing.assert_allclose(found, law, rtol=1e-9)


@pytest.mark.parametrize("scale", [0.0, 1.0])
@pytest.mark.parametrize("diffusion", [SigmaDiffusion, SineDiffusion], ids=["sigma", "sine"])
def test_euler_maruyama_on_flow_is_sit(diffusion, scale):
    """x - dt v + dt w / 2 score + sqrt(w dt) z with v = eps - x_0: arXiv 2401.08740, eq. 5; the last step is the ODE's."""
    schedule = Flow(math.inf, -math.inf)
    sampler = EulerMaruyama(40, UniformT(), diffusion(scale))
    times, found = law_of(sampler, schedule)
    law, dt = (0.0, 1.0), 1 / 40
    for k, t in enumerate(times[:-1].tolist(), start=1):
        w = scale * (t if diffusion is SigmaDiffusion else math.sin(math.pi * t) ** 2)
        w = 0.0 if k == 40 else w
        x_0, eps = fields(1 - t, t)
        offset, slope = (dt * (x - e) - dt * w / 2 * e / t for x, e in zip(x_0, eps))
        law = law[0] + offset + slope * law[0], (1 + slope) ** 2 * law[1] + w * dt
    np.testing.assert_allclose(found, law, rtol=1e-9)


@every_schedule
def test_euler_maruyama_with_the_forward_coefficient(schedule):
    times, found = law_of(EulerMaruyama(60, UniformT(), ForwardDiffusion(1.0)), schedule)
    law = 0.0, float(schedule.alpha_sigma(times[0])[1]) ** 2
    for k, ((a, s), (a_next, s_next)) in enumerate(scales(schedule, times), start=1):
        g_squared = s**2 - (a / a_next) ** 2 * s_next**2 if k < 60 else 0.0
        law = moved(law, a_next, s_next - g_squared / (2 * s), a, s, g_squared)
    np.testing.assert_allclose(found, law, rtol=1e-8)


@pytest.mark.parametrize("diffusion", [SigmaDiffusion, SineDiffusion, ForwardDiffusion])
def test_every_diffusion_coefficient_has_the_same_limit(diffusion):
    for schedule in (Cosine(12.0, -10.0), Flow(12.0, -12.0)):
        _, found = law_of(EulerMaruyama(200, UniformT(), diffusion(1.0)), schedule)
        assert found == pytest.approx((M, L), abs=0.004)  # of which up to .002 is the schedule's finite ends


@every_schedule
@pytest.mark.parametrize("corrections", [1, 3])
def test_the_law_of_the_predictor_corrector(schedule, corrections):
    """Ancestral steps, each with Langevin steps of size 2 (snr sigma)^2 at the level it reached."""
    snr = 0.16
    times, found = law_of(LangevinPC(EulerAncestral(30, UniformT(), 1.0, 1.0), corrections, snr), schedule)
    law = 0.0, float(schedule.alpha_sigma(times[0])[1]) ** 2
    for (a, s), (a_next, s_next) in scales(schedule, times):
        variance = s_next**2 * (1 - (a * s_next / (s * a_next)) ** 2)
        law = moved(law, a_next, math.sqrt(s_next**2 - variance), a, s, variance)
        for _ in range(corrections):
            law = corrected(law, a_next, s_next, 2 * (snr * s_next) ** 2)
    np.testing.assert_allclose(found, law, rtol=1e-9)


def test_the_law_of_annealed_langevin():
    """Algorithm 1 of arXiv 1907.05600 in its letters: a_i = epsilon sigma_i^2 / sigma_L^2, step a_i / 2."""
    schedule, epsilon = EDM(-2 * math.log(0.01), -2 * math.log(10)), 2e-5
    sampler = AnnealedLangevin(9, UniformLogSNR(), corrections=20, step_size=epsilon / (2 * 0.01**2))
    _, found = law_of(sampler, schedule)
    law = 0.0, 100.0
    for sigma in np.geomspace(10, 0.01, 10)[1:]:
        for _ in range(20):
            a = epsilon * sigma**2 / 0.01**2
            pull = a / 2 / (L + sigma**2)
            law = law[0] - pull * (law[0] - M), (1 - pull) ** 2 * law[1] + a
    np.testing.assert_allclose(found, law, rtol=1e-9)
    assert found[1] != pytest.approx(L, rel=0.02)  # 20 steps do not carry sigma 10 to the data; the paper takes 100


def test_technique_4_turns_one_level_into_the_next():
    """Where data has no spread: noise of 1.5 times the level, after T steps, is noise of the level but for 1 %."""
    for corrections in (5, 30):
        r, variance = select_step_size(1.5, corrections), 1.5**2
        for _ in range(corrections):
            variance = (1 - r) ** 2 * variance + 2 * r
        assert 0 < r < 1 and variance == pytest.approx(1, abs=0.3 if corrections == 5 else 0.06)
        for other in (r / 1.5, min(1.5 * r, 0.99)):
            worse = 1.5**2
            for _ in range(corrections):
                worse = (1 - other) ** 2 * worse + 2 * other
            assert abs(worse - 1) > abs(variance - 1)


def heun_law(law, levels):
    """Heun's method in VE on a law (mean about M, variance)."""
    for n, m in pairwise(levels):
        slope, onward = n / (L + n**2), m / (L + m**2)
        euler = 1 + (m - n) * slope
        factor = euler if m == 0 else 1 + (m - n) / 2 * (slope + onward * euler)
        law = factor * law[0], factor**2 * law[1]
    return law


def test_the_law_of_restart():
    """Heun with EDM's levels; at the first level at or below .06: up to .3 and back, three times. See arXiv 2306.14878."""
    schedule = EDM(LOW, HIGH)
    sampler = Restart(Heun(18, Karras(7.0, None, None)), [[0.06, 0.3, 3, 2]])
    _, found = law_of(sampler, schedule)
    levels = karras_levels(19, 0.002, 80.0, 7.0)
    stop = int(np.argmax(levels <= 0.06))
    law = heun_law((-M, 80.0**2), levels[: stop + 1])
    for _ in range(2):
        law = law[0], law[1] + 0.3**2 - levels[stop] ** 2
        law = heun_law(law, karras_levels(4, levels[stop], 0.3, 7.0))
    law = heun_law(law, levels[stop:])
    np.testing.assert_allclose(found, (M + law[0], law[1]), rtol=1e-9)


def test_restart_takes_the_ends_of_the_grid():
    """Which in float64 are 0.002 and 80 up to rounding; with a learned schedule nobody is asked for gradients."""
    for schedule, low, high in ((EDM(LOW, HIGH), 0.002, 80.0), (Monotone(13.3, -5.0, False, 8), 0.1, 5.0)):
        denoiser = EvaluationCounter(ExactMixture(gaussian([M], [[L]]), schedule))
        sampler = Restart(published(Heun(5, Karras(7.0, None, None))), [[low, high, 3, 1]])
        with warnings.catch_warnings(action="error"):
            x = next(generate(denoiser, sampler, [0], None, (1,), 1))
        assert denoiser.tally.evaluations == 2 * (5 + 3) and bool(x.isfinite())


@pytest.mark.parametrize("inner", ["heun", "ddpm"])
def test_restarts_draw_noise_of_their_own(inner):
    """n = 20000, 4.5 standard errors. Were a walk's noise that of the walk before, the variance would be far above .25."""
    schedule, n = Cosine(12.0, -10.0), 20000
    walk = {"heun": Heun(40, UniformT()), "ddpm": DDPM(40, UniformT(), variance=0.0)}[inner]
    sampler = Restart(walk, [[0.1, 3.0, 12, 3]])
    x = next(generate(ExactMixture(gaussian([M], [[L]]), schedule), sampler, range(n), None, (1,), n)).numpy()
    _, (mean, variance) = law_of(sampler, schedule)
    assert variance == pytest.approx(L, abs=0.015 if inner == "heun" else 0.07)  # ddpm's own error in 12 steps
    assert abs(x.mean() - mean) < 4.5 * math.sqrt(variance / n)
    assert abs(x.var() - variance) < 4.5 * variance * math.sqrt(2 / n)


def test_corrections_draw_noise_of_their_own():
    """As above: shared noise made 1.44 of .25."""
    schedule, n = Cosine(12.0, -10.0), 20000
    sampler = LangevinPC(DDPM(40, UniformT(), variance=0.0), corrections=3, snr=0.16)
    x = next(generate(ExactMixture(gaussian([M], [[L]]), schedule), sampler, range(n), None, (1,), n)).numpy()
    _, (mean, variance) = law_of(sampler, schedule)
    assert abs(x.mean() - mean) < 4.5 * math.sqrt(variance / n)
    assert abs(x.var() - variance) < 4.5 * variance * math.sqrt(2 / n) and variance == pytest.approx(L, abs=0.03)
