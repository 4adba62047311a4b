"""Ancestral sampling with the exact covariance, and Heun's method with churn."""

import math

import numpy as np
import pytest
import torch
from affine import terminal_law
from all_samplers import published
from closed_forms import ExactMixture, gaussian, karras_levels, two_classes

from diffguide.models.protocols import ExactDenoiser
from diffguide.oracles import Empirical
from diffguide.randomness import Noise
from diffguide.samplers import ExactDDPM, Heun, generate
from diffguide.samplers.grids import Karras, UniformT
from diffguide.schedules import EDM, Cosine, Flow, Linear

LOW, HIGH = -2 * math.log(0.002), -2 * math.log(80)
SCHEDULES = {"cosine": Cosine(12.0, -10.0), "flow": Flow(12.0, -12.0), "linear": Linear(12.0), "edm": EDM(LOW, HIGH)}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


class Certain(ExactMixture, ExactDenoiser):
    """The mixture with Cov[x_0 | x_t] = sum_k r_k (V_k + m_k m_k^T) - m m^T."""

    def covariance(self, x_t, t, y=None):
        return torch.from_numpy(
            moments(self.mixture, x_t.numpy(), *(float(a) for a in self.schedule.alpha_sigma(t)))[1]
        )


def moments(mixture, x, alpha, sigma):
    """E and Cov[x_0 | x_t] from the components' own posteriors, by dense inverses."""
    total, means, seconds = 0, 0, 0
    for weight, mu, S in zip(mixture.weights, mixture.means, mixture.covariances):
        C = alpha**2 * S + sigma**2 * np.eye(len(mu))
        d = x - alpha * mu
        density = weight * np.exp(-0.5 * np.einsum("bi,ij,bj->b", d, np.linalg.inv(C), d)) / np.sqrt(np.linalg.det(C))
        m = mu + d @ (alpha * S @ np.linalg.inv(C)).T
        V = S - alpha**2 * S @ np.linalg.inv(C) @ S
        total = total + density
        means = means + density[:, None] * m
        seconds = seconds + density[:, None, None] * (V + m[:, :, None] * m[:, None, :])
    mean = means / total[:, None]
    return mean, seconds / total[:, None, None] - mean[:, :, None] * mean[:, None, :]


@pytest.mark.parametrize("schedule", [Cosine(math.inf, -10.0), Flow(12.0, -12.0)], ids=["cosine", "flow"])
@pytest.mark.parametrize("steps", [1, 3])
def test_exact_variance_is_exact_on_a_gaussian(schedule, steps):
    """From the exact law at t = 1 any number of steps ends in the exact law; with exact data at t = 0 in the data's."""
    mu, S = np.array([0.5, -1.0]), np.array([[0.5, 0.3], [0.3, 0.4]])
    sampler, denoiser = ExactDDPM(steps, UniformT()), Certain(gaussian(mu, S), schedule)
    times = sampler.times(denoiser)
    (a, a_0), (s, s_0) = ([float(v[0]), float(v[-1])] for v in schedule.alpha_sigma(times))
    mean, covariance = terminal_law(sampler, denoiser, times, a * mu, a**2 * S + s**2 * np.eye(2))
    np.testing.assert_allclose(mean, a_0 * mu, rtol=1e-8)
    np.testing.assert_allclose(covariance, a_0**2 * S + s_0**2 * np.eye(2), rtol=1e-8)


@every_schedule
def test_exact_variance_on_a_mixture_is_that_of_the_reverse_kernel(schedule):
    """Mean and covariance of x_s given x_t, by conditioning x_0 first: E[E[x_s | x_t, x_0]] and the law of total variance."""
    x, (t, s) = np.array([[0.3, -0.2], [1.0, 0.8]]), torch.tensor([0.5, 0.4], dtype=torch.float64)
    (a, a_s), (n, n_s) = (v.tolist() for v in schedule.alpha_sigma(torch.stack([t, s])))
    beta = n**2 - (a / a_s) ** 2 * n_s**2
    m, V = moments(two_classes(), x, a, n)
    mean = a_s * beta / n**2 * m + (a / a_s) * n_s**2 / n**2 * x
    covariance = beta * n_s**2 / n**2 * np.eye(2) + (a_s * beta / n**2) ** 2 * V

    class Unit:
        def increment(self, t, s):
            return torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)

    for row in range(2):
        rows = torch.from_numpy(np.repeat(x[row : row + 1], 3, axis=0))
        found = ExactDDPM(1, UniformT())(Certain(two_classes(), schedule), rows, torch.stack([t, s]), noise=Unit())
        found = found.numpy()
        root = (found[1:] - found[0]).T
        np.testing.assert_allclose(found[0], mean[row], rtol=1e-9)
        np.testing.assert_allclose(root @ root.T, covariance[row], rtol=1e-8)


