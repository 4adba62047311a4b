"""Jumps of the exact map of guided Gaussians, and noise put back in, against NumPy."""

import math

import numpy
import pytest
import torch
from exact_jumps import SCHEDULE, VARIANCES, ExactBackbone, Teacher

from diffguide.guidance import ClassifierFree, Distilled
from diffguide.models import EvaluationCounter
from diffguide.models.jumps import JumpModel
from diffguide.models.parameterizations import V
from diffguide.oracles import flow_map
from diffguide.randomness import Noise
from diffguide.samplers import Jump
from diffguide.samplers.grids import CustomGrid

Y = torch.tensor([0, 0, -1, 0])


def model(**facts):
    return JumpModel(ExactBackbone(), SCHEDULE, V(), True, (1.0, 4.0), **facts)


def start(sampler, denoiser):
    times = sampler.times(denoiser)
    noise = Noise(range(4), (3,), SCHEDULE)
    return times, noise, noise.normal(times[0], 0).double()


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_exact_jumps_follow_the_guided_flow_whatever_their_number(steps):
    sampler, guided = Jump(steps), Distilled(model(), 2.5)
    times, _, x = start(sampler, guided)
    found = sampler(guided, x, times, Y)
    expected = flow_map(ClassifierFree(Teacher(), 2.5), x, times[0], times[-1], Y)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("renoise", [0.6, 1.0])
def test_noise_is_put_back_in(renoise):
    """A loop in NumPy: the closed form of the jump to the lower level, then noise up to the level of s."""
    sampler, guided = Jump(3, CustomGrid([0.9, 0.6, 0.3, 0.0]), renoise), Distilled(model(), 2.0)
    times, noise, x = start(sampler, guided)
    found = sampler(guided, x, times, Y, noise)
    level = lambda u: math.exp(-float(SCHEDULE.log_snr(u)) / 2)  # noqa: E731
    none = (Y.numpy() < 0)[:, None]
    weights = numpy.where(none, 0.0, 2.0), numpy.where(none, 1.0, -1.0)
    z = x.numpy() / float(SCHEDULE.alpha_sigma(times[0])[0])
    for t, s in zip(times, times[1:]):
        high, low = level(t), level(s) if s == 0 else max(math.sqrt(1 - renoise**2) * level(s), level(0.0))
        for weight, variance in zip(weights, VARIANCES):
            z = z * ((variance + low**2) / (variance + high**2)) ** (weight / 2)
        if s > 0:
            z = z + math.sqrt(level(s) ** 2 - low**2) * noise.increment(t, s).double().numpy()
    numpy.testing.assert_allclose(found.numpy(), z * float(SCHEDULE.alpha_sigma(times[-1])[0]), rtol=1e-6, atol=1e-6)


def test_a_step_is_one_call():
    counted = EvaluationCounter(model())
    sampler = Jump(4)
    times, _, x = start(sampler, counted)
    plain = sampler(model(), x, times, Y)
    assert torch.equal(sampler(counted, x, times, Y), plain)
    own = model()
    own.tally = counted.tally
    counted.tally.evaluations = 0
    sampler(own, x, times, Y)
    assert counted.tally.evaluations == 4 * 4


def test_the_scale_of_a_counted_network_is_chosen_inside():
    guided = Distilled(EvaluationCounter(model()), 3.0)
    assert isinstance(guided, EvaluationCounter) and guided.denoiser.scale == 3


@pytest.mark.parametrize(
    "run, reason",
    [
        (lambda: Jump().times(model(jumps=False)), "trained with objective.jump=null"),
        (lambda: Jump().times(Teacher()), "a network that jumps"),
        (lambda: Jump().times(ClassifierFree(model(), 2.0)), "guidance=none"),
        (lambda: Distilled(Teacher(), 2.0), "learned guidance"),
        (lambda: Distilled(model(), 4.5), "1 to 4"),
    ],
)
def test_what_does_not_jump_is_refused(run, reason):
    with pytest.raises(ValueError, match=reason):
        run()
