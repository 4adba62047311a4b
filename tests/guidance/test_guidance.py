"""Classifier-free guidance against its formula and against laws that guided sampling has in closed form."""

import math

import numpy as np
import pytest
import torch
from closed_forms import ExactMixture, gaussian, two_classes
from two_class_points import COSINE, EVERYWHERE, either_time, exact, t, x, y

from diffguide.guidance import ClassifierFree, Unguided
from diffguide.models.evaluation_counters import EvaluationCounter
from diffguide.models.protocols import Denoiser, Prediction
from diffguide.samplers import DDIM, DDPM, DPMpp2M, Heun
from diffguide.samplers.grids import Karras, UniformLogSNR
from diffguide.schedules import EDM, Flow


def assert_same(found: Prediction, expected: Prediction):
    """Bit for bit."""
    assert torch.equal(found.x_0, expected.x_0) and torch.equal(found.eps, expected.eps)


@either_time
def test_scale_1_is_the_conditional(t):
    assert_same(ClassifierFree(exact(), 1.0, EVERYWHERE)(x, t, y), exact()(x, t, y))


@either_time
def test_scale_0_is_the_unconditional(t):
    assert_same(ClassifierFree(exact(), 0.0, EVERYWHERE)(x, t, y), exact()(x, t))


def test_unguided_is_the_conditional():
    assert_same(Unguided(exact())(x, t, y), exact()(x, t, y))


@pytest.mark.parametrize(
    "scale, interval, evaluations",
    [(1.0, EVERYWHERE, 8), (0.0, EVERYWHERE, 8), (3.0, EVERYWHERE, 16), (3.0, (0.0, 1e-3), 8)],
)
def test_only_needed_predictions_are_evaluated(scale, interval, evaluations):
    counter = EvaluationCounter(exact())
    ClassifierFree(counter, scale, interval)(x, t, y)
    assert counter.tally.evaluations == evaluations


