"""Feynman-Kac correctors: against a plain loop in NumPy, closed forms, and the laws that guidance names."""

import math

import numpy as np
import pytest
import torch
from closed_forms import ExactMixture, two_classes
from scipy.stats import norm

from diffguide import guidance as g
from diffguide.evaluation.quality.distances import energy_distance
from diffguide.guidance.potentials import LGD, NoisyPotentialGuidance, PotentialGuidance
from diffguide.oracles import GaussianMixture, TiltedLaw
from diffguide.randomness import Noise
from diffguide.samplers import (
    DDIM,
    DDPM,
    FKC,
    DPMpp2MSDE,
    DPMpp3MSDE,
    EulerMaruyama,
    Heun,
    SASolver,
    UniformLogSNR,
    generate,
)
from diffguide.samplers.fkc import CHOICE_DRAW, RESAMPLE_DRAW
from diffguide.samplers.maruyama import ForwardDiffusion
from diffguide.samplers.particles import Particles, level_widths
from diffguide.schedules import EDM, Cosine

SCHEDULE = EDM()
MIXTURE = two_classes()
STEEP = np.array([1.5, -0.7])


def pair() -> GaussianMixture:
    """Variances 1 and 2."""
    return GaussianMixture([1, 1], [[0.0], [0.0]], [1.0, 2.0], [0, 1], SCHEDULE)


def lean(x, y):
    return x @ torch.tensor(STEEP).to(x) - 0.5 * x.square().sum(1)


def systematic(weights: np.ndarray, u: float) -> np.ndarray:
    """One ancestor per stratum."""
    total, ancestors, k = np.cumsum(weights / weights.sum()), [], 0
    for place in (np.arange(len(weights)) + u) / len(weights):
        while total[k] <= place and k < len(weights) - 1:
            k += 1
        ancestors.append(k)
    return np.array(ancestors)


