"""Time travel: exact steps keep the law, noise of its own, repeats that are counted."""

import math

import numpy as np
import pytest
import torch
from affine import terminal_law
from closed_forms import gaussian
from exact_models import oracle
from potential_laws import COSINE, Towards

from diffguide.guidance.potentials import LGD, MPGD
from diffguide.models.evaluation_counters import EvaluationCounter
from diffguide.randomness import Noise
from diffguide.samplers import DDIM, DDPM, DPMpp2M, ExactDDPM, Restart, TimeTravel
from diffguide.samplers.grids import UniformLogSNR, UniformT
from diffguide.schedules import EDM

MEAN, COVARIANCE = np.array([0.4, -0.3]), np.array([[0.5, 0.2], [0.2, 0.3]])
LAW = oracle(gaussian(MEAN, COVARIANCE), COSINE)
EVERYWHERE = [0.0, math.inf]


@pytest.mark.parametrize("interval", [EVERYWHERE, [0.1, 2.0]], ids=["everywhere", "inside"])
def test_exact_steps_keep_the_law(interval):
    """On a Gaussian, steps of any length with the exact covariance: mean and covariance to rounding, whatever the repeats."""
    sampler = TimeTravel(ExactDDPM(4, UniformT()), 2, interval)
    times = sampler.times(LAW)
    alpha, sigma = (float(a) for a in COSINE.alpha_sigma(times[0]))
    start = alpha * MEAN, alpha**2 * COVARIANCE + sigma**2 * np.eye(2)
    alpha, sigma = (float(a) for a in COSINE.alpha_sigma(times[-1]))
    mean, covariance = terminal_law(sampler, LAW, times, *start)
    np.testing.assert_allclose(mean, alpha * MEAN, atol=1e-9)
    np.testing.assert_allclose(covariance, alpha**2 * COVARIANCE + sigma**2 * np.eye(2), atol=1e-9)


def run(sampler, denoiser=LAW, seeds=range(2000)):
    noise, times = Noise(seeds, (2,), COSINE, dtype=torch.float64), sampler.times(denoiser)
    return sampler(denoiser, noise.normal(times[0], 0), times, None, noise)


def test_its_noise_is_its_own():
    """The noise put back and the repeated step's are independent of each other and of the first: the variance is kept."""
    found = run(TimeTravel(ExactDDPM(3, UniformT()), 3, EVERYWHERE))
    np.testing.assert_allclose(np.cov(found.numpy().T), COVARIANCE, atol=0.06)
    assert torch.equal(found[:5], run(TimeTravel(ExactDDPM(3, UniformT()), 3, EVERYWHERE), seeds=range(5)))


class Written:
    """No noise, and a list of what was asked for."""

    def __init__(self):
        self.asked = []

    def normal(self, level, draw):
        self.asked.append((float(level), draw))
        return torch.zeros(1, 2, dtype=torch.float64)

    def increment(self, t, s):
        return self.normal(t, float(s))  # of the path, whose increments are their own


@pytest.mark.parametrize(
    "sampler",
    [
        TimeTravel(DDPM(4, UniformT(), variance=0.0), 20, EVERYWHERE),
        TimeTravel(Restart(DDPM(4, UniformT(), variance=0.0), [[0.2, 1.0, 2, 3]]), 3, EVERYWHERE),
        Restart(TimeTravel(DDPM(4, UniformT(), variance=0.0), 3, EVERYWHERE), [[0.2, 1.0, 2, 3]]),
    ],
    ids=["smoothing", "restart inside", "restart outside"],
)
def test_no_draw_is_used_twice(sampler):
    """Visits, visits within visits, and what guidance draws for itself: all independent of each other."""
    guided, noise = LGD(LAW, Towards(0.5, 1.0), 0.1, EVERYWHERE, 3), Written()
    sampler(guided, torch.ones(1, 2, dtype=torch.float64), sampler.times(guided), None, noise)
    assert len(noise.asked) == len(set(noise.asked)) > 20


def test_steps_within_the_interval_cost_one_more_per_repeat():
    """Within the interval a step costs 1 + repeats, outside it 1."""
    sampler = TimeTravel(DDIM(10, UniformT(), eta=0.0), 3, [0.2, 3.0])
    levels = COSINE.noise_level(sampler.times(LAW)[:-1])
    inside = int(((levels > 0.2) & (levels <= 3.0)).sum())
    counter = EvaluationCounter(LAW)
    run(sampler, counter, range(1))
    assert 0 < inside < 10 and counter.tally.evaluations == 10 + 3 * inside


def test_a_multistep_sampler_forgets_the_other_path():
    """Every step from t is then of first order, and bit for bit that of DDIM."""
    multistep, first = (
        TimeTravel(inner, 1, EVERYWHERE) for inner in (DPMpp2M(6, UniformT()), DDIM(6, UniformT(), eta=0.0))
    )
    torch.testing.assert_close(run(multistep, seeds=range(5)), run(first, seeds=range(5)), rtol=1e-10, atol=1e-10)


def test_it_gives_guidance_time_to_act():
    """A weak pull, repeated: samples end nearer to the point with more repeats."""
    guided = MPGD(LAW, Towards(torch.tensor([2.0, 2.0]).double(), 1.0), 0.1, EVERYWHERE)
    without = DDIM(10, UniformT(), eta=1.0)
    distance = [
        float((run(sampler, guided, range(200)) - 2.0).norm(dim=1).mean())
        for sampler in (without, TimeTravel(without, 2, EVERYWHERE), TimeTravel(without, 8, EVERYWHERE))
    ]
    assert distance[0] > distance[1] + 0.1 and distance[1] > distance[2] + 0.1


@pytest.mark.parametrize("repeats, interval, sentence", [
    (0, EVERYWHERE, "repeats must be"),
    (1, [2.0, 1.0], "interval must be .* got .2.0, 1.0."),
    (1, [1e6, 1e7], r"interval must hold a step of the grid, whose noise levels are .* got \[1000000.0, 10000000.0\]"),
])  # fmt: skip
def test_invalid_arguments_raise(repeats, interval, sentence):
    with pytest.raises(ValueError, match=sentence):
        TimeTravel(DDIM(4, UniformT(), eta=0.0), repeats, interval).times(LAW)


def test_time_travel_in_time_travel_is_refused():
    inner = TimeTravel(DDIM(4, UniformT(), eta=0.0), 2, EVERYWHERE)
    with pytest.raises(ValueError, match="inner must not be a TimeTravel"):
        TimeTravel(inner, 2, EVERYWHERE)


def test_the_step_to_exact_data_is_not_repeated():
    """So that the last thing done is the sampler's own step."""
    schedule = EDM(math.inf, -8.7)
    counter = EvaluationCounter(oracle(gaussian(MEAN, COVARIANCE), schedule))
    sampler = TimeTravel(DDIM(5, UniformLogSNR(), eta=0.0), 2, EVERYWHERE)
    times = torch.tensor([0.9, 0.5, 0.3, 0.0], dtype=torch.float64)
    sampler(counter, torch.ones(1, 2, dtype=torch.float64), times, None, Noise([0], (2,), schedule))
    assert counter.tally.evaluations == 2 * 3 + 1
