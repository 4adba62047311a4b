"""Feedback guidance against the authors' sampler, written out in NumPy."""

import math

import numpy as np
import pytest
import torch
from all_samplers import SAMPLERS
from two_class_points import EVERYWHERE, exact, x, y

from diffguide.guidance import ClassifierFree, Feedback, Linear, TableRamp
from diffguide.randomness import Noise
from diffguide.samplers import DDIM, DDPM
from diffguide.samplers.grids import UniformT
from diffguide.schedules import EDM, Cosine, Flow

VE = EDM(12.4, -8.7)


def parameters(levels, pi, t_0, t_1):
    """delta and tau as `delta_from_t0` and `Temp_from_t1` of the authors' code; their last step, to 0, has variance 0."""
    n = len(levels) - 1
    table = np.zeros(n + 1)
    for i in range(n):
        table[n - i - 1] = (levels[i] ** 2 - levels[i + 1] ** 2) * levels[i + 1] ** 2 / levels[i] ** 2
    delta = math.log((1 - pi) * 3 / 2) / ((1 - t_0) * n)
    table[n] = table[n - 1]  # beyond the first step
    lower = int(t_1 * n)
    share = t_1 * n - lower
    return delta, abs(2 * ((1 - share) * table[lower] + share * table[lower + 1]) / 10 * delta)


def authors_run(law, levels, start, noise, pi, largest, constant, delta, tau):
    """`edm_sampler` with FBG_CFG: Euler steps, or ancestral ones where noise is given; the last step ends at the data."""
    state, log_posterior = start, np.zeros(len(start))
    least, scales = math.log((1 - pi) * (largest - constant + 1) / (largest - constant)), []
    for i, (t, s) in enumerate(zip(levels, levels[1:])):
        scale = np.exp(log_posterior) / (np.exp(log_posterior) - (1 - pi)) + constant - 1
        scales.append(scale)
        c, u = law(state, t, True), law(state, t, False)
        guided = u + scale[:, None] * (c - u)
        if noise is None:
            moved = state + (s - t) * (state - guided) / t
        else:
            moved = s**2 / t**2 * state + (t**2 - s**2) / t**2 * guided
            moved = moved + (math.sqrt(t**2 - s**2) * s / t * noise[i] if s else 0)
        if s:
            v = (t**2 - s**2) * s**2 / t**2
            means = (s**2 / t**2 * state + (t**2 - s**2) / t**2 * D for D in (c, u))
            difference = np.subtract(*(((moved - mean) ** 2).sum(1) for mean in means))
            log_posterior = np.clip(log_posterior - tau / (2 * v) * difference + delta, least, 3)
        state = moved
    return state, scales


def exact_law(state, level, labelled):
    time = VE.t_of(torch.tensor(-2 * math.log(level), dtype=torch.float64))
    return exact(VE)(torch.from_numpy(state), time, y if labelled else None).x_0.numpy()


LEVELS = np.array([20.0, 9.0, 4.0, 2.0, 1.0, 0.5, 0.2, 0.05])
TIMES = VE.t_of(-2 * torch.from_numpy(LEVELS).log())


@pytest.mark.parametrize("pi, constant, given", [
    (0.95, 1.0, None), (0.8, 1.0, None), (0.95, 2.5, None), (0.9, 1.0, (0.2, -0.1)),
])  # fmt: skip
def test_euler_steps_are_the_authors(pi, constant, given):
    delta, tau = parameters(LEVELS, pi, 0.5, 0.4) if given is None else given[::-1]
    said = {} if given is None else {"temperature": tau, "offset": delta}
    expected, scales = authors_run(exact_law, LEVELS, 20 * x.numpy(), None, pi, 10.0, constant, delta, tau)
    guided = ClassifierFree(exact(VE), constant, EVERYWHERE, Feedback(pi, **said))
    found = DDIM(len(TIMES) - 1, UniformT(), eta=0.0)(guided, 20 * x, TIMES, y)
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8)
    assert np.ptp(scales, axis=1).max() > 1e-3  # each sample has its own