def reference(levels, start, noises, uniforms, y, scale, tilt, second_order, threshold):
    """One sample's particles [K, 2] on VE levels, one after the other: the published formulas, first or second order.

    Weights: scale (scale - 1) / 2 |eps_y - eps|^2 over the log-SNR, by trapezoids; and for the potential w lean(x_t) its
    differences and the ratio of the two Gaussian kernels.
    """
    count = len(start)
    x, log_w, old, resampled = start.copy(), np.zeros(count), None, 0
    log_snr = -2 * np.log(levels)

    def f(x):
        return tilt * (x @ STEEP - 0.5 * (x**2).sum(1))

    value = np.zeros(count)
    for i, (sigma, lower) in enumerate(zip(levels[:-1], levels[1:])):
        strong = MIXTURE.mean(x, 1.0, sigma, np.full(count, y))
        weak = MIXTURE.mean(x, 1.0, sigma)
        plain = weak + scale * (strong - weak)
        rate = scale * (scale - 1) / 2 * ((strong - weak) ** 2).sum(1) / sigma**2
        width = (log_snr[i + 1] - log_snr[i]) * (1.0 if i == len(levels) - 2 else 0.5)
        width += 0.5 * (log_snr[i] - log_snr[i - 1]) if i else 0.0
        change = width * rate
        log_w = log_w + np.minimum(change, np.sort(change)[(count - 1) // 2] + 2)
        log_w, value = log_w + f(x) - value, f(x)
        x_0 = plain + tilt * sigma**2 * (STEEP - x)
        w = np.exp(log_w - log_w.max())
        if w.sum() ** 2 / (w**2).sum() < threshold * count:
            resampled += 1
            a = systematic(w, uniforms[i])
            x, x_0, plain, value, log_w = x[a], x_0[a], plain[a], value[a], np.zeros(count)
            old = None if old is None else (old[0][a], old[1][a], old[2])
        gain = 1 - lower**2 / sigma**2
        h = math.log(sigma / lower)
        change = x_0, plain
        if second_order and old is not None:
            change = tuple(new + h / (2 * old[2]) * (new - last) for new, last in zip(change, old[:2]))
        mean, base = (lower**2 / sigma**2 * x + gain * part for part in change)
        deviation = lower * math.sqrt(gain)
        old = x_0, plain, h
        x = mean + deviation * noises[i]
        log_w = log_w - ((x - base) ** 2 - (x - mean) ** 2).sum(1) / (2 * deviation**2)
    w = np.exp(log_w + f(x) - value - (log_w + f(x) - value).max())
    total = np.cumsum(w / w.sum())
    return x[np.searchsorted(total, uniforms[-1], side="right")], resampled


@pytest.mark.parametrize("tilt", [0.0, 0.3], ids=["classes", "classes and potential"])
@pytest.mark.parametrize("second_order", [False, True], ids=["ddpm", "2m"])
def test_every_particle_follows_the_formulas(tilt, second_order):
    """Six samples of four particles, 12 steps: every sample to 1e-9, of which some were resampled."""
    inner = (DPMpp2MSDE if second_order else DDPM)(12, UniformLogSNR())
    inner.max_fall, inner.corrects = math.inf, False
    sampler, count = FKC(inner, 4, 0.9), 4
    guided = g.ClassifierFree(ExactMixture(MIXTURE, SCHEDULE), 3.0)
    if tilt:
        guided = NoisyPotentialGuidance(guided, lean, tilt)
    times = sampler.times(guided)
    noise = Noise(range(6), (2,), SCHEDULE, dtype=torch.float64)
    y = torch.arange(6) % 2
    x = sampler(guided, sampler.begin(guided, times, noise), times, y, noise)
    cloud, single = noise.split(count), noise.of((1,))
    start = float(SCHEDULE.alpha_sigma(times[0])[1]) * cloud.normal(times[0], 0).numpy()
    noises = np.array([cloud.increment(t, s).numpy() for t, s in zip(times[:-1], times[1:])])
    draws = [single.normal(t, RESAMPLE_DRAW) for t in times[:-1]] + [single.normal(times[-1], CHOICE_DRAW)]
    uniforms = norm.cdf(np.array([draw[:, 0].numpy() for draw in draws]))
    levels = SCHEDULE.noise_level(times).numpy()
    resampled = 0
    for i in range(6):
        rows = slice(count * i, count * (i + 1))
        wanted, times_resampled = reference(
            levels, start[rows], noises[:, rows], uniforms[:, i], int(y[i]), 3.0, tilt, second_order, 0.9
        )
        np.testing.assert_allclose(x[i].numpy(), wanted, atol=1e-9)
        resampled += times_resampled
    assert resampled > 2


def test_one_particle_is_the_inner_sampler():
    guided, inner = g.ClassifierFree(pair(), 3.0), DPMpp2MSDE(9)
    runs = [list(generate(guided, sampler, range(5), [0] * 5, (1,), 5)) for sampler in (inner, FKC(inner, 1))]
    assert torch.equal(*map(torch.cat, runs))


def test_a_sample_does_not_depend_on_its_batch():
    guided, sampler = g.ClassifierFree(GaussianMixture(schedule=SCHEDULE), 4.0), FKC(DPMpp2MSDE(10), 4, 0.9)
    labels = [0, 1] * 4
    whole, parts = (
        torch.cat(list(generate(guided, sampler, range(8), labels, (2,), size, dtype=torch.float64))) for size in (8, 3)
    )
    torch.testing.assert_close(whole, parts, atol=1e-10, rtol=0)
    alone = list(generate(guided, sampler, [5], [1], (2,), 1, dtype=torch.float64))[0]
    torch.testing.assert_close(alone[0], whole[5], atol=1e-10, rtol=0)


def weighted_variance(scale: float, steps: int, eta: float) -> float:
    """The variance of the law that many particles reach on variances 1 and 2, without resampling, over the exact one.

    All steps are linear and all weights Gaussian, so that the covariance of (x, x of the step before) is known exactly.
    """
    levels = np.exp(np.linspace(math.log(80), math.log(0.002), steps + 1))
    widths = level_widths(torch.tensor(-2 * np.log(levels)))
    h = math.log(80 / 0.002) / steps
    gain, fresh = -math.expm1(-(1 + eta) * h), -math.expm1(-2 * eta * h)
    cov, before = np.diag([levels[0] ** 2, 0.0]), None
    for sigma, lower, width in zip(levels[:-1], levels[1:], widths):
        slope = sigma * (1 / (1 + sigma**2) - 1 / (2 + sigma**2))
        a = -scale * (scale - 1) * width * slope**2  # weights exp(-a x^2 / 2)
        cov = cov - np.outer(cov[:, 0], cov[:, 0]) * a / (1 + a * cov[0, 0])
        x_0 = 1 - sigma**2 * (scale / (1 + sigma**2) + (1 - scale) / (2 + sigma**2))
        kept = math.exp(-(1 + eta) * h)
        row = [kept + gain * x_0, 0] if before is None else [kept + 1.5 * gain * x_0, -0.5 * gain * before]
        matrix = np.array([row, [1, 0]])
        cov, before = matrix @ cov @ matrix.T + np.diag([lower**2 * fresh, 0]), x_0
    return cov[0, 0] * (scale + (1 - scale) / 2)


@pytest.mark.parametrize("scale", [2.0, 3.0, 4.0, 8.0])
@pytest.mark.parametrize("eta, bound", [(1.0, 0.006), (4.0, 0.013)])
def test_the_discretisation_of_the_law(scale, eta, bound):
    """100 steps and infinitely many particles, for any amount of noise; half of the steps have about four times the error."""
    error, double = (abs(weighted_variance(scale, steps, eta) - 1) for steps in (100, 50))
    assert error < bound and 3 < double / error < 5


@pytest.mark.parametrize("scale, bound", [(3.0, 0.07), (8.0, 0.07)])
def test_the_variance_is_that_of_the_law(scale, bound):
    """All particles of 400 groups by their weight: standard error 2 %; the SDE is 22 and 40 % below the law."""
    guided, sampler = g.NegativeCondition(pair(), 1, scale), FKC()
    times = sampler.times(guided)
    noise = Noise(range(400), (1,), SCHEDULE, dtype=torch.float64)
    y = torch.zeros(400, dtype=torch.long)
    x, weights = sampler.sample_particles(guided, sampler.begin(guided, times, noise), times, y, noise)
    found = (weights.shares * x.square().reshape(400, 16)).sum(1).mean()
    assert float(found) == pytest.approx(2 / (1 + scale), rel=bound)


def test_a_power_is_reached():
    """p^2 of a Gaussian has half of its variance; 400 groups of 16: standard error 2 %. The start has half of it too."""
    guided, sampler = g.PowerGuidance(GaussianMixture([1], [[0.0]], [1.0], [0], SCHEDULE), 2.0), FKC()
    times = sampler.times(guided)
    noise = Noise(range(400), (1,), SCHEDULE, dtype=torch.float64)
    start = sampler.begin(guided, times, noise)
    torch.testing.assert_close(start, DPMpp2MSDE(5).begin(guided, times, noise) / math.sqrt(2))
    x, weights = sampler.sample_particles(guided, start, times, None, noise)
    assert float((weights.shares * x.square().reshape(400, 16)).sum(1).mean()) == pytest.approx(0.5, rel=0.07)
    t = SCHEDULE.t_of(torch.tensor(0.0, dtype=torch.float64))
    found = guided.predict_weighted(x, t, None)
    plain = guided.denoiser(x, t, None)
    torch.testing.assert_close(found.spread, -2 * plain.eps[:, 0] ** 2)
    torch.testing.assert_close(found.guided.x_0 + found.guided.eps, x)


def test_a_potential_leads_to_its_law():
    """A quadratic potential of x0_hat on two classes: the law p exp(f), n = 600, against exact samples."""
    law = GaussianMixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.5]], [0.3, 0.5], [0, 1], SCHEDULE)
    guided, labels = PotentialGuidance(law, lean, 1.0), torch.arange(600) % 2
    sampler = FKC(DPMpp2MSDE(40), 16)
    x = torch.cat(list(generate(guided, sampler, range(600), labels.tolist(), (2,), 600, dtype=torch.float64)))
    named = TiltedLaw(law, guided.tilt())
    first, second = (named.sample(600, torch.Generator().manual_seed(k), labels)[0] for k in (0, 1))
    assert energy_distance(x, first) < 3 * energy_distance(first, second)


