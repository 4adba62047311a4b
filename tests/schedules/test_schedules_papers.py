"""Schedules compared with their papers' formulas in NumPy and with the betas of diffusers."""

import math

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.schedulers.scheduling_ddpm import rescale_zero_terminal_snr

from diffguide.schedules import (
    EDM,
    TRE,
    VE,
    VP,
    Cosine,
    Flow,
    Linear,
    ResolutionShift,
    ScaledLinear,
    Sigmoid,
    SigmoidBeta,
    SquaredCosine,
    SubVP,
    ZeroTerminalSNR,
)

interior = torch.linspace(0.00345, 0.99712, 331, dtype=torch.float64)
T = torch.arange(1, 1001, dtype=torch.float64) / 1000


def test_cosine_is_cos_and_sin():
    alpha, sigma = Cosine(math.inf, -math.inf).alpha_sigma(interior)
    np.testing.assert_allclose(alpha, np.cos(np.pi / 2 * interior.numpy()), rtol=1e-13)
    np.testing.assert_allclose(sigma, np.sin(np.pi / 2 * interior.numpy()), rtol=1e-13)


def test_flow_is_the_straight_line():
    alpha, sigma = Flow(math.inf, -math.inf).alpha_sigma(interior)
    np.testing.assert_allclose(alpha, 1 - interior.numpy(), rtol=1e-13)
    np.testing.assert_allclose(sigma, interior.numpy(), rtol=1e-13)


@pytest.mark.parametrize("make", [Cosine, Flow])
def test_truncation_only_rescales_time(make):
    exact, cut = make(math.inf, -math.inf), make(9.0, -6.0)
    first, last = exact.t_of(torch.tensor([9.0, -6.0]))
    expected = exact.log_snr(first + (last - first) * interior)
    torch.testing.assert_close(cut.log_snr(interior), expected, rtol=1e-12, atol=1e-12)


def test_linear_is_ddpm():
    abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    alpha, sigma = Linear(12.0).alpha_sigma(torch.arange(1, 1001, dtype=torch.float64) / 1000)
    np.testing.assert_allclose(alpha**2, abar, rtol=1e-12)
    np.testing.assert_allclose(sigma**2, 1 - abar, rtol=1e-12)


def test_linear_interpolates_log_abar():
    log_abar = np.concatenate([[0.0], np.log(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))])  # abar_0 = 1
    alpha, _ = Linear(math.inf).alpha_sigma(interior)
    np.testing.assert_allclose(2 * alpha.log(), np.interp(1000 * interior, np.arange(1001), log_abar), rtol=1e-11)


@pytest.mark.parametrize("rho", [7.0, 1.0])
def test_edm_noise_levels_are_those_of_karras(rho):
    t, low, high = interior.numpy(), 0.002, 80.0
    expected = (low ** (1 / rho) + t * (high ** (1 / rho) - low ** (1 / rho))) ** rho
    schedule = EDM(-2 * math.log(low), -2 * math.log(high), rho=rho)
    np.testing.assert_allclose(schedule.noise_level(interior), expected, rtol=1e-12)


@pytest.mark.parametrize("start, end, tau", [(-3, 3, 1.0), (0, 3, 0.3), (0, 3, 0.7), (-3, 3, 0.9)])
def test_sigmoid_is_the_curve_of_jabri(start, end, tau):
    """gamma(t) of arXiv 2301.10972, algorithm 1, as it is written there."""

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    t, v_start, v_end = interior.numpy(), sigmoid(start / tau), sigmoid(end / tau)
    gamma = (v_end - sigmoid((t * (end - start) + start) / tau)) / (v_end - v_start)
    alpha, sigma = Sigmoid(math.inf, -math.inf, start, end, tau).alpha_sigma(interior)
    np.testing.assert_allclose(alpha**2, gamma, rtol=1e-9)  # differences of sigmoids lose digits
    np.testing.assert_allclose(sigma**2, 1 - gamma, rtol=1e-9)


def test_tre_is_linear_in_sigma():
    """sqrt(1 - abar_t) = t / (T + 1) at the levels 1 .. T."""
    levels = np.arange(1, 101)
    alpha, sigma = TRE(math.inf, -math.inf).alpha_sigma(torch.from_numpy(levels / 101))
    np.testing.assert_allclose(sigma, levels / 101, rtol=1e-14)
    np.testing.assert_allclose(alpha, np.sqrt(1 - (levels / 101) ** 2), rtol=1e-14)


@pytest.mark.parametrize("make, power", [(VP, 1), (SubVP, 2)])
@pytest.mark.parametrize("low, high", [(0.1, 20.0), (0.5, 0.5)])
def test_the_sdes_kernels_are_those_of_song(make, power, low, high):
    """arXiv 2011.13456, eq. 29 with B by quadrature: mean exp(-B/2), variance (1 - exp(-B))^1 or ^2; at u from 1e-3 to 1."""
    u = np.linspace(1e-3, 1, 57)
    x = np.linspace(0, 1, 2001)
    integral = np.array([np.trapezoid(low + x * s * (high - low), x * s) for s in u])
    alpha, variance = np.exp(-integral / 2), (1 - np.exp(-integral)) ** power
    schedule = make(float(np.log(alpha[0] ** 2 / variance[0])), None, low, high)
    found = schedule.alpha_sigma(torch.from_numpy((u - u[0]) / (1 - u[0])))
    np.testing.assert_allclose(found[0], alpha, rtol=1e-10)
    np.testing.assert_allclose(found[1] ** 2, variance, rtol=1e-10)


