"""Weights and noise-level distributions against their papers, written again, and against each other."""

import math

import numpy as np
import pytest
import torch
from all_schedules import FINITE
from scipy import stats

from diffguide.backbones import Backbone
from diffguide.models.parameterizations import EDM as EDMParameterization
from diffguide.models.parameterizations import X0, Eps, Flow, Score, V
from diffguide.objectives import Denoising
from diffguide.objectives.levels import LogitNormal, LogNormal, UniformLogSNR, UniformTime
from diffguide.objectives.resampling import LossSecondMoment
from diffguide.objectives.weights import (
    EDM,
    P2,
    LearnedUncertainty,
    Likelihood,
    MinSNR,
    SoftMinSNR,
    Uniform,
    UniformEps,
)
from diffguide.schedules import Cosine, variance_exploding
from diffguide.schedules import Flow as FlowSchedule

PARAMETERIZATIONS = {
    "x0": X0(),
    "eps": Eps(),
    "score": Score(),
    "v": V(),
    "flow": Flow(),
    "edm": EDMParameterization(0.5),
}
every_parameterization = pytest.mark.parametrize("name", PARAMETERIZATIONS)
log_snr = torch.linspace(-9, 9, 61, dtype=torch.float64)
snr, density = np.exp(log_snr.numpy()), torch.linspace(0.1, 2, 61, dtype=torch.float64)
ON_EPS = {  # the papers' weights, on the error of eps; one on that of x_0 is divided by the SNR
    "uniform_eps": (UniformEps(), np.ones_like(snr)),
    "min_snr": (MinSNR(5.0), np.minimum(snr, 5) / snr),
    "soft_min_snr": (SoftMinSNR(4.0), 1 / (1 / snr + 1 / 4) / snr),
    "p2": (P2(0.5, 1.0), 1 / (1 + snr) ** 0.5),
    "p2-other": (P2(1.0, 2.0), 1 / (2 + snr)),
    "edm": (EDM(0.5), (1 / snr + 0.25) / (0.25 / snr) / snr),
    "likelihood": (Likelihood(), 0.5 / density.numpy()),
}


