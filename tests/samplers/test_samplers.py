"""Samplers against closed forms, the papers' algorithms in NumPy, and adaptive ODE integration by SciPy."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from all_samplers import SAMPLERS, every_sampler, published
from closed_forms import ExactMixture, Mixture, gaussian, karras_levels, two_classes
from scipy.integrate import solve_ivp

from diffguide.models.protocols import DenoiserWrapper, Prediction
from diffguide.randomness import Noise
from diffguide.samplers import DDIM, DDPM, DPMpp2M, Euler, Heun, generate
from diffguide.samplers.grids import Karras, UniformLogSNR, UniformT
from diffguide.schedules import EDM, Cosine, Flow, Linear

LOW, HIGH = -2 * math.log(0.002), -2 * math.log(80)
SCHEDULES = {"cosine": Cosine(12.0, -10.0), "flow": Flow(12.0, -12.0), "linear": Linear(12.0), "edm": EDM(LOW, HIGH)}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
EXACT_EDM = EDM(math.inf, HIGH)


def float64(*values):
    return torch.tensor(values, dtype=torch.float64)


def start_points(n=16):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class GivenNoise:
    """Hands out prepared increments, one per step."""

    def __init__(self, increments):
        self.increments = list(increments)

    def increment(self, t, s):
        return self.increments.pop(0)


def factor(method: str, levels, variance: float) -> float:
    """x_0 / x_T of a zero-mean Gaussian under VE: each step multiplies by a closed form."""

    def f(s):
        return s / (variance + s**2)

    product = 1.0
    for s, n in pairwise(levels):
        euler = 1 + (n - s) * f(s)
        product *= euler if method == "euler" or n == 0 else 1 + (n - s) / 2 * (f(s) + f(n) * euler)
    return product


@pytest.mark.parametrize(
    "method, make, stored",
    [("euler", Euler, 0.0052879), ("euler", lambda *a: DDIM(*a, eta=0.0), 0.0052879), ("heun", Heun, 0.0065953)],
    ids=["euler", "ddim", "heun"],
)
def test_finite_steps_on_a_gaussian(method, make, stored):
    """EDM's 18 levels and the jump to 0: the exact ODE has the factor .0062499."""
    denoiser, sampler = ExactMixture(gaussian([0.0], [[0.25]]), EXACT_EDM), make(18, Karras(7.0, 0.002, None))
    expected = factor(method, [*karras_levels(18, 0.002, 80.0, 7.0), 0.0], 0.25)
    assert expected == pytest.approx(stored, abs=5e-8)
    x = float64([1.0], [-80.0])
    torch.testing.assert_close(sampler(denoiser, x, sampler.times(denoiser)), expected * x, rtol=1e-10, atol=0)


def test_many_heun_steps_reach_the_exact_factor():
    denoiser, sampler = ExactMixture(gaussian([0.0], [[0.25]]), EXACT_EDM), Heun(400, Karras(7.0, 0.002, None))
    found = sampler(denoiser, torch.ones(1, 1, dtype=torch.float64), sampler.times(denoiser))
    assert float(found) == pytest.approx(math.sqrt(0.25 / (0.25 + 80**2)), rel=1e-4)