def test_song_starts_at_1e_5_and_1e_3():
    """The values in the YAML comments and docstrings."""
    for make, expected in ((VP, (13.81, 9.11)), (SubVP, (27.63, 18.23))):
        schedule = make(math.inf, None, 0.1, 20.0)
        assert [float(schedule.log_snr(u)) for u in (1e-5, 1e-3)] == pytest.approx(expected, abs=0.01)


def test_ve_is_geometric():
    schedule = VE(-2 * math.log(0.01), -2 * math.log(50))
    np.testing.assert_allclose(schedule.noise_level(interior), 0.01 * (50 / 0.01) ** interior.numpy(), rtol=1e-13)


def beta_schedule(name, start, end, **options):
    betas = DDPMScheduler(1000, start, end, name, **options).betas
    return betas.double().numpy()


@pytest.mark.parametrize(
    "make, name, start, end",
    [
        (Linear, "linear", 1e-4, 0.02),
        (ScaledLinear, "scaled_linear", 0.00085, 0.012),
        (SigmoidBeta, "sigmoid", 1e-4, 0.02),
    ],
)
def test_the_betas_are_those_of_diffusers(make, name, start, end):
    """beta_k = 1 - abar_k / abar_{k-1} at t = k / T, from k = 2 on, within the float32 of theirs; theirs count from 0."""
    alpha, _ = make(12.0).alpha_sigma(T)  # with the betas that are its own
    betas = beta_schedule(name, start, end)
    np.testing.assert_allclose(1 - alpha[1:] ** 2 / alpha[:-1] ** 2, betas[1:], rtol=2e-6, atol=1e-9)
    np.testing.assert_allclose(1 - alpha[0] ** 2, betas[0], rtol=2e-6)


@pytest.mark.parametrize("steps", [10, 1000])
def test_squaredcos_cap_v2_is_that_of_diffusers(steps):
    """abar_k at t = k / T, elementwise, within the float32 of theirs; and the paper's formula in float64."""
    schedule = SquaredCosine(12.0, None, steps, 0.008, 0.999)
    times = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    found = (schedule.alpha_sigma(times)[0] ** 2).numpy()
    np.testing.assert_allclose(found, DDPMScheduler(steps, beta_schedule="squaredcos_cap_v2").alphas_cumprod, rtol=3e-5)
    f = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(found, np.cumprod(1 - np.minimum(1 - f[1:] / f[:-1], 0.999)), rtol=1e-9)


def test_cosine_differs_from_squaredcos_cap_v2_by_at_most_0_72():
    """The value in the docstring of SquaredCosine."""
    times = torch.linspace(0.01, 0.99, 981, dtype=torch.float64)
    difference = SquaredCosine(12.0).log_snr(times) - Cosine(12.0, -10.0).log_snr(times)
    assert float(difference.abs().max()) == pytest.approx(0.72, abs=0.005)


@pytest.mark.parametrize("options", [{"offset": -0.1}, {"beta_max": 1.0}, {"steps": 1}, {"log_snr_max": 9.0}])
def test_squaredcos_cap_v2_refuses(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        SquaredCosine(**{"log_snr_max": 12.0} | options)


@pytest.mark.parametrize("make, start, end", [(Linear, 1e-4, 0.02), (ScaledLinear, 0.00085, 0.012)])
def test_zero_terminal_snr_is_algorithm_1(make, start, end):
    """With first = 1 / T: the paper's abar at every one of its steps, in NumPy, and diffusers' betas."""
    schedule = ZeroTerminalSNR(make(9.5, None, start, end, 1000), 0.001)
    betas = np.linspace(start, end, 1000) if make is Linear else np.linspace(start**0.5, end**0.5, 1000) ** 2
    root = np.sqrt(np.cumprod(1 - betas))
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    alpha, sigma = schedule.alpha_sigma(T)
    np.testing.assert_allclose(alpha, root, rtol=1e-10, atol=1e-15)
    np.testing.assert_allclose(sigma**2, 1 - root**2, rtol=1e-10)
    assert schedule.zero_terminal_snr and float(alpha[-1]) == 0
    theirs = rescale_zero_terminal_snr(torch.from_numpy(betas)).numpy()
    np.testing.assert_allclose(1 - alpha[1:] ** 2 / alpha[:-1] ** 2, theirs[1:], rtol=1e-9, atol=1e-13)


def test_zero_terminal_snr_keeps_the_first_level():
    inner = Cosine(9.0, -6.0)
    assert ZeroTerminalSNR(inner, 0.0).log_snr_max == pytest.approx(9.0, abs=1e-12)
    assert float(ZeroTerminalSNR(inner, 0.01).log_snr(0.01)) == pytest.approx(float(inner.log_snr(0.01)), abs=1e-12)


def test_resolution_shift_is_that_of_simple_diffusion():
    """-2 log tan(pi t / 2) + 2 log(64 / 256), arXiv 2301.11093, section 3.1."""
    shifted = ResolutionShift(Cosine(math.inf, -math.inf), 256, 64)
    expected = -2 * np.log(np.tan(np.pi / 2 * interior.numpy())) + 2 * np.log(64 / 256)
    np.testing.assert_allclose(shifted.log_snr(interior), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("resolution", [1024, 256, 32])
def test_resolution_shift_of_flow_is_stable_diffusion_3s(resolution):
    """sigma at t is t' = s t / (1 + (s - 1) t), arXiv 2403.03206, eq. 23 with s = sqrt(m / n)."""
    s, t = math.sqrt(resolution**2 / 256**2), interior.numpy()
    alpha, sigma = ResolutionShift(Flow(math.inf, -math.inf), resolution, 256).alpha_sigma(interior)
    np.testing.assert_allclose(sigma, s * t / (1 + (s - 1) * t), rtol=1e-12)
    np.testing.assert_allclose(alpha + sigma, 1, rtol=1e-14)
