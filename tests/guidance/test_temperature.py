"""Temporal score rescaling against its formula and against the laws that it promises."""

import math

import numpy as np
import pytest
import torch
from closed_forms import Mixture
from exact_models import oracle
from rule_sides import every_schedule
from two_class_points import EVERYWHERE, either_time, exact, t, x, y

from diffguide.guidance import ClassifierFree, Nested, TemporalScoreRescaling
from diffguide.models.evaluation_counters import EvaluationCounter
from diffguide.samplers import DDIM, Heun
from diffguide.samplers.grids import UniformLogSNR
from diffguide.schedules import EDM, Cosine, Flow


@every_schedule
@pytest.mark.parametrize("k, std", [(2.0, 1.0), (0.3, 0.5), (10.0, 2.0)])
@either_time
def test_it_is_its_formula(schedule, k, std, t):
    """eps' = (snr std^2 + 1) / (snr std^2 / k + 1) eps, and the x_0 that x_t says."""
    alpha, sigma = (float(a) for a in schedule.alpha_sigma(t.flatten()[0]))
    eps = exact(schedule)(x, t, y).eps.numpy()
    snr = (alpha / sigma) ** 2
    expected = (snr * std**2 + 1) / (snr * std**2 / k + 1) * eps
    counter = EvaluationCounter(exact(schedule))
    found = TemporalScoreRescaling(counter, k, EVERYWHERE, std)(x, t, y)
    np.testing.assert_allclose(found.eps, expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.x_0, (x.numpy() - sigma * expected) / alpha, rtol=1e-7, atol=1e-7)
    assert counter.tally.evaluations == 8


def gaussian(variance: float, schedule):
    law = Mixture([1.0], [[0.5, -1.0]], [variance * np.eye(2)], [0])
    return oracle(law, schedule)


@pytest.mark.parametrize(
    "schedule", [Cosine(14.0, -14.0), EDM(14.0, -14.0), Flow(14.0, -14.0)], ids=["vp", "ve", "flow"]
)
@pytest.mark.parametrize("k", [0.25, 2.0, 5.0])
def test_a_gaussian_gets_its_variance_over_k(schedule, k):
    """The rescaled ODE is that of N(m, std^2 / k): it maps x at time 1 linearly, by the ratio of the deviations."""
    std, law = 0.7, gaussian(0.49, schedule)
    times = UniformLogSNR()(schedule, 400, None)
    alpha, sigma = (a.numpy() for a in schedule.alpha_sigma(times[[0, -1]]))
    start = float(sigma[0]) * torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    end = Heun(400, UniformLogSNR())(TemporalScoreRescaling(law, k, EVERYWHERE, std), start, times)
    deviation = np.sqrt(alpha**2 * std**2 / k + sigma**2)
    mean = alpha[:, None] * np.array([0.5, -1.0])
    expected = mean[1] + deviation[1] / deviation[0] * (start.numpy() - mean[0])
    np.testing.assert_allclose(end, expected, rtol=2e-3, atol=2e-3)


def test_modes_keep_their_weights_and_get_their_variance_over_k():
    """Modes 8 deviations apart: weights .3 and .7 as before, the variance across their line 1 / 4."""
    schedule = Cosine(14.0, -14.0)
    law = oracle(Mixture([0.3, 0.7], [[-4.0, 0.0], [4.0, 0.0]], [np.eye(2)] * 2, [0, 0]), schedule)
    n, times = 2000, UniformLogSNR()(schedule, 48, None)
    start = torch.randn(n, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    plain, sharp = (
        Heun(48, UniformLogSNR())(TemporalScoreRescaling(law, k, EVERYWHERE, 1.0), start, times).numpy()
        for k in (1.0, 4.0)
    )
    assert abs((sharp[:, 0] < 0).mean() - (plain[:, 0] < 0).mean()) < 0.02
    assert sharp[:, 1].var() == pytest.approx(0.25, rel=0.06) and plain[:, 1].var() == pytest.approx(1.0, rel=0.06)


def test_off_is_the_denoiser_bit_for_bit():
    same = TemporalScoreRescaling(exact(), 1.0)(x, t, y)
    below = TemporalScoreRescaling(exact(), 4.0, (0.0, 1e-9))(x, t, y)
    for found in (same, below):
        assert torch.equal(found.x_0, exact()(x, t, y).x_0) and torch.equal(found.eps, exact()(x, t, y).eps)


def test_rows_follow_their_own_level_and_interval():
    times = torch.linspace(0.1, 0.9, 8, dtype=torch.float64)
    level = Cosine(12.0, -10.0).noise_level(times)
    guided = TemporalScoreRescaling(exact(), 3.0, (float(level[2]), float(level[5])))
    rows = guided(x, times, y)
    for k in range(8):
        alone = guided(x[k : k + 1], times[k], y[k : k + 1])
        torch.testing.assert_close(rows.x_0[k : k + 1], alone.x_0, rtol=1e-9, atol=1e-9)


def test_pure_noise_is_finite():
    """The exact flow: at alpha = 0 nothing is rescaled."""
    schedule = Flow(12.0, -math.inf)
    one = torch.tensor(1.0, dtype=torch.float64)
    found = TemporalScoreRescaling(exact(schedule), 4.0)(x, one, y)
    torch.testing.assert_close(found.x_0, exact(schedule)(x, one, y).x_0)
    torch.testing.assert_close(found.eps, exact(schedule)(x, one, y).eps)


def test_around_classifier_free_guidance_and_without_labels():
    parts = {"cfg": lambda d: ClassifierFree(d, 2.0), "tsr": lambda d: TemporalScoreRescaling(d, 3.0)}
    inner = ClassifierFree(exact(), 2.0)(x, t, y)
    outer, ratio = Nested(exact(), parts)(x, t, y), TemporalScoreRescaling(exact(), 3.0)(x, t)
    torch.testing.assert_close(outer.eps / inner.eps, ratio.eps / exact()(x, t).eps, rtol=1e-9, atol=1e-9)
    assert (
        DDIM(5, UniformLogSNR(), eta=0.0)(Nested(exact(), parts), x, DDIM(5, UniformLogSNR()).times(exact()))
        .isfinite()
        .all()
    )


@pytest.mark.parametrize("arguments, sentence", [
    ({"scale": 0.0}, "scale must be in"), ({"scale": math.inf}, "scale must be in"), ({"std": -1.0}, "std must be in"),
])  # fmt: skip
def test_numbers_out_of_range(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        TemporalScoreRescaling(exact(), **arguments)
