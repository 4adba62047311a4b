"""Parameterizations compared with the tables of their papers in NumPy."""

import math

import numpy as np
import pytest
import torch

from diffguide.models.parameterizations import EDM, X0, Eps, Flow, Rows, Score, V
from diffguide.schedules import linear, sub_variance_preserving, variance_exploding, variance_preserving

ALL = {"x0": X0(), "eps": Eps(), "score": Score(), "v": V(), "flow": Flow(), "edm": EDM(0.5), "edm-0.3": EDM(0.3)}
NORMALISATIONS = {
    "vp": variance_preserving,
    "ve": variance_exploding,
    "linear": linear,
    "sub_vp": sub_variance_preserving,
}
every_parameterization = pytest.mark.parametrize("parameterization", ALL.values(), ids=ALL)
every_normalisation = pytest.mark.parametrize("normalisation", NORMALISATIONS.values(), ids=NORMALISATIONS)


def draw(normalisation, n=200, log_snr=8.0):
    """alpha, sigma [n], and x_0, eps [n] at random log-SNRs in +-`log_snr`."""
    rng = torch.Generator().manual_seed(0)
    alpha, sigma = normalisation(log_snr * (2 * torch.rand(n, generator=rng, dtype=torch.float64) - 1))
    return alpha, sigma, *torch.randn(2, n, generator=rng, dtype=torch.float64)


def read(rows, x_t, output):
    """(x_0, eps) from the output of the network."""
    return rows.c_skip * x_t + rows.c_out * output, rows.e_skip * x_t + rows.e_out * output


@every_normalisation
@every_parameterization
def test_the_target_gives_back_data_and_noise(parameterization, normalisation):
    alpha, sigma, x_0, eps = draw(normalisation, log_snr=4.0)
    rows = parameterization.rows(alpha, sigma)
    found = read(rows, alpha * x_0 + sigma * eps, rows.p * x_0 + rows.q * eps)
    torch.testing.assert_close(torch.stack(found), torch.stack([x_0, eps]), rtol=1e-12, atol=1e-13)


@every_normalisation
@every_parameterization
def test_data_and_noise_agree_for_any_output(parameterization, normalisation):
    alpha, sigma, x_t, output = draw(normalisation)
    x_0, eps = read(parameterization.rows(alpha, sigma), x_t, output)
    torch.testing.assert_close(alpha * x_0 + sigma * eps, x_t, rtol=1e-12, atol=1e-11)


def expected_rows(name, a, s):
    """(p, q, c_skip, c_out, e_skip, e_out, c_in) of the papers."""
    one, zero, r = np.ones_like(a), np.zeros_like(a), np.sqrt(a**2 + s**2)
    d = 0.3 if name == "edm-0.3" else 0.5
    w = np.sqrt(s**2 + a**2 * d**2)
    return {
        "x0": (one, zero, zero, one, 1 / s, -a / s, 1 / r),
        "eps": (zero, one, 1 / a, -s / a, zero, one, 1 / r),
        "score": (zero, -r / s, 1 / a, s**2 / (a * r), zero, -s / r, 1 / r),
        "v": (-s / r, a / r, a / r**2, -s / r, s / r**2, a / r, 1 / r),
        "flow": (-one, one, 1 / (a + s), -s / (a + s), 1 / (a + s), a / (a + s), 1 / (a + s)),
        "edm": (s / (d * w), -a * d / w, a * d**2 / w**2, s * d / w, s / w**2, -a * d / w, 1 / w),
    }[name.partition("-")[0]]


@every_normalisation
@pytest.mark.parametrize("name", ALL)
def test_rows_are_the_papers(name, normalisation):
    alpha, sigma, *_ = draw(normalisation)
    found, expected_all = ALL[name].rows(alpha, sigma), expected_rows(name, alpha.numpy(), sigma.numpy())
    for row, expected in zip(found, expected_all, strict=True):
        np.testing.assert_allclose(row, expected, rtol=1e-13)


def test_edm_is_the_table_of_karras():
    """At alpha = 1: arXiv 2206.00364, table 1, and its target (x_0 - c_skip x_t) / c_out."""
    d, s = 0.5, np.geomspace(0.002, 80, 50)
    rows = EDM(d).rows(torch.ones(50, dtype=torch.float64), torch.from_numpy(s))
    rows = Rows(*(row.numpy() for row in rows))
    np.testing.assert_allclose(rows.c_skip, d**2 / (s**2 + d**2), rtol=1e-14)
    np.testing.assert_allclose(rows.c_out, s * d / np.sqrt(s**2 + d**2), rtol=1e-14)
    np.testing.assert_allclose(rows.c_in, 1 / np.sqrt(s**2 + d**2), rtol=1e-14)
    np.testing.assert_allclose(rows.p, (1 - rows.c_skip) / rows.c_out, rtol=1e-8)
    np.testing.assert_allclose(rows.q, -rows.c_skip * s / rows.c_out, rtol=1e-12)


