"""Rules of flow models against their papers' formulas in NumPy, on the flow of every schedule."""

import math

import numpy as np
import pytest
import torch
from all_samplers import SAMPLERS
from rule_sides import SCHEDULES, TIME, every_schedule, numbers, sides
from two_class_points import EVERYWHERE, exact, x, y

from diffguide.guidance import SMC, VAGS, AdaMaG, ClassifierFree
from diffguide.guidance.flow_rules import compute_flow, flow_time, shift_flow
from diffguide.randomness import Noise
from diffguide.schedules import Flow


def dot(a, b):
    return (a * b).sum()


def rows(function, *arrays):
    return np.stack([function(*parts) for parts in zip(*(a.numpy() for a in arrays))])


def check(schedule, x_t, found, u: np.ndarray):
    """x_0 and eps of the flow x_t / (alpha + sigma) with velocity u."""
    alpha, sigma = numbers(schedule)
    z, time = x_t.numpy() / (alpha + sigma), sigma / (alpha + sigma)
    np.testing.assert_allclose(found.x_0, z - time * u, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.eps, z + (1 - time) * u, rtol=1e-9, atol=1e-9)


@every_schedule
@pytest.mark.parametrize("scale", [0.0, 1.0, 4.0])
@pytest.mark.parametrize("slope, gain", [(5.0, 0.2), (0.05, 0.3), (5.0, 0.0)])
def test_smc_is_its_formula_over_three_levels(schedule, scale, slope, gain):
    """The code of CFG-Ctrl: s = (e - e') + lambda e', e <- e - K sign(s); e' is the corrected one, e itself at first."""
    rule = SMC(slope, gain)
    memory, last = rule.start(torch.tensor([1.0, 0.0])), None
    for seed, level in ((0, 0.7), (1, 0.62), (2, 0.55)):
        x_t, strong, weak = sides(schedule, seed=seed)
        time = torch.tensor(level, dtype=torch.float64)
        found = rule(strong, weak, torch.tensor(scale, dtype=torch.float64), x_t, time, schedule, memory)
        again = rule(strong, weak, torch.tensor(scale, dtype=torch.float64), x_t, time, schedule, memory)
        assert torch.equal(found.x_0, again.x_0)
        v_c, v_u = (compute_flow(side).numpy() for side in (strong, weak))
        e = v_c - v_u
        s = (e - (e if last is None else last)) + slope * (e if last is None else last)
        last = e - gain * np.sign(s)
    check(schedule, x_t, found, v_u + scale * last)  # the last one is at TIME, where its sides agree with x_t


@every_schedule
@pytest.mark.parametrize("scale", [0.0, 1.0, 7.0])
@pytest.mark.parametrize("beta, gamma, least", [(0.1, 4.0, 1.0), (0.3, 2.0, 0.0), (1.0, 0.0, 0.0)])
def test_adamag_is_its_formula(schedule, scale, beta, gamma, least):
    """Eq. 10, 11 and 13, whose tau and velocity run from noise to data: tau = 1 - time, v = -u."""
    x_t, strong, weak = sides(schedule)
    alpha, sigma = numbers(schedule)
    tau = alpha / (alpha + sigma)

    def formula(v_c, v_u, z):
        n = z / tau - v_c  # a_t x - v_c with a_t = 1 / tau
        g = v_c - v_u
        along = dot(g, n) / dot(n, n) * n
        return v_u + max(least, scale * (1 - tau) ** gamma) * ((g - along) + beta * along)

    v_c, v_u = compute_flow(strong), compute_flow(weak)
    u = -rows(formula, -v_c, -v_u, x_t / (alpha + sigma))
    found = AdaMaG(beta, gamma, least)(
        strong, weak, torch.tensor(scale, dtype=torch.float64), x_t, TIME, schedule, None
    )
    check(schedule, x_t, found, u)
    if (beta, gamma) == (1.0, 0.0):  # plain guidance
        np.testing.assert_allclose(u, v_u + scale * (v_c - v_u), rtol=1e-10, atol=1e-10)


