"""The exact flow map, against closed forms for Gaussians and against the ODE itself for mixtures."""

import math

import numpy
import pytest
import torch

from diffguide.guidance import APG, Autoguidance, ClassifierFree
from diffguide.oracles import GaussianMixture, flow_map
from diffguide.schedules import EDM, Cosine, Flow

SCHEDULES = [Cosine(), EDM(), Flow()]
TIMES = [(0.9, 0.2), (1.0, 0.0), (0.3, 0.8)]


def draw(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def time(value):
    return torch.tensor(value, dtype=torch.float64)


@pytest.mark.parametrize("t, s", TIMES)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
def test_a_gaussian_is_scaled_about_its_mean(schedule, t, s):
    """x_s - alpha_s m = sqrt((alpha_s^2 C + sigma_s^2) / (alpha_t^2 C + sigma_t^2)) (x_t - alpha_t m), per direction."""
    mean, variances = numpy.array([0.5, -1.0]), numpy.array([0.3, 2.0])
    law = GaussianMixture([1.0], [mean.tolist()], torch.diag(torch.tensor(variances))[None], [0], schedule)
    (a_t, s_t), (a_s, s_s) = ([float(part) for part in schedule.alpha_sigma(time(u))] for u in (t, s))
    x_t = a_t * torch.tensor(mean) + draw(5, 2) * math.hypot(a_t, s_t)
    spread = numpy.sqrt((a_s**2 * variances + s_s**2) / (a_t**2 * variances + s_t**2))
    expected = a_s * mean + spread * (x_t.numpy() - a_t * mean)
    found = flow_map(law, x_t, time(t), time(s))
    assert numpy.allclose(found.numpy(), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_two_guided_gaussians_are_scaled_by_the_product_of_powers(scale):
    """dz/dnu = nu z (w / (c + nu^2) + (1 - w) / (u + nu^2)), so that z changes by powers of (v + nu^2)."""
    schedule = Cosine()
    strong, weak = (GaussianMixture([1.0], [[0.0]], [v], [0], schedule) for v in (1.0, 2.0))
    guided = Autoguidance(strong, weak, scale=scale)
    t, s = time(0.95), time(0.1)
    (a_t, s_t), (a_s, s_s) = ([float(part) for part in schedule.alpha_sigma(u)] for u in (t, s))
    high, low = (s_t / a_t) ** 2, (s_s / a_s) ** 2
    factor = ((1 + low) / (1 + high)) ** (scale / 2) * ((2 + low) / (2 + high)) ** ((1 - scale) / 2)
    x_t = draw(4, 1)
    assert torch.allclose(flow_map(guided, x_t, t, s), x_t * factor * a_s / a_t, rtol=1e-8, atol=1e-10)


@pytest.fixture
def mixture():
    return GaussianMixture([0.4, 0.6], [[-1.0, 0.3], [1.0, 0.0]], [0.1, 0.3], [0, 1], Cosine())


def test_the_map_of_a_guided_mixture_composes_and_follows_its_field(mixture):
    guided = ClassifierFree(mixture, scale=2.5)
    x_t, y = draw(6, 2), torch.tensor([0, 1, 0, 1, -1, 1])
    t, m, s = time(0.9), time(0.5), time(0.3)
    x_s = flow_map(guided, x_t, t, s, y)
    assert torch.allclose(flow_map(guided, flow_map(guided, x_t, t, m, y), m, s, y), x_s, atol=1e-8)
    assert torch.allclose(flow_map(guided, x_s, s, t, y), x_t, atol=1e-7)
    h = 1e-5
    (before, after), schedule = (flow_map(guided, x_t, t, s + e, y) for e in (-h, h)), guided.schedule
    (alpha, sigma), prediction = schedule.alpha_sigma(s), guided(x_s, s, y)
    nu = [float(schedule.noise_level(s + e)) for e in (-h, h)]
    slope = (after / schedule.alpha_sigma(s + h)[0] - before / schedule.alpha_sigma(s - h)[0]) / (nu[1] - nu[0])
    assert torch.allclose(slope, prediction.eps, atol=1e-6)
    assert torch.allclose(alpha * prediction.x_0 + sigma * prediction.eps, x_s, atol=1e-10)


def test_rows_may_have_times_of_their_own(mixture):
    x_t, y = draw(3, 2), torch.tensor([0, 1, -1])
    t, s = time([0.9, 0.5, 1.0]), time([0.1, 0.7, 0.0])
    found = flow_map(mixture, x_t, t, s, y)
    for row in range(3):
        alone = flow_map(mixture, x_t[row : row + 1], t[row], s[row], y[row : row + 1])
        assert torch.allclose(found[row : row + 1], alone, atol=1e-8)


def test_exact_data_are_reached(mixture):
    """With alpha = 0 at one end and sigma = 0 at the other, a Gaussian is mapped by its standard deviation."""
    law = GaussianMixture([1.0], [[0.5]], [0.09], [0], Flow(log_snr_max=math.inf, log_snr_min=-math.inf))
    x_t = draw(4, 1)
    found = flow_map(law, x_t, time(1.0), time([0.0, 0.0, 0.5, 1.0]))
    spread = math.sqrt(0.25 * 0.09 + 0.25)
    expected = torch.stack([0.5 + 0.3 * x_t[0], 0.5 + 0.3 * x_t[1], 0.25 + spread * x_t[2], x_t[3]])
    assert torch.allclose(found, expected, atol=1e-7)


def test_a_denoiser_with_memory_has_no_flow(mixture):
    with pytest.raises(ValueError, match="without memory"):
        flow_map(ClassifierFree(mixture, 2.0, rule=APG(momentum=-0.5)), draw(2, 2), time(0.9), time(0.1))