def test_score_is_that_of_song():
    """Target -eps / sigma and x_0 = (x_t + sigma^2 score) / alpha where alpha^2 + sigma^2 = 1."""
    alpha, sigma, x_0, eps = draw(variance_preserving)
    rows, x_t = Score().rows(alpha, sigma), alpha * x_0 + sigma * eps
    torch.testing.assert_close(rows.p * x_0 + rows.q * eps, -eps / sigma, rtol=1e-13, atol=0)
    torch.testing.assert_close(read(rows, x_t, x_t)[0], (x_t + sigma**2 * x_t) / alpha, rtol=1e-12, atol=1e-13)


def test_v_is_alpha_eps_minus_sigma_x_0():
    alpha, sigma, x_0, eps = draw(variance_preserving)
    rows = V().rows(alpha, sigma)
    torch.testing.assert_close(rows.p * x_0 + rows.q * eps, alpha * eps - sigma * x_0, rtol=1e-13, atol=1e-14)


def test_edm_of_unit_data_is_minus_v():
    alpha, sigma, *_ = draw(variance_preserving)
    edm, v = EDM(1.0).rows(alpha, sigma), V().rows(alpha, sigma)
    for name, sign in {"p": -1, "q": -1, "c_skip": 1, "c_out": -1, "e_skip": 1, "e_out": -1, "c_in": 1}.items():
        torch.testing.assert_close(getattr(edm, name), sign * getattr(v, name), rtol=1e-13, atol=0)


@every_normalisation
@pytest.mark.parametrize("d", [0.3, 0.5, 2.0])
def test_edm_input_and_target_have_unit_variance(d, normalisation):
    alpha, sigma, *_ = draw(normalisation)
    rows = EDM(d).rows(alpha, sigma)
    one = torch.ones_like(alpha)
    torch.testing.assert_close(rows.c_in**2 * (alpha**2 * d**2 + sigma**2), one, rtol=1e-13, atol=0)
    torch.testing.assert_close(rows.p**2 * d**2 + rows.q**2, one, rtol=1e-13, atol=0)


@pytest.mark.parametrize("k", [0.01, 3.0])
@every_parameterization
def test_a_rescaled_x_t_gives_the_same_data_and_noise(parameterization, k):
    """A trained network is valid under every normalisation: its input and output depend on the log-SNR alone."""
    alpha, sigma, x_t, output = draw(variance_preserving)
    rows, scaled = parameterization.rows(alpha, sigma), parameterization.rows(k * alpha, k * sigma)
    torch.testing.assert_close(scaled.c_in * k, rows.c_in, rtol=1e-13, atol=0)
    torch.testing.assert_close(scaled.p, rows.p, rtol=1e-13, atol=0)
    torch.testing.assert_close(scaled.q, rows.q, rtol=1e-13, atol=0)
    for found, expected in zip(read(scaled, k * x_t, output), read(rows, x_t, output)):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("log_snr", [-20.0, 20.0])
@every_normalisation
@every_parameterization
def test_no_digits_are_lost_in_float32(parameterization, normalisation, log_snr):
    """The target from float32 data and rows against float64; a target obtained by division loses 2e-3 here."""
    alpha, sigma = normalisation(torch.tensor([log_snr], dtype=torch.float64))
    rng = torch.Generator().manual_seed(1)
    x_0, eps = torch.randn(2, 500, generator=rng)
    rows = parameterization.rows(alpha, sigma)
    exact = rows.p * x_0.double() + rows.q * eps.double()
    half = rows.to(x_0)
    assert half.p.dtype == torch.float32
    error = (half.p * x_0 + half.q * eps - exact).abs().max() / exact.abs().max()
    assert error < 1e-6
    assert float(((half.p * x_0 + half.q * eps - exact) / exact).abs().median()) < 1e-6


@pytest.mark.parametrize("log_snr", [-20.0, 20.0])
@every_normalisation
@every_parameterization
def test_the_well_conditioned_estimate_survives_float32(parameterization, normalisation, log_snr):
    """x_0 at high SNR and eps at low SNR have errors below 1e-5 from float32 inputs; the other one divides by a tiny number."""
    alpha, sigma = normalisation(torch.tensor([log_snr], dtype=torch.float64))
    rng = torch.Generator().manual_seed(2)
    x_0, eps = torch.randn(2, 500, generator=rng, dtype=torch.float64)
    rows = parameterization.rows(alpha, sigma)
    x_t, target = alpha * x_0 + sigma * eps, rows.p * x_0 + rows.q * eps
    found = read(rows.to(x_t.float()), x_t.float(), target.float())
    wanted = 0 if log_snr > 0 else 1
    error = (found[wanted] - (x_0, eps)[wanted]).abs().max()
    assert found[wanted].dtype == torch.float32 and error < 1e-5 * math.sqrt(2)


@pytest.mark.parametrize("name", ALL)
def test_only_eps_and_the_score_need_a_signal(name):
    assert ALL[name].needs_signal == (name in ("eps", "score"))


def test_a_sigma_data_of_0_is_refused():
    with pytest.raises(ValueError, match="sigma_data must be .* got 0"):
        EDM(0.0)
