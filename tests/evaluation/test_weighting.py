"""Weights over log-SNR and the spacings that estimate an integral over it."""

import numpy as np
import pytest
import torch

from diffguide.evaluation.classification.weighting import Bell, Even, Exact, Piecewise, UniformTimeWeighting
from diffguide.schedules import Cosine, Flow

U = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000


@pytest.mark.parametrize("spacing", [Even(), Bell(1.0, 2.0), Bell(-3.0, 0.7)], ids=["even", "bell", "narrow"])
def test_density_is_that_of_the_quantile_function(spacing):
    log_snr, density = spacing(U, -7.0, 9.0)
    slope = (log_snr[2:] - log_snr[:-2]) / (U[2:] - U[:-2])
    inner = (density[1:-1] * slope)[100:-100]  # the difference quotients are inaccurate in the tails
    torch.testing.assert_close(inner, torch.ones_like(inner), rtol=1e-3, atol=0)
    assert bool((log_snr.diff() > 0).all()) and float(log_snr[0]) > -7 and float(log_snr[-1]) < 9


@pytest.mark.parametrize("spacing", [Even(), Bell(1.0, 2.0)], ids=["even", "bell"])
def test_spacings_agree_about_an_integral(spacing):
    log_snr, density = spacing(U, -6.0, 8.0)
    found = float(((log_snr**2 + 1) / density).mean())
    assert found == pytest.approx((8**3 + 6**3) / 3 + 14, rel=1e-4)


def test_uniform_time_is_the_mean_over_times():
    schedule = Cosine(10.0, -8.0)
    log_snr, density = Even()(U, *UniformTimeWeighting().support(schedule))
    weight = UniformTimeWeighting()(log_snr, schedule)
    assert float(weight.mean()) == pytest.approx(1, rel=1e-4)
    of_t = torch.linspace(0, 1, 20001, dtype=torch.float64)[1:-1]
    mean = float(torch.sigmoid(schedule.log_snr(of_t)).mean())
    assert float((weight * torch.sigmoid(log_snr) / density).mean()) / 18 == pytest.approx(mean, rel=1e-3)


def test_piecewise_is_linear_between_its_points():
    weighting, schedule = Piecewise([-4.0, -2.0, 1.0, 5.0], [0.0, 3.0, 1.0, 1.0]), Cosine(10.0, -8.0)
    log_snr = torch.linspace(-4, 5, 37, dtype=torch.float64)
    expected = np.interp(log_snr.numpy(), [-4, -2, 1, 5], [0, 3, 1, 1])
    np.testing.assert_allclose(weighting(log_snr, schedule).numpy(), expected, atol=1e-12)
    assert weighting.support(schedule) == (-4.0, 5.0)
    assert weighting.support(Cosine(3.0, -3.0)) == (-3.0, 3.0)
    assert weighting.support(Flow(torch.inf, -torch.inf)) == (-4.0, 5.0)


def test_a_weighting_without_a_finite_support_raises():
    for weighting in (Exact(), UniformTimeWeighting()):
        with pytest.raises(ValueError, match="log_snr_max inf"):
            weighting.support(Flow(torch.inf, -torch.inf))
    with pytest.raises(ValueError, match="weighting.log_snrs .*-8 to 10"):
        Piecewise([11.0, 12.0], [1.0, 1.0]).support(Cosine(10.0, -8.0))


@pytest.mark.parametrize(
    ("log_snrs", "weights", "message"),
    [
        ([0.0], [1.0], "at least 2 increasing"),
        ([1.0, 0.0], [1.0, 1.0], "increasing"),
        ([0.0, 1.0], [1.0], "a weight each"),
        ([0.0, 1.0], [-1.0, 1.0], "at least 0"),
        ([0.0, 1.0], [0.0, 0.0], "not all 0"),
    ],
)
def test_invalid_weights_raise(log_snrs, weights, message):
    with pytest.raises(ValueError, match=message):
        Piecewise(log_snrs, weights)


def test_a_bell_needs_a_positive_width():
    with pytest.raises(ValueError, match="width .*got 0"):
        Bell(0.0, 0.0)