@pytest.mark.parametrize("variance", [0.0, 0.5, 1.0])
def test_ddpm_is_algorithm_2(variance):
    """arXiv 2006.11239 over all 1000 steps with the same noise; small variance, large, and their geometric mean."""
    mixture, x = two_classes(), start_points(4)
    z = torch.randn(1000, 4, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    beta = np.linspace(1e-4, 0.02, 1000)
    abar = np.concatenate([[1.0], np.cumprod(1 - beta)])
    expected = x.numpy()
    for k in range(1000, 0, -1):
        b, a, before = beta[k - 1], abar[k], abar[k - 1]
        eps = -np.sqrt(1 - a) * mixture.score(expected, np.sqrt(a), np.sqrt(1 - a))
        sigma = np.sqrt(((1 - before) / (1 - a) * b) ** (1 - variance) * b**variance) if k > 1 else 0.0
        expected = (expected - b / np.sqrt(1 - a) * eps) / np.sqrt(1 - b) + sigma * z[1000 - k].numpy()
    denoiser, sampler = ExactMixture(mixture, Linear(math.inf)), DDPM(1000, UniformT(), variance=variance)
    found = sampler(denoiser, x, sampler.times(denoiser), noise=GivenNoise(z))
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim_is_equation_12(eta):
    mixture, schedule, x = two_classes(), Linear(math.inf), start_points()
    z = torch.randn(10, 16, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    abar = np.concatenate([[1.0], np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))])[::-100]
    expected = x.numpy()
    for k, (a, n) in enumerate(pairwise(abar)):
        x_0 = mixture.mean(expected, np.sqrt(a), np.sqrt(1 - a))
        eps = (expected - np.sqrt(a) * x_0) / np.sqrt(1 - a)
        sigma = eta * np.sqrt((1 - n) / (1 - a)) * np.sqrt(1 - a / n)
        expected = np.sqrt(n) * x_0 + np.sqrt(1 - n - sigma**2) * eps + sigma * z[k].numpy()
    sampler, denoiser = DDIM(10, UniformT(), eta=eta), ExactMixture(mixture, schedule)
    found = sampler(denoiser, x, sampler.times(denoiser), noise=GivenNoise(z))
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)


@every_schedule
def test_ddim_with_eta_1_is_ddpm(schedule):
    denoiser, x, times = ExactMixture(two_classes(), schedule), start_points(), UniformT()(schedule, 12)
    results = [
        sampler(denoiser, x, times, noise=Noise(range(16), (2,), schedule))
        for sampler in (DDIM(12, UniformT(), eta=1.0), DDPM(12, UniformT(), variance=0.0))
    ]
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("grid", [UniformLogSNR(), UniformT()], ids=["log-snr", "t"])
@every_schedule
def test_dpmpp_2m_is_algorithm_2(schedule, grid):
    """arXiv 2211.01095: x = (sigma / sigma') x' - alpha (e^-h - 1) ((1 + 1 / 2r) D' - D'' / 2r), r = h' / h."""
    mixture, x, times = two_classes(), start_points(), grid(schedule, 9)
    alpha, sigma = (a.numpy() for a in schedule.alpha_sigma(times))
    h = np.diff(np.log(alpha / sigma))
    expected, before = x.numpy(), None
    for k in range(9):
        now = mixture.mean(expected, alpha[k], sigma[k])
        r = h[k - 1] / h[k]
        combined = now if before is None else (1 + 1 / (2 * r)) * now - before / (2 * r)
        expected = sigma[k + 1] / sigma[k] * expected - alpha[k + 1] * np.expm1(-h[k]) * combined
        before = now
    found = published(DPMpp2M(9, grid))(ExactMixture(mixture, schedule), x, times)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


@every_schedule
def test_the_first_step_of_dpmpp_2m_is_ddim(schedule):
    denoiser, x, times = ExactMixture(two_classes(), schedule), start_points(), float64(0.8, 0.5)
    found, ddim = (SAMPLERS[name](1)(denoiser, x, times) for name in ("dpmpp_2m", "ddim"))
    torch.testing.assert_close(found, ddim, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - {"lms", "ipndm", "dopri5"}))
def test_a_step_to_exact_data_returns_the_denoised(name):
    """But for those that extrapolate eps to there, as published (finite in sigma / alpha), and the adaptive one."""
    make, denoiser, x = SAMPLERS[name], ExactMixture(two_classes(), EXACT_EDM), start_points()
    times, states = float64(0.5, 0.4, 0.3, 0.0), []
    result = make(3)(
        denoiser, x, times, noise=Noise(range(16), (2,), EXACT_EDM), on_step=lambda index, state: states.append(state)
    )
    torch.testing.assert_close(result, denoiser(states[1], times[2]).x_0, rtol=1e-12, atol=1e-12)


ORDERS = {"ddim": 1, "euler": 1, "heun": 2, "dpmpp_2m": 2}