def test_exact_variance_of_single_points():
    """Half at -1, half at 1 on a line in space: one step from between has variance 1 along it and none across it."""
    data = torch.tensor([[-1.0, 0.0, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    denoiser = Empirical(data, torch.tensor([0, 1]), EDM(math.inf, HIGH), 0.0)
    sampler, x = ExactDDPM(1, UniformT()), torch.zeros(4000, 3, dtype=torch.float64)
    found = sampler(denoiser, x, sampler.times(denoiser), noise=Noise(range(4000), (3,), denoiser.schedule))
    assert found[:, 1:].abs().max() < 1e-7 and abs(found[:, 0].var() - 1) < 4 * (2 / 4000) ** 0.5


def test_exact_variance_does_not_depend_on_its_batch():
    denoiser, sampler = Certain(two_classes(), Cosine(12.0, -10.0)), ExactDDPM(6, UniformT())
    alone, *others = (torch.cat(list(generate(denoiser, sampler, range(9), None, (2,), size))) for size in (1, 4, 9))
    assert len(alone.unique(dim=0)) == 9
    for other in others:
        torch.testing.assert_close(other, alone, rtol=0, atol=1e-12)


CHURNS = [(4.0, 0.05, 50.0, 1.003), (40.0, 0.0, 5.0, 1.0)]  # 4 / 18 a step, and the bound


@pytest.mark.parametrize("churn, low, high, s_noise", CHURNS)
def test_heun_with_churn_is_algorithm_2(churn, low, high, s_noise):
    """arXiv 2206.00364, algorithm 2, line by line, on a mixture; the second row reaches the bound sqrt(2) - 1."""
    mixture, N, schedule = two_classes(), 18, EDM(math.inf, HIGH)
    z = torch.randn(N, 8, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    t = [*karras_levels(N, 0.002, 80.0, 7.0), 0.0]
    x = 80 * np.random.default_rng(0).standard_normal((8, 2))
    expected, used = x, []
    for i in range(N):
        gamma = min(churn / N, math.sqrt(2) - 1) if low <= t[i] <= high else 0.0
        t_hat = t[i] + gamma * t[i]
        used.append(gamma > 0)
        x_hat = expected + math.sqrt(t_hat**2 - t[i] ** 2) * s_noise * z[len([u for u in used if u]) - 1].numpy()
        d = (x_hat - mixture.mean(x_hat, 1.0, t_hat)) / t_hat
        expected = x_hat + (t[i + 1] - t_hat) * d
        if t[i + 1] != 0:
            onward = (expected - mixture.mean(expected, 1.0, t[i + 1])) / t[i + 1]
            expected = x_hat + (t[i + 1] - t_hat) * (d + onward) / 2
    assert 0 < sum(used) < N

    class Given:
        def __init__(self):
            self.left = list(z)

        def normal(self, level, draw):
            return self.left.pop(0)

    sampler = published(Heun(N, Karras(7.0, 0.002, None), churn, low, high, s_noise))
    denoiser = ExactMixture(mixture, schedule)
    found = sampler(denoiser, torch.from_numpy(x), sampler.times(denoiser), noise=Given())
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8)


def test_churn_outside_its_interval_changes_nothing():
    denoiser, x = ExactMixture(two_classes(), EDM(LOW, HIGH)), torch.randn(4, 2, dtype=torch.float64)
    plain, churned = Heun(9, Karras(7.0, None, None)), Heun(9, Karras(7.0, None, None), 40.0, 100.0, 200.0, 1.0)
    times, noise = plain.times(denoiser), Noise(range(4), (2,), denoiser.schedule)
    assert torch.equal(plain(denoiser, x, times), churned(denoiser, x, times, noise=noise))


def test_churn_stays_within_the_schedule():
    """At t = 1 nothing is added, and just below it no more than the schedule has."""
    levels, denoiser = [], ExactMixture(two_classes(), EDM(LOW, HIGH))

    class Watched(ExactMixture):
        def __call__(self, x_t, t, y=None):
            levels.append(float(t))
            return super().__call__(x_t, t, y)

    sampler, noise = Heun(40, UniformT(), churn=40.0), Noise(range(4), (2,), denoiser.schedule)
    sampler(Watched(two_classes(), denoiser.schedule), torch.randn(4, 2), sampler.times(denoiser), noise=noise)
    assert levels[0] == 1 and max(levels) == 1 and levels.count(1.0) > 1