@pytest.mark.parametrize("scale", [-0.5, 0.3, 2.3, 7.5])
@pytest.mark.parametrize("schedule", [COSINE, Flow(12.0, -12.0), EDM(12.4, -8.7)], ids=["cosine", "flow", "edm"])
@either_time
def test_guidance_is_linear_extrapolation(schedule, scale, t):
    """weak + scale (strong - weak) of the closed forms, in float64 all through."""
    mixture, (alpha, sigma) = two_classes(), (float(a) for a in schedule.alpha_sigma(t.flatten()[0]))
    found = ClassifierFree(exact(schedule), scale, EVERYWHERE)(x, t, y)
    strong, weak = (mixture.mean(x.numpy(), alpha, sigma, c) for c in (y.numpy(), None))
    np.testing.assert_allclose(found.x_0, weak + scale * (strong - weak), rtol=1e-12, atol=1e-12)
    strong, weak = (-sigma * mixture.score(x.numpy(), alpha, sigma, c) for c in (y.numpy(), None))
    np.testing.assert_allclose(found.eps, weak + scale * (strong - weak), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("w", [0.0, 0.7, 4.0])
def test_conversion_to_other_conventions(w):
    """scale = 1 + w of Ho & Salimans; ADM's g on an unconditional model is scale = g, on a conditional one 1 + g."""
    mixture, points, classes = two_classes(), x.numpy(), y.numpy()
    alpha, sigma = (float(a) for a in COSINE.alpha_sigma(t))
    strong, weak = (-sigma * mixture.score(points, alpha, sigma, c) for c in (classes, None))

    def log_posterior(shift):  # log p(y | x_t) up to log p(y), which has no gradient
        at = points + shift
        return mixture.log_density(at, alpha, sigma, classes) - mixture.log_density(at, alpha, sigma)

    h = 1e-5 * np.eye(2)
    gradient = np.stack([(log_posterior(e) - log_posterior(-e)) / 2e-5 for e in h], axis=1)
    guided = ClassifierFree(exact(), 1 + w, EVERYWHERE)(x, t, y).eps
    np.testing.assert_allclose(guided, (1 + w) * strong - w * weak, atol=1e-6)  # arXiv 2207.12598, eq. 6
    np.testing.assert_allclose(guided, strong - sigma * w * gradient, atol=1e-6)  # arXiv 2105.05233, algorithm 2
    np.testing.assert_allclose(guided, weak - sigma * (1 + w) * gradient, atol=1e-6)


TIMES = torch.tensor([0.9, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1], dtype=torch.float64)


def test_the_interval_is_open_below_and_closed_above():
    """On the boundaries themselves, and with all rows at their own times as with one time."""
    levels = COSINE.noise_level(TIMES)
    guided = ClassifierFree(exact(), 3.0, (float(levels[5]), float(levels[2])))
    always, never = ClassifierFree(exact(), 3.0, EVERYWHERE), exact()
    rows = guided(x, TIMES, y)
    for k, time in enumerate(TIMES):
        expected = (always if 2 <= k < 5 else never)(x, time, y)
        assert_same(guided(x, time, y), expected)
        assert float(guided.scale_at(time)) == (3.0 if 2 <= k < 5 else 1.0)
        for found, field in zip(rows, expected):
            torch.testing.assert_close(found[k], field[k], rtol=1e-12, atol=1e-12)


def test_rows_outside_the_interval_are_not_touched():
    """Bit for bit also where other rows of the batch are guided: outside, the strong side is returned."""
    levels = COSINE.noise_level(TIMES)
    found = ClassifierFree(exact(), 3.0, (float(levels[5]), float(levels[2])))(x, TIMES, y)
    outside, conditional = [0, 1, 5, 6, 7], exact()(x, TIMES, y)
    assert_same(Prediction(*(f[outside] for f in found)), Prediction(*(f[outside] for f in conditional)))


@either_time
def test_rows_without_a_class_are_not_touched(t):
    mixed = torch.where(torch.arange(8) % 2 == 0, -1, y)
    guided, plain = ClassifierFree(exact(), 3.0, EVERYWHERE)(x, t, mixed), exact()(x, t, mixed)
    assert_same(Prediction(*(f[::2] for f in guided)), Prediction(*(f[::2] for f in plain)))
    assert float((guided.x_0[1::2] - plain.x_0[1::2]).abs().min()) > 1e-6


@either_time
def test_no_condition_means_no_guidance(t):
    counter = EvaluationCounter(exact())
    assert_same(ClassifierFree(counter, 3.0, EVERYWHERE)(x, t, None), exact()(x, t))
    assert counter.tally.evaluations == 8


class Pair(Denoiser):
    """One Gaussian with the condition, another without: the setting of the closed laws below."""

    num_classes, has_null = 1, True

    def __init__(self, strong, weak, schedule):
        self.strong, self.weak, self.schedule = ExactMixture(strong, schedule), ExactMixture(weak, schedule), schedule

    def __call__(self, x_t, t, y=None):
        null = (torch.full((len(x_t),), -1) if y is None else y)[:, None] < 0
        return Prediction(*(torch.where(null, w, s) for s, w in zip(self.strong(x_t, t), self.weak(x_t, t))))


COVARIANCE = np.array([[0.4, 0.15], [0.15, 0.3]])
MU_C, MU_U = np.array([1.0, -0.5]), np.array([0.2, 0.1])


@pytest.mark.parametrize("schedule", [COSINE, EDM(12.4, -8.7)], ids=["vp", "ve"])
@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_equal_covariances_extrapolate_the_mean(schedule, scale):
    """Between N(mu_c, S) and N(mu_u, S) it is N(mu_u + scale (mu_c - mu_u), S) at every level, so in every sampler."""
    zero = torch.zeros(8, dtype=torch.long)
    guided = ClassifierFree(Pair(gaussian(MU_C, COVARIANCE), gaussian(MU_U, COVARIANCE), schedule), scale, EVERYWHERE)
    expected = ExactMixture(gaussian(MU_U + scale * (MU_C - MU_U), COVARIANCE), schedule)
    for level in (0.02, 0.3, 0.6, 0.98):
        for found, field in zip(guided(x, torch.tensor(level), zero), expected(x, torch.tensor(level))):
            torch.testing.assert_close(found, field, rtol=1e-10, atol=1e-10)
    for sampler in (DDIM(8, UniformLogSNR(), eta=0.0), Heun(8, UniformLogSNR()), DPMpp2M(8, UniformLogSNR())):
        times = sampler.times(guided)
        torch.testing.assert_close(sampler(guided, x, times, zero), sampler(expected, x, times), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("scale", [2.0, 3.0])
def test_the_variance_of_the_guided_flow(scale):
    """Zero means, variances c = 1 and u = 2, large sigma: c^s u^(1-s), .5 and .25, not the tilted 2 / (1 + s)."""
    c, u, sigma = 1.0, 2.0, 200.0
    pair = Pair(gaussian([0.0], [[c]]), gaussian([0.0], [[u]]), EDM(math.inf, -2 * math.log(sigma)))
    guided, sampler = ClassifierFree(pair, scale, EVERYWHERE), Heun(300, Karras(7.0, 0.002, None))
    one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.long)
    found = float(sampler(guided, one, sampler.times(guided), zero))
    exact_factor = (c / (c + sigma**2)) ** (scale / 2) * (u / (u + sigma**2)) ** ((1 - scale) / 2)
    assert found == pytest.approx(exact_factor, rel=1e-3)
    assert (found * sigma) ** 2 == pytest.approx(c**scale * u ** (1 - scale), rel=0.01)


class Response:
    """Noise of a run of two rows: none for the first, 1 for the second."""

    def normal(self, level, draw):
        return torch.tensor([[0.0], [1.0]], dtype=torch.float64)

    def increment(self, t, s):
        return self.normal(t, 0)


@pytest.mark.parametrize("scale", [2.0, 3.0])
def test_the_variance_of_the_guided_diffusion(scale):
    """The SDE has u^2 (r - r^2s) / ((2s - 1)(u - c)), r = c / u: .5833 and .3875, neither the flow's nor the tilted law's.

    Each step is linear in x and in its noise, so that its two coefficients give the variance without sampling.
    """
    c, u, sigma = 1.0, 2.0, 200.0
    pair = Pair(gaussian([0.0], [[c]]), gaussian([0.0], [[u]]), EDM(math.inf, -2 * math.log(sigma)))
    guided = ClassifierFree(pair, scale, EVERYWHERE)
    rows, zero = torch.tensor([[1.0], [0.0]]).double(), torch.zeros(2, dtype=torch.long)

    def variance_of(steps: int) -> float:
        sampler, variance = DDPM(steps, Karras(7.0, 0.002, None), variance=0.0), sigma**2
        times = sampler.times(guided)
        for time, s in zip(times[:-1], times[1:]):
            factor, noise = sampler.step(guided, rows, time, s, zero, Response(), {}).flatten().tolist()
            variance = factor**2 * variance + noise**2
        return variance

    variance = 2 * variance_of(400) - variance_of(200)  # the method is of first order
    r = c / u
    assert variance == pytest.approx(u**2 * (r - r ** (2 * scale)) / ((2 * scale - 1) * (u - c)), rel=0.01)
    assert abs(variance - c**scale * u ** (1 - scale)) > 0.08
    assert abs(variance - 1 / (scale / c + (1 - scale) / u)) > 0.08


def facts(**changed) -> ExactMixture:
    denoiser = exact()
    for name, value in changed.items():
        setattr(denoiser, name, value)
    return denoiser


INTERVAL = "interval must be noise levels .* got"


@pytest.mark.parametrize(
    "denoiser, scale, interval, sentence",
    [
        (facts(num_classes=0), 2.0, EVERYWHERE, "needs a model with classes"),
        (facts(has_null=False), 2.0, EVERYWHERE, "train with guidance=cfg"),
        (exact(), math.inf, EVERYWHERE, "scale must be"),
        (exact(), math.nan, EVERYWHERE, "scale must be"),
        (exact(), 2.0, (2.0, 1.0), INTERVAL),
        (exact(), 2.0, (1.0, 1.0), INTERVAL),
        (exact(), 2.0, (-1.0, 1.0), INTERVAL),
        (exact(), 2.0, (0.0, math.nan), INTERVAL),
        (exact(), 2.0, (0.0, 1.0, 2.0), INTERVAL),
    ],
)
def test_invalid_arguments_raise(denoiser, scale, interval, sentence):
    with pytest.raises(ValueError, match=sentence):
        ClassifierFree(denoiser, scale, interval)