def exact_flow(mixture: Mixture, x, high: float, low: float):
    """x at noise level `low` from x at `high` by dx / dsigma = -sigma score (VE), adaptive to 1e-12."""

    def slope(sigma, flat):
        return -sigma * mixture.score(flat.reshape(x.shape), 1.0, sigma).ravel()

    return solve_ivp(slope, (high, low), x.ravel(), method="DOP853", rtol=1e-12, atol=1e-12).y[:, -1].reshape(x.shape)


@every_schedule
@pytest.mark.parametrize("name", ORDERS)
def test_order_of_convergence(name, schedule):
    """Noise levels 3 to 0.1, where the solution is smooth; the slope of the last halving within 0.2."""
    mixture, x, errors = two_classes(), 3 * start_points(12).numpy(), []
    exact = exact_flow(mixture, x, 3.0, 0.1)
    for steps in (80, 160):
        times = schedule.t_of(-2 * torch.linspace(math.log(3), math.log(0.1), steps + 1, dtype=torch.float64))
        alpha = schedule.alpha_sigma(times)[0]
        x_end = SAMPLERS[name](steps)(ExactMixture(mixture, schedule), alpha[0] * torch.from_numpy(x), times)
        errors.append(np.sqrt(np.mean((x_end.numpy() / float(alpha[-1]) - exact) ** 2)))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(ORDERS[name], abs=0.2)


@pytest.mark.parametrize("variance", [0.0, 1.0])
def test_the_law_of_ddpm_on_a_gaussian(variance):
    """n = 20000: mean and covariance within 4.5 standard errors of the linear recursion, in DDPM's own coefficients."""
    n, steps, mu = 20000, 25, np.array([0.5, -1.0])
    cov = np.array([[0.5, 0.3], [0.3, 0.4]])
    schedule = Cosine(12.0, -10.0)
    times = UniformT()(schedule, steps)
    abar = schedule.alpha_sigma(times)[0].numpy() ** 2
    mean, law = np.zeros(2), (1 - abar[0]) * np.eye(2)
    for k, (a, s) in enumerate(pairwise(abar), start=1):
        beta, gain = 1 - a / s, np.sqrt(a) * cov @ np.linalg.inv(a * cov + (1 - a) * np.eye(2))
        from_x_0, from_x_t = np.sqrt(s) * beta / (1 - a), np.sqrt(a / s) * (1 - s) / (1 - a)
        step = from_x_0 * gain + from_x_t * np.eye(2)
        mean = step @ mean + from_x_0 * (mu - gain @ (np.sqrt(a) * mu))
        law = step @ law @ step.T + (beta if variance and k < steps else beta * (1 - s) / (1 - a)) * np.eye(2)
    sampler, denoiser = DDPM(steps, UniformT(), variance=variance), ExactMixture(gaussian(mu, cov), schedule)
    x = next(generate(denoiser, sampler, range(n), None, (2,), batch_size=n)).numpy()
    assert np.all(np.abs(x.mean(0) - mean) < 4.5 * np.sqrt(np.diag(law) / n))
    error = np.sqrt((np.outer(np.diag(law), np.diag(law)) + law**2) / n)
    assert np.all(np.abs(np.cov(x.T) - law) < 4.5 * error)


def test_more_steps_of_ddpm_refine_the_same_path():
    """Distance from n to 2n steps shrinks with n; fresh noise for every grid would leave it near .5."""
    schedule, results = Cosine(12.0, -10.0), []
    for steps in (16, 32, 64, 128, 256):
        sampler = DDPM(steps, UniformT(), variance=0.0)
        results.append(next(generate(ExactMixture(two_classes(), schedule), sampler, range(400), None, (2,), 400)))
    distances = [float((a - b).square().mean().sqrt()) for a, b in pairwise(results)]
    assert all(later < 0.85 * earlier for earlier, later in pairwise(distances)) and distances[-1] < 0.1