@every_schedule
@pytest.mark.parametrize("scale", [0.0, 7.0])
@pytest.mark.parametrize("kappa", [0.0, 1.0, -0.5])
def test_vags_is_its_formula(schedule, scale, kappa):
    x_t, strong, weak = sides(schedule)
    alpha, sigma = numbers(schedule)
    signal = alpha / (alpha + sigma)

    def formula(c, u):
        cosine = dot(c, u) / math.sqrt(dot(c, c) * dot(u, u))
        return u + scale * math.exp(kappa * (2 * signal - 1) * cosine) * (c - u)

    found = VAGS(kappa)(strong, weak, torch.tensor(scale, dtype=torch.float64), x_t, TIME, schedule, None)
    check(schedule, x_t, found, rows(formula, compute_flow(strong), compute_flow(weak)))


def test_a_flow_in_pure_noise_and_in_data():
    """The exact flow: x_0 moves by all of a change at t = 1, eps at t = 0."""
    schedule = Flow(math.inf, -math.inf)
    x_t, strong, _ = sides(SCHEDULES["flow"])
    change = torch.ones_like(x_t)
    for t, of_x_0 in ((1.0, 1.0), (0.0, 0.0)):
        time = flow_time(torch.tensor(t, dtype=torch.float64), schedule, x_t)
        moved = shift_flow(strong, change, time)
        torch.testing.assert_close(strong.x_0 - moved.x_0, of_x_0 * change)
        torch.testing.assert_close(moved.eps - strong.eps, (1 - of_x_0) * change)


def run(name, denoiser, labels=y, start=x):
    sampler = SAMPLERS[name](6)
    times = sampler.times(denoiser)
    noise = Noise(range(len(start)), (2,), denoiser.schedule, dtype=torch.float64)
    return sampler(denoiser, denoiser.schedule.alpha_sigma(times[0])[1] * start, times, labels, noise)


@pytest.mark.parametrize("name", ["heun", "ddim-1", "dpm2", "restart"])
def test_the_memory_of_smc_belongs_to_a_run_and_a_row(name):
    guided = ClassifierFree(exact(), 3.0, EVERYWHERE, SMC())
    first = run(name, guided)
    small = run(name, guided, y[:3], x[:3])
    assert torch.equal(run(name, guided), first)
    torch.testing.assert_close(small, first[:3], rtol=1e-9, atol=1e-9)
    assert float((run(name, ClassifierFree(exact(), 3.0, EVERYWHERE, SMC(gain=0.0))) - first).abs().max()) > 1e-6


def test_a_gain_of_0_is_classifier_free_guidance():
    torch.testing.assert_close(
        run("heun", ClassifierFree(exact(), 3.0, EVERYWHERE, SMC(gain=0.0))),
        run("heun", ClassifierFree(exact(), 3.0, EVERYWHERE)),
        rtol=1e-10,
        atol=1e-10,
    )


def test_rows_without_a_label_are_unguided():
    """Where the sides agree the difference is 0, also its sign."""
    nothing = torch.full_like(y, -1)
    for rule in (SMC(), VAGS(), AdaMaG()):
        torch.testing.assert_close(
            run("heun", ClassifierFree(exact(), 3.0, EVERYWHERE, rule), nothing), run("heun", exact(), None)
        )


@pytest.mark.parametrize("make, sentence", [
    (lambda: SMC(gain=-1.0), "gain must be in"), (lambda: SMC(slope=math.inf), "slope must be a finite"),
    (lambda: AdaMaG(exponent=-1.0), "exponent must be in"), (lambda: AdaMaG(least=math.nan), "least must be"),
    (lambda: VAGS(math.nan), "kappa must be"),
])  # fmt: skip
def test_numbers_out_of_range(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


def test_smc_needs_one_level_for_all():
    with pytest.raises(ValueError, match="SMC depends on earlier noise levels"):
        ClassifierFree(exact(), 3.0, EVERYWHERE, SMC())(x, torch.full((8,), 0.5, dtype=torch.float64), y)