def test_ancestral_steps_are_the_authors():
    """DDPM's small variance is that of the authors' stochastic step, with the run's own noise."""
    source = Noise(range(8), (2,), VE, dtype=torch.float64)
    noise, delta_tau = [], parameters(LEVELS, 0.95, 0.5, 0.4)
    for t, s in zip(TIMES, TIMES[1:]):
        noise.append(source.increment(t, s).numpy())
    expected, _ = authors_run(exact_law, LEVELS, 20 * x.numpy(), noise, 0.95, 10.0, 1.0, *delta_tau)
    guided = ClassifierFree(exact(VE), 1.0, EVERYWHERE, Feedback())
    fresh = Noise(range(8), (2,), VE, dtype=torch.float64)
    found = DDPM(len(TIMES) - 1, UniformT(), variance=0.0)(guided, 20 * x, TIMES, y, fresh)
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("schedule", [Cosine(12.0, -10.0), Flow(12.0, -12.0)], ids=["vp", "flow"])
def test_it_is_the_same_on_every_schedule(schedule):
    ends = []
    for each in (VE, schedule):
        times = each.t_of(-2 * torch.from_numpy(LEVELS[1:]).log())
        alpha, start = each.alpha_sigma(times)[0], each.alpha_sigma(times[0])[0] * 9 * x
        end = DDIM(6, UniformT(), eta=0.0)(ClassifierFree(exact(each), 1.0, EVERYWHERE, Feedback()), start, times, y)
        ends.append(end / alpha[-1])
    torch.testing.assert_close(*ends, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("rise, fall", [(0.5, 0.4), (0.0, 1.0), (0.8, 0.0), (0.556, 0.429)])
def test_the_offset_and_temperature_of_a_run_that_ends_at_the_data(rise, fall):
    """The authors' Karras grid of 16 levels with a 0 at its end."""
    schedule, n = EDM(math.inf, -8.7), 16
    levels = np.append((70 ** (1 / 7) + np.arange(n) / (n - 1) * (0.002 ** (1 / 7) - 70 ** (1 / 7))) ** 7, 0.0)
    times = schedule.t_of(-2 * torch.from_numpy(levels).log())
    temperature, offset = Feedback(0.95, rise, fall).resolve(times, schedule)
    delta, tau = parameters(levels, 0.95, rise, min(fall, 1 - 1e-12))
    assert offset == pytest.approx(delta, rel=1e-12) and temperature == pytest.approx(tau, rel=1e-6)


def run(name, denoiser, labels=y, start=x):
    sampler = SAMPLERS[name](6)
    times = sampler.times(denoiser)
    noise = Noise(range(len(start)), (2,), denoiser.schedule, dtype=torch.float64)
    return sampler(denoiser, denoiser.schedule.alpha_sigma(times[0])[1] * start, times, labels, noise)


@pytest.mark.parametrize("name", ["heun", "ddim-1", "dpmpp_2m", "dpm2", "restart"])
def test_the_scale_belongs_to_a_run_and_a_row(name):
    guided = ClassifierFree(exact(), 1.0, EVERYWHERE, Feedback(0.9))
    first = run(name, guided)
    small = run(name, guided, y[:3], x[:3])
    assert torch.equal(run(name, guided), first)
    torch.testing.assert_close(small, first[:3], rtol=1e-9, atol=1e-9)
    assert float((run(name, exact()) - first).abs().max()) > 1e-6


def test_the_second_look_of_heun_at_a_level_replaces_the_first():
    times = torch.tensor([0.9, 0.6, 0.4], dtype=torch.float64)
    guided, alone = (ClassifierFree(exact(), 1.0, EVERYWHERE, Feedback(0.9)).start(None, times) for _ in range(2))
    for each in (guided, alone):
        each(x, times[0], y)
    guided(0.7 * x, times[1], y)  # where Euler's step arrived
    for each in (guided, alone):
        each(0.8 * x, times[1], y)
    assert torch.equal(guided(x, times[2], y).x_0, alone(x, times[2], y).x_0)


def test_mixing_1_is_classifier_free_guidance():
    for scale in (1.0, 3.0):
        found = run("heun", ClassifierFree(exact(), scale, EVERYWHERE, Feedback(1.0)))
        expected = run("heun", ClassifierFree(exact(), scale, EVERYWHERE, Linear()))
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_a_ramp_limits_the_constant_part_to_some_levels():
    """The authors' FBG_LIG: with a table that is 0 everywhere it is feedback alone."""
    never = TableRamp([[1e-4, 0.0], [1e4, 0.0]])
    found = run("ddim", ClassifierFree(exact(), 3.0, EVERYWHERE, Feedback(max_scale=10.0), never))
    torch.testing.assert_close(found, run("ddim", ClassifierFree(exact(), 1.0, EVERYWHERE, Feedback())))


def test_rows_without_a_label_are_unguided():
    found = run("ddim", ClassifierFree(exact(), 1.0, EVERYWHERE, Feedback()), torch.full_like(y, -1))
    torch.testing.assert_close(found, run("ddim", exact(), None))


@pytest.mark.parametrize("make, sentence", [
    (lambda: Feedback(0.0), "mixing must be in"), (lambda: Feedback(rise=1.0), "rise must be in"),
    (lambda: Feedback(fall=1.5), "fall must be in"), (lambda: Feedback(max_scale=1.0), "max_scale must be in"),
    (lambda: Feedback(temperature=-1.0), "temperature must be in"), (lambda: Feedback(offset=math.inf), "offset must be"),
    (lambda: ClassifierFree(exact(), 12.0, EVERYWHERE, Feedback()), "scale must be below max_scale 10, got 12"),
])  # fmt: skip
def test_numbers_out_of_range(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