def test_a_classifier_has_the_weights_of_the_classes():
    """The exact posterior at v on the law of a class, or on all classes, is classifier-free guidance of 1 + v, or v."""
    law = GaussianMixture([0.4, 0.6], [[-1.0, 0.0], [1.0, 0.5]], [0.3, 0.5], [0, 1], SCHEDULE)
    x, y = torch.randn(6, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64), torch.arange(6) % 2
    t = SCHEDULE.t_of(torch.tensor(-0.5, dtype=torch.float64))
    cases = [
        (g.ClassifierGuidance(law, law, 2.0), g.ClassifierFree(law, 3.0)),
        (g.ClassifierGuidance(g.ClassifierFree(law, 0.0), law, 2.0), g.ClassifierFree(law, 2.0)),
        (g.ClassifierGuidance(g.ClassifierFree(law, 1.5), law, 2.0), g.ClassifierFree(law, 3.5)),
    ]
    for one, other in cases:
        found, wanted = one.predict_weighted(x, t, y), other.predict_weighted(x, t, y)
        torch.testing.assert_close(found.spread, wanted.spread)
        torch.testing.assert_close(found.guided.eps, wanted.guided.eps)
        assert found.value is None and one.explain_no_law() is None


def test_composed_classes_have_the_spread_of_all_terms():
    """w_0 |eps_0|^2 + sum_i w_i |eps_i|^2 - |sum|^2 in NumPy; one class is classifier-free guidance."""
    model = ExactMixture(MIXTURE, SCHEDULE)
    x, t = torch.randn(7, 2, dtype=torch.float64), SCHEDULE.t_of(torch.tensor(1.0, dtype=torch.float64))
    sigma = float(SCHEDULE.alpha_sigma(t)[1])
    exponents = {-1: 1 - 1.5 * 1.7, 0: 1.5, 1: 1.5 * 0.7}
    eps = {k: -sigma * MIXTURE.score(x.numpy(), 1.0, sigma, np.full(7, k)) for k in exponents}
    total = sum(w * eps[k] for k, w in exponents.items())
    spread = sum(w * (eps[k] ** 2).sum(1) for k, w in exponents.items()) - (total**2).sum(1)
    found = g.ClassComposition(model, [0, 1], [1.0, 0.7], 1.5).predict_weighted(x, t, None)
    np.testing.assert_allclose(found.spread, spread, atol=1e-12)
    np.testing.assert_allclose(found.guided.eps, total, atol=1e-12)
    one = g.ClassComposition(model, [1], [1.0], 2.5).predict_weighted(x, t, None)
    two = g.ClassifierFree(model, 2.5).predict_weighted(x, t, torch.ones(7, dtype=torch.long))
    torch.testing.assert_close(one.spread, two.spread)


