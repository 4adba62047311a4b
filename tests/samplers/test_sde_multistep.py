"""The multistep solvers of the reverse SDE, against formulas and quadrature; paths that refine; laws on a mixture."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from all_samplers import SAMPLERS, published
from closed_forms import ExactMixture, two_classes
from scipy.integrate import quad
from scipy.stats import kstest, norm

from diffguide.randomness import Noise
from diffguide.samplers import DPMpp2M, DPMpp2MSDE, DPMpp3MSDE, EulerMaruyama, LangevinPC, Restart, SASolver, generate
from diffguide.samplers.ancestral import DDPM
from diffguide.samplers.grids import UniformLogSNR, UniformT
from diffguide.samplers.heun import Heun
from diffguide.samplers.langevin import AnnealedLangevin
from diffguide.samplers.maruyama import ForwardDiffusion, SigmaDiffusion
from diffguide.schedules import EDM, Cosine, Flow, Linear

LOW, HIGH = -2 * math.log(0.002), -2 * math.log(80)
SCHEDULES = {"cosine": Cosine(12.0, -10.0), "flow": Flow(12.0, -12.0), "linear": Linear(12.0), "edm": EDM(LOW, HIGH)}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


def normals(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


class GivenNoise:
    """Hands out prepared increments, one per step."""

    def __init__(self, increments):
        self.increments = list(increments)

    def increment(self, t, s):
        return self.increments.pop(0)


def lagrange(nodes, values, at):
    """The polynomial through (nodes, values) at a number."""
    return sum(
        value * math.prod((at - other) / (node - other) for other in nodes if other != node)
        for node, value in zip(nodes, values)
    )


def advanced(x, nodes, values, start, end, tau, scales, z):
    """Proposition 4.2 of arXiv 2309.05019 with its integral by adaptive quadrature, node by node."""
    (_, sigma), (alpha_next, sigma_next) = scales
    h, a = end - start, 1 + tau**2
    result = sigma_next / sigma * math.exp(-(tau**2) * h) * x
    for j, value in enumerate(values):
        unit = [float(k == j) for k in range(len(nodes))]
        weight, _ = quad(
            lambda u: a * math.exp(-a * (end - u)) * lagrange(nodes, unit, u), start, end, epsabs=1e-13, epsrel=1e-12
        )
        result = result + alpha_next * weight * value
    return result + sigma_next * math.sqrt(-math.expm1(-2 * tau**2 * h)) * z


@pytest.mark.parametrize("eta, s_noise", [(1.0, 1.0), (0.5, 1.1)])
@every_schedule
def test_dpmpp_2m_sde_is_k_diffusions(schedule, eta, s_noise):
    """In x / alpha, the "midpoint" form: exp(-h eta) n' / n x + (1 - e^(-h - eta h)) (D + (D - D') / 2r)."""
    mixture, x, z = two_classes(), normals(8, 2), normals(9, 8, 2).numpy()
    times = UniformT()(schedule, 9)
    alpha, sigma = (a.numpy() for a in schedule.alpha_sigma(times))
    n = sigma / alpha
    scaled, before, h_before = x.numpy() / alpha[0], None, None
    for k in range(9):
        now, h = mixture.mean(alpha[k] * scaled, alpha[k], sigma[k]), math.log(n[k] / n[k + 1])
        scaled = n[k + 1] / n[k] * math.exp(-eta * h) * scaled - math.expm1(-h - eta * h) * now
        if before is not None:
            scaled = scaled - 0.5 * math.expm1(-h - eta * h) * (h / h_before) * (now - before)
        scaled = scaled + n[k + 1] * math.sqrt(-math.expm1(-2 * eta * h)) * s_noise * z[k]
        before, h_before = now, h
    sampler, noise = published(DPMpp2MSDE(9, UniformT(), eta, s_noise)), GivenNoise(torch.from_numpy(z))
    found = sampler(ExactMixture(mixture, schedule), x, times, noise=noise)
    np.testing.assert_allclose(found, alpha[-1] * scaled, rtol=1e-9, atol=1e-9)


@every_schedule
def test_without_noise_dpmpp_2m_sde_is_dpmpp_2m(schedule):
    denoiser, x, times = ExactMixture(two_classes(), schedule), normals(8, 2), UniformT()(schedule, 9)
    found, expected = (
        DPMpp2MSDE(9, UniformT(), 0.0, 1.0)(denoiser, x, times),
        DPMpp2M(9, UniformT())(denoiser, x, times),
    )
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@every_schedule
def test_dpmpp_3m_sde_is_the_integral_of_a_parabola(schedule, eta):
    mixture, x, z = two_classes(), normals(4, 2), normals(7, 4, 2).numpy()
    times = UniformLogSNR()(schedule, 7)
    alpha, sigma = (a.numpy() for a in schedule.alpha_sigma(times))
    lam, expected, values = np.log(alpha / sigma), x.numpy(), []
    for k in range(7):
        values = [mixture.mean(expected, alpha[k], sigma[k]), *values][:3]
        scales = list(zip(alpha, sigma))[k : k + 2]
        nodes = lam[k::-1][:3]
        expected = advanced(expected, nodes, values, lam[k], lam[k + 1], math.sqrt(eta), scales, z[k])
    noise = GivenNoise(torch.from_numpy(z))
    sampler = published(DPMpp3MSDE(7, UniformLogSNR(), eta, 1.0))
    found = sampler(ExactMixture(mixture, schedule), x, times, noise=noise)
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("predictor, corrector", [(1, 0), (2, 1), (3, 3), (4, 2), (2, 4)])
def test_sa_solver_is_algorithm_1(predictor, corrector):
    """tau 0.8 at noise levels in (0.05, 5], on a grid that has steps in it and on either side."""
    schedule, mixture, x, z = Cosine(12.0, -10.0), two_classes(), normals(4, 2), normals(9, 4, 2).numpy()
    times = UniformLogSNR()(schedule, 9)
    alpha, sigma = (a.numpy() for a in schedule.alpha_sigma(times))
    lam, state, values, left = np.log(alpha / sigma), x.numpy(), [], list(z)
    before, drawn, tau = state, 0.0, 0.0
    for k in range(9):
        scales = list(zip(alpha, sigma))
        values = [mixture.mean(state, alpha[k], sigma[k]), *values]
        nodes = lam[k::-1]
        if k and corrector:
            count = min(corrector, k + 1)
            state = advanced(
                before, nodes[:count], values[:count], lam[k - 1], lam[k], tau, scales[k - 1 : k + 1], drawn
            )
        tau = 0.8 if 0.05 < sigma[k] / alpha[k] <= 5 else 0.0
        before, drawn, count = state, left.pop(0) if tau else 0.0, min(predictor, k + 1)
        state = advanced(before, nodes[:count], values[:count], lam[k], lam[k + 1], tau, scales[k : k + 2], drawn)
    assert 2 < len(left) < 7
    sampler = published(SASolver(9, UniformLogSNR(), predictor, corrector, 0.8, 0.05, 5.0))
    found = sampler(ExactMixture(mixture, schedule), x, times, noise=GivenNoise(torch.from_numpy(z)))
    np.testing.assert_allclose(found, state, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("diffusion", [SigmaDiffusion(1.0), ForwardDiffusion(1.0)], ids=["sigma", "forward"])
def test_the_strong_order_of_euler_maruyama(diffusion):
    """Distance to the same Brownian path in 16 times finer steps: slope at least 0.5; it is 1.

    From noise level 3.3 to 0.1 in steps that are nodes of the path's tree, where t is its angle: 3/4096 at least.
    """
    schedule, n = Cosine(math.inf, -math.inf), 64
    denoiser, x, ends = ExactMixture(two_classes(), schedule), 2 * normals(n, 2), []
    for steps in (16, 32, 64, 1024):
        times = torch.linspace(13 / 16, 1 / 16, steps + 1, dtype=torch.float64)
        noise = Noise(range(n), (2,), schedule, dtype=torch.float64, depth=12)
        ends.append(EulerMaruyama(steps, UniformT(), diffusion)(denoiser, x, times, noise=noise))
    errors = [float((end - ends[-1]).square().mean().sqrt()) for end in ends[:-1]]
    assert all(math.log2(a / b) > 0.8 for a, b in pairwise(errors)), errors


@pytest.mark.parametrize(
    "name", ["ddpm-large", "euler_ancestral", "euler_maruyama", "dpmpp_2m_sde", "dpmpp_3m_sde", "sa_solver"]
)
def test_more_steps_refine_the_same_path(name):
    """Distance from n to 2n steps shrinks with n; fresh noise for every grid would leave it near .5."""
    schedule, n, ends = Cosine(12.0, -10.0), 100, []
    denoiser, x = ExactMixture(two_classes(), schedule), 2 * normals(n, 2)
    start, stop = (float(schedule.t_of(-2 * math.log(level))) for level in (3.0, 0.1))
    for steps in (16, 32, 64, 128):
        times = torch.linspace(start, stop, steps + 1, dtype=torch.float64)
        noise = Noise(range(n), (2,), schedule, dtype=torch.float64, depth=12)
        ends.append(SAMPLERS[name](steps)(denoiser, x, times, noise=noise))
    distances = [float((a - b).square().mean().sqrt()) for a, b in pairwise(ends)]
    assert all(later < 0.75 * earlier for earlier, later in pairwise(distances)) and distances[-1] < 0.05, distances


def test_the_default_tree_keeps_samples_of_other_steps_together():
    """DDPM on the mixture, 250 samples, 64 and 128 steps: .053 apart; depth 3 .093, 12 .028, other noise 1.35."""
    schedule, n = Cosine(12.0, -10.0), 250
    denoiser, x = ExactMixture(two_classes(), schedule), normals(n, 2)

    def draw(steps, first=0):
        times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        return SAMPLERS["ddpm"](steps)(denoiser, x, times, noise=Noise(range(first, first + n), (2,), schedule))

    coarse = draw(64)
    near, far = (float((coarse - draw(128, first)).square().mean().sqrt()) for first in (0, n))
    assert near < 0.05 * far, (near, far)


LAWS = {
    "ddpm": lambda: DDPM(100, UniformT(), variance=0.0),
    "euler_ancestral": lambda: SAMPLERS["euler_ancestral"](100),
    "euler_maruyama": lambda: EulerMaruyama(150, UniformT(), ForwardDiffusion(1.0)),
    "heun-churn": lambda: Heun(40, UniformLogSNR(), churn=20.0, churn_min=0.05, churn_max=20.0),
    "dpmpp_2m_sde": lambda: DPMpp2MSDE(40, UniformLogSNR(), eta=1.0, s_noise=1.0),
    "dpmpp_3m_sde": lambda: DPMpp3MSDE(40, UniformLogSNR(), eta=1.0, s_noise=1.0),
    "sa_solver": lambda: SASolver(40, UniformLogSNR(), 3, 3, tau=1.0, tau_min=0.05, tau_max=20.0),
    "langevin_pc": lambda: LangevinPC(DDPM(100, UniformT(), variance=1.0), corrections=1, snr=0.1),
    "annealed_langevin": lambda: AnnealedLangevin(30, UniformLogSNR(), corrections=15, step_size=0.1),
    "restart": lambda: Restart(Heun(40, UniformLogSNR()), [[0.1, 2.0, 10, 2]]),
}


@pytest.mark.parametrize("make", LAWS.values(), ids=LAWS)
def test_the_law_on_a_mixture(make):
    """n = 2000: Kolmogorov-Smirnov on four projections against the exact distribution, alpha = 1e-3 each; and the mean."""
    mixture, schedule, n = two_classes(), Cosine(12.0, -10.0), 2000
    x = next(generate(ExactMixture(mixture, schedule), make(), range(n), None, (2,), n)).numpy()
    for direction in ([1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [0.8, -0.6]):
        centres = mixture.means @ direction
        widths = np.sqrt(np.einsum("d,kde,e->k", direction, mixture.covariances, direction))
        projected = x @ direction
        p = kstest(projected, lambda v: (mixture.weights * norm.cdf((v[:, None] - centres) / widths)).sum(1)).pvalue
        assert p > 1e-3, direction
        spread = math.sqrt((mixture.weights * (widths**2 + centres**2)).sum() - (mixture.weights @ centres) ** 2)
        assert abs(projected.mean() - mixture.weights @ centres) < 4 * spread / math.sqrt(n)
