"""Rectified-CFG++ against the authors' loop in NumPy."""

import math

import numpy as np
import pytest
import torch
from all_samplers import SAMPLERS
from two_class_points import EVERYWHERE, exact, t, x, y

from diffguide.guidance import LinearRamp, RectifiedCFGPlusPlus
from diffguide.models.evaluation_counters import EvaluationCounter
from diffguide.randomness import Noise
from diffguide.samplers import DDIM, Euler
from diffguide.samplers.grids import UniformT
from diffguide.schedules import EDM, Cosine, Flow

FLOW = Flow(12.0, -12.0)


def velocity(z, time, labels):
    """What the authors' network predicts: from data to noise, at sigma = time."""
    side = exact(FLOW)(torch.from_numpy(z), torch.tensor(time, dtype=torch.float64), labels)
    return (side.eps - side.x_0).numpy()


@pytest.mark.parametrize("weight", [0.0, 0.5, 4.5])
def test_euler_steps_are_the_authors(weight):
    """pipeline.py: x_pred = x + dt v_c(x, t), then x + dt (v_c(x, t) + w (v_c - v_u)(x_pred, t + dt))."""
    times = UniformT()(FLOW, 20)
    z, noise = x.numpy(), FLOW.alpha_sigma(times)[1].numpy()
    for k in range(20):
        dt, (now, after) = noise[k + 1] - noise[k], map(float, times[k : k + 2])
        v = velocity(z, now, y)
        ahead = z + dt * v
        z = z + dt * (v + weight * (velocity(ahead, after, y) - velocity(ahead, after, None)))
    found = Euler(20, UniformT())(RectifiedCFGPlusPlus(exact(FLOW), 1 + weight), x, times, y)
    np.testing.assert_allclose(found, z, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("schedule", [Cosine(12.0, -12.0), EDM(12.0, -12.0)], ids=["vp", "ve"])
def test_it_is_the_same_on_every_schedule(schedule):
    levels, ends = torch.tensor([9.0, 3.0, 1.5, 0.7, 0.3, 0.1], dtype=torch.float64), []
    for each in (FLOW, schedule):
        times = each.t_of(-2 * levels.log())
        total = sum(each.alpha_sigma(times))
        end = DDIM(5, UniformT(), eta=0.0)(RectifiedCFGPlusPlus(exact(each), 3.0), total[0] * x, times, y)
        ends.append(end / total[-1])
    torch.testing.assert_close(*ends, rtol=1e-6, atol=1e-6)


def run(name, denoiser, labels=y, start=x):
    sampler = SAMPLERS[name](6)
    times = sampler.times(denoiser)
    noise = Noise(range(len(start)), (2,), denoiser.schedule, dtype=torch.float64)
    return sampler(denoiser, denoiser.schedule.alpha_sigma(times[0])[1] * start, times, labels, noise)


@pytest.mark.parametrize("name", ["ddim", "heun", "dpm2", "dpmpp_2m", "ddim-1", "restart"])
def test_off_and_a_row_with_every_solver(name):
    """Scale 1, an interval below the run and rows without labels are the model; a sample does not see its batch."""
    plain = run(name, exact())
    assert torch.equal(run(name, RectifiedCFGPlusPlus(exact(), 1.0)), plain)
    assert torch.equal(run(name, RectifiedCFGPlusPlus(exact(), 3.0, (0.0, 1e-9))), plain)
    nothing = run(name, RectifiedCFGPlusPlus(exact(), 3.0), torch.full_like(y, -1))
    torch.testing.assert_close(nothing, run(name, exact(), None), rtol=1e-9, atol=1e-9)
    guided = run(name, RectifiedCFGPlusPlus(exact(), 3.0))
    small = run(name, RectifiedCFGPlusPlus(exact(), 3.0), y[:3], x[:3])
    torch.testing.assert_close(small, guided[:3], rtol=1e-9, atol=1e-9)
    assert float((guided - plain).abs().max()) > 1e-3


def test_three_evaluations_a_step_and_one_where_it_is_off():
    counter = EvaluationCounter(exact(FLOW))
    run("ddim", RectifiedCFGPlusPlus(counter, 3.0))
    assert counter.tally.evaluations == 6 * 3 * 8
    run("ddim", RectifiedCFGPlusPlus(counter, 3.0, EVERYWHERE, LinearRamp(1e-8, 1e-9)))
    assert counter.tally.evaluations == 6 * 3 * 8 + 6 * 8


def test_the_last_step_to_the_data_itself():
    """The exact flow: no evaluation at sigma = 0, the difference is that at x_t."""
    schedule = Flow(math.inf, -12.0)
    times = torch.tensor([0.5, 0.0], dtype=torch.float64)
    found = DDIM(1, UniformT(), eta=0.0)(RectifiedCFGPlusPlus(exact(schedule), 3.0), x, times, y)
    strong, weak = exact(schedule)(x, times[0], y), exact(schedule)(x, times[0])
    torch.testing.assert_close(found, weak.x_0 + 3 * (strong.x_0 - weak.x_0), rtol=1e-9, atol=1e-9)


def test_it_needs_a_run_and_one_level_for_all():
    with pytest.raises(ValueError, match="needs the steps of a run"):
        RectifiedCFGPlusPlus(exact(), 3.0)(x, t, y)
    with pytest.raises(ValueError, match="must have the same noise level"):
        RectifiedCFGPlusPlus(exact(), 3.0).start(None, torch.tensor([1.0, 0.0]).double())(x, t.expand(8), y)
    with pytest.raises(ValueError):
        SAMPLERS["dopri5"](6).times(RectifiedCFGPlusPlus(exact(), 3.0))