def generator(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows_of(name: str, ndim: int = 1):
    alpha, sigma = (part.reshape(-1, *[1] * (ndim - 1)) for part in variance_exploding(log_snr))
    return PARAMETERIZATIONS[name].rows(alpha, sigma)


@pytest.mark.parametrize("weight, on_eps", ON_EPS.values(), ids=ON_EPS)
@every_parameterization
def test_weights_are_the_papers(name, weight, on_eps):
    """Times the squared change of the network's output that one unit of eps is, by the reading of eps at two outputs."""
    for ndim in (1, 4):
        rows = rows_of(name, ndim)
        one_eps = ((rows.e_skip + rows.e_out) - rows.e_skip).reshape(-1).numpy() if name != "x0" else snr**0.5
        np.testing.assert_allclose(weight(log_snr, rows, density), on_eps * one_eps**2, rtol=1e-9)


def test_soft_min_snr_is_below_min_snr_and_half_of_it_at_the_corner():
    soft, hard = (make(4.0)(log_snr, rows_of("x0"), density) for make in (SoftMinSNR, MinSNR))
    assert bool((soft < hard).all())
    corner = torch.tensor([math.log(4.0)], dtype=torch.float64)
    rows = X0().rows(*variance_exploding(corner))
    assert float(SoftMinSNR(4.0)(corner, rows, corner)) == pytest.approx(2.0)


def test_some_weights_are_one():
    one = torch.ones_like(log_snr)
    torch.testing.assert_close(EDM(0.5)(log_snr, rows_of("edm"), density), one, rtol=1e-12, atol=0)
    torch.testing.assert_close(UniformEps()(log_snr, rows_of("eps"), density), one, rtol=0, atol=0)


class Output(Backbone):
    """eps_hat = log_snr / 5, told as another quantity where asked; without a mind of its own."""

    num_classes = 0

    def __init__(self, factor=lambda log_snr: 1.0):
        super().__init__()
        self.factor = factor

    def forward(self, x, log_snr, y=None):
        return (log_snr / 5 * self.factor(log_snr))[:, None].expand_as(x)


def test_denoising_score_matching_is_the_eps_objective():
    """lambda = sigma^2 on the score's error is 1 on that of eps: equal for networks that say the same."""
    x_0 = torch.randn(64, 3, generator=generator(1), dtype=torch.float64)
    as_eps = Denoising(Output(), Cosine(9.0, -9.0), Eps(), Uniform(), UniformTime(True), 0.0)
    as_score = Output(lambda log_snr: -1 / torch.sigmoid(-log_snr).sqrt())  # -1 / sigma
    as_score = Denoising(as_score, Cosine(9.0, -9.0), Score(), UniformEps(), UniformTime(True), 0.0)
    losses = [method(x_0, None, generator()) for method in (as_eps, as_score)]
    torch.testing.assert_close(losses[0].per_example, losses[1].per_example, rtol=1e-12, atol=0)


DISTRIBUTIONS = {
    "uniform_t": UniformTime(True),
    "independent": UniformTime(False),
    "uniform_log_snr": UniformLogSNR(True),
    "log_normal": LogNormal(0.3, 1.5),
    "logit_normal": LogitNormal(0.2, 1.8),
}


def resampler(bins=10) -> LossSecondMoment:
    """With a memory in which the loss rises with time."""
    levels = LossSecondMoment(bins, 2, 0.1, True)
    levels.squares += torch.arange(1.0, bins + 1).square()[:, None]
    levels.count += 2
    return levels


@pytest.mark.parametrize("schedule", [Cosine(5.0, -4.0), FlowSchedule(5.0, -4.0)], ids=["cosine", "flow"])
@pytest.mark.parametrize("name", [*DISTRIBUTIONS, "resampled"])
def test_the_likelihoods_mean_is_the_same_for_all(name, schedule):
    """With E||eps_hat - eps||^2 / D = 1 + (log_snr / 5)^2 it is half its integral; n = 40000, to 4 standard errors."""
    levels = DISTRIBUTIONS.get(name) or resampler()
    method = Denoising(Output(), schedule, Eps(), Likelihood(), levels, 0.0)
    loss = method(torch.zeros(40000, 8, dtype=torch.float64), None, generator()).per_example
    expected = 0.5 * ((5 + 4) + (5**3 + 4**3) / 75)
    assert abs(float(loss.mean()) - expected) < 4 * float(loss.std()) / 200 and float(loss.std()) / 200 < 0.1


@pytest.mark.parametrize("kind", FINITE)
def test_uniform_log_snr_is_uniform(kind):
    """Stratified: evenly spread; independent: Kolmogorov-Smirnov at 1e-4, n = 2000. The density integrates to 1."""
    schedule = FINITE[kind]
    high, low = schedule.log_snr_max, schedule.log_snr_min
    t, density = UniformLogSNR(stratified=True)(schedule, 50, generator())
    gaps = schedule.log_snr(t).sort().values.diff()
    torch.testing.assert_close(gaps, torch.full_like(gaps, (high - low) / 50), rtol=1e-6, atol=0)
    torch.testing.assert_close(density, torch.full_like(density, 1 / (high - low)), rtol=1e-14, atol=0)
    t, _ = UniformLogSNR(stratified=False)(schedule, 2000, generator(1))
    assert stats.kstest(schedule.log_snr(t).numpy(), stats.uniform(low, high - low).cdf).pvalue > 1e-4


@pytest.mark.parametrize("kind", FINITE)
def test_logit_normal_is_its_law(kind):
    """KS of logit(t) at 1e-4, n = 4000; the density against a histogram-free one: the law's, by finite differences in t."""
    schedule = FINITE[kind]
    t, density = LogitNormal(0.5, 0.8)(schedule, 4000, generator())
    logit = torch.log(t / (1 - t)).numpy()
    assert stats.kstest(logit, stats.norm(0.5, 0.8).cdf).pvalue > 1e-4
    h, kinks = 1e-7, ((t * 1000) % 1 - 0.5).abs() > 0.499
    t, density = t[~kinks], density[~kinks].numpy()
    slope = (schedule.log_snr(t - h) - schedule.log_snr(t + h)).numpy()
    later, sooner = ((u / (1 - u)).log().numpy() for u in (t + h, t - h))
    mass = stats.norm(0.5, 0.8).cdf(later) - stats.norm(0.5, 0.8).cdf(sooner)
    np.testing.assert_allclose(density, mass / slope, rtol=1e-5)


def test_levels_beyond_the_ends_have_no_density():
    """So the likelihood weight leaves them out, in place of adding an atom's."""
    t, density = LogNormal(0.0, 4.0)(Cosine(2.0, -2.0), 1000, generator())
    outside = (t == 0) | (t == 1)
    assert 0.6 < float(outside.double().mean()) < 0.9
    assert bool(density[outside].isinf().all()) and bool((density[~outside] < 1).all())


def test_learned_uncertainty_is_equation_21():
    """weight / exp(u) error + u with u of the Fourier features, in NumPy; u = 0 at the start."""
    torch.manual_seed(0)
    weight, rows = LearnedUncertainty(MinSNR(5.0), 16), rows_of("x0")
    error = torch.linspace(0.5, 2, 61, dtype=torch.float64)
    inner = MinSNR(5.0)(log_snr, rows, density) * error
    torch.testing.assert_close(weight.weigh(error, log_snr, rows, density), inner, rtol=0, atol=0)
    weight.coefficients.data.normal_(generator=generator(3))
    frequency, phase, k = (
        part.detach().double().numpy() for part in (weight.frequency, weight.phase, weight.coefficients)
    )
    place = -log_snr.numpy()[:, None] / 8  # log(sigma / alpha) / 4
    u = np.sqrt(2) * np.cos(place * frequency + phase) @ k / 4
    found = weight.weigh(error, log_snr, rows, density).detach()
    np.testing.assert_allclose(found, inner.numpy() * np.exp(-u) + u, rtol=1e-4, atol=1e-4)


def test_learned_uncertainty_learns_the_logarithm_of_the_loss():
    """Its minimum is u = log E[weighted error]: errors of 10^(-log_snr / 9) times chi-square noise; to 0.1 in 4.6."""
    torch.manual_seed(0)
    weight, rng = LearnedUncertainty(Uniform(), 64), generator()
    optimiser = torch.optim.Adam(weight.parameters(), lr=0.1)
    for step in range(150):
        for group in optimiser.param_groups:
            group["lr"] = 0.1 * (1 - step / 150)
        noise = torch.randn(61, 32, generator=rng, dtype=torch.float64).square().mean(1)
        error = 10 ** (-log_snr / 9) * noise
        optimiser.zero_grad()
        weight.weigh(error, log_snr, rows_of("eps"), density).mean().backward()
        optimiser.step()
    expected = -log_snr / 9 * math.log(10)
    assert float((weight.uncertainty(log_snr).detach() - expected).abs().mean()) < 0.1


@pytest.mark.parametrize(
    "make, sentence",
    [
        (lambda: SoftMinSNR(0.0), "gamma must be"),
        (lambda: P2(1.0, -1.0), "k must be"),
        (lambda: EDM(math.inf), "sigma_data must be"),
        (lambda: LearnedUncertainty(Uniform(), 0), "features must be"),
        (lambda: LearnedUncertainty(LearnedUncertainty(Uniform(), 1), 1), "weight must not be"),
        (lambda: LogitNormal(0.0, 0.0), "std must be"),
        (
            lambda: Denoising(Output(), FlowSchedule(9.0, -math.inf), V(), Uniform(), UniformLogSNR(True), 0.0),
            "levels=uniform_log_snr needs",
        ),
        (lambda: LossSecondMoment(0, 1, 0.1, True), "bins must be"),
        (lambda: LossSecondMoment(1, 0, 0.1, True), "history must be"),
        (lambda: LossSecondMoment(1, 1, 0.0, True), "floor must be"),
    ],
)
def test_bad_arguments_are_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


def test_a_logit_normal_time_that_rounds_to_an_end_weighs_nothing():
    """As a clamped level does: its density is infinite, and no likelihood weight is NaN."""
    schedule = FlowSchedule(math.inf, -math.inf)
    t, density = LogitNormal(0.0, 30.0)(schedule, 2000, torch.Generator().manual_seed(0))
    ends = (t == 0) | (t == 1)
    assert ends.any() and density[ends].isinf().all() and not density.isnan().any()