@pytest.mark.parametrize("inner", [DDIM(12, eta=0.7), EulerMaruyama(12, diffusion=ForwardDiffusion()), DPMpp3MSDE(12)])
def test_other_samplers_may_be_inside(inner):
    guided = PotentialGuidance(g.ClassifierFree(GaussianMixture(schedule=Cosine()), 3.0), lean, 0.5)
    x = list(generate(guided, FKC(inner, 4), range(4), [0, 1, 0, 1], (2,), 4, dtype=torch.float64))[0]
    assert bool(x.isfinite().all()) and len(x) == 4


def test_what_has_no_law_is_refused_by_name():
    law = pair()
    for guided, words in {
        g.ClassifierFree(law, 3.0, rule=g.APG()): "rule apg departs",
        g.ClassifierFree(law, 0.5, rule=g.CFGPlusPlus()): "rule cfgpp departs",
        g.ClassifierFree(law, 3.0, interval=[0.1, 2.0]): "changes with the noise level",
        g.ClassifierFree(law, 3.0, ramp=g.CosineRamp()): "changes with the noise level",
        g.ClassifierGuidance(law, law, 2.0, [0.0, 5.0]): "acts at some noise levels",
        g.ClassifierGuidance(PotentialGuidance(law, lean), law): "around a potential",
        g.PowerGuidance(law, 2.0, [0.0, 5.0]): "changes with the noise level",
        g.PowerGuidance(PotentialGuidance(law, lean)): "around a potential",
        g.ClassifierFree(g.ClassifierGuidance(law, law), 3.0): "around other guidance",
        LGD(law, lean): "guidance=lgd",
    }.items():
        with pytest.raises(ValueError, match=f"sampler=fkc needs guidance with a law at every noise level: .*{words}"):
            FKC(DPMpp2MSDE(5), 2).times(guided)
    for inner in (Heun(5), SASolver(5), DDIM(5, eta=0.0), FKC(DDPM(5), 2)):
        with pytest.raises(ValueError, match="inner must be a sampler of the SDE"):
            FKC(inner)
    with pytest.raises(ValueError, match="particles"):
        FKC(DDPM(5), 0)
    with pytest.raises(ValueError, match="not inside another sampler"):
        FKC(DDPM(5), 2)(law, torch.zeros(1, 1), torch.tensor([1.0, 0.5], dtype=torch.float64), None, None)


def test_groups_are_resampled_on_their_own():
    """A rich group keeps its particles; a lost particle has no weight; systematic numbers are within one of the mean."""
    particles = Particles(3, 4, 0.9, "cpu")
    particles.add(torch.tensor([0.0, 0, 0, 0, 3, 0, 0, 0, math.nan, 0, 0, -math.inf]))
    shares = particles.shares
    rows = particles.resample(torch.tensor([0.5, 0.5, 0.5])).reshape(3, 4)
    assert rows[0].tolist() == [0, 1, 2, 3] and set(rows[2].tolist()) == {9, 10}
    counts = torch.bincount(rows[1] - 4, minlength=4)
    assert bool(((counts - 4 * shares[1]).abs() < 1).all())
    assert bool((particles.log_weights == 0).all()) and particles.resample(torch.zeros(3)) is None
    particles.add(torch.full((12,), math.nan))
    assert torch.allclose(particles.shares, torch.full((3, 4), 0.25, dtype=torch.float64))


def test_infinite_levels_have_finite_widths():
    log_snr = torch.tensor([-math.inf, -2.0, 0.0, 3.0, math.inf])
    assert level_widths(log_snr) == [0.0, 2.0, 2.5, 2.5]
    assert level_widths(torch.tensor([-1.0, 2.0])) == [3.0] and level_widths(torch.tensor([-math.inf, math.inf])) == [
        1.0
    ]