def test_heun_from_pure_noise_converges():
    """On the exact flow, t = 1 has no x / alpha: compare with SciPy on dx / dt = eps - x_0, which is regular there."""
    mixture, schedule, x = two_classes(), Flow(math.inf, -math.inf), start_points(12)

    def velocity(t, flat):
        x_t = flat.reshape(x.shape)
        return (-t * mixture.score(x_t, 1 - t, t) - mixture.mean(x_t, 1 - t, t)).ravel()

    exact = solve_ivp(velocity, (1, 0), x.numpy().ravel(), method="DOP853", rtol=1e-11, atol=1e-11).y[:, -1]
    errors = []
    for steps in (20, 40, 80, 160):
        sampler, denoiser = Heun(steps, UniformT()), ExactMixture(mixture, schedule)
        x_end = sampler(denoiser, x, sampler.times(denoiser))
        errors.append(np.abs(x_end.numpy().ravel() - exact).max())
    assert all(later < earlier / 2.5 for earlier, later in pairwise(errors)) and errors[-1] < 2e-3


@every_sampler
def test_every_sampler_goes_from_pure_noise_to_exact_data(make):
    denoiser = ExactMixture(two_classes(), Flow(math.inf, -math.inf))
    for steps in (1, 8):
        x = next(generate(denoiser, make(steps), range(16), None, (2,), 16))
        assert bool(x.isfinite().all()) and float(x.abs().max()) < 5


class OtherNoise(DenoiserWrapper):
    """Re-noises with another eps, as CFG++ does."""

    def __call__(self, x_t, t, y=None):
        x_0, eps = self.denoiser(x_t, t, y)
        return Prediction(x_0, 0.5 * eps + 0.1)


@every_sampler
def test_a_step_starts_from_the_prediction(make):
    """From alpha x_0 + sigma eps, never from x_t, else a guide that re-noises would be silently ignored."""
    schedule = Cosine(12.0, -10.0)
    denoiser, times = ExactMixture(two_classes(), schedule), float64(0.8, 0.5, 0.3)
    plain, other = (
        make(2)(each, start_points(), times, noise=Noise(range(16), (2,), schedule))
        for each in (denoiser, OtherNoise(denoiser))
    )
    assert float((plain - other).abs().max()) > 0.05


def test_ddim_takes_the_eps_of_the_prediction():
    schedule = Cosine(12.0, -10.0)
    denoiser, x, times = ExactMixture(two_classes(), schedule), start_points(), float64(0.8, 0.5)
    x_0, eps = denoiser(x, times[0])
    alpha, sigma = schedule.alpha_sigma(times[1])
    found = SAMPLERS["ddim"](1)(OtherNoise(denoiser), x, times)
    torch.testing.assert_close(found, alpha * x_0 + sigma * (0.5 * eps + 0.1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("steps", [0, -3, 2.5, 100_001, 10**12])
@every_sampler
def test_steps_must_be_a_whole_number_in_bounds(make, steps):
    with pytest.raises(ValueError, match="steps must be"):
        make(steps)


@pytest.mark.parametrize("eta", [-0.1, 2.0, math.nan])
def test_eta_and_variance_lie_between_0_and_1(eta):
    with pytest.raises(ValueError, match="eta must be"):
        DDIM(10, UniformT(), eta=eta)
    with pytest.raises(ValueError, match="variance must be"):
        DDPM(10, UniformT(), variance=eta)


@pytest.mark.parametrize("times", [[0.5, 0.5], [0.1, 0.5], [0.9, 0.4, 0.6], [0.5], [math.nan, 0.0]])
def test_times_must_decrease(times):
    with pytest.raises(ValueError, match="times must"):
        SAMPLERS["ddim"](1)(ExactMixture(two_classes(), EXACT_EDM), start_points(), float64(*times))


def test_times_must_be_float64():
    with pytest.raises(ValueError, match="float64 on the CPU"):
        SAMPLERS["ddim"](1)(ExactMixture(two_classes(), EXACT_EDM), start_points(), float64(0.5, 0.4).float())


@pytest.mark.parametrize("name", ["ddim-1", "ddpm"])
def test_a_stochastic_sampler_needs_noise(name):
    with pytest.raises(ValueError, match="draws noise: pass noise="):
        SAMPLERS[name](1)(ExactMixture(two_classes(), EXACT_EDM), start_points(), float64(0.5, 0.4))
