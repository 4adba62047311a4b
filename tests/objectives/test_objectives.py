"""The denoising objective against a NumPy computation; its noise levels against their densities; label dropout."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.integrate import cumulative_trapezoid

from diffguide.backbones import MLP, Backbone, DiT, UNet
from diffguide.models.parameterizations import EDM, X0, Eps, Flow, V
from diffguide.objectives import Denoising
from diffguide.objectives.base import drop_condition
from diffguide.objectives.levels import LogNormal, UniformTime
from diffguide.objectives.weights import MinSNR, Uniform
from diffguide.schedules import EDM as EDMSchedule
from diffguide.schedules import Cosine, Linear
from diffguide.schedules import Flow as FlowSchedule

PARAMETERIZATIONS = {"x0": X0(), "eps": Eps(), "v": V(), "flow": Flow(), "edm": EDM(0.5)}
SCHEDULES = {
    "cosine": Cosine(6.0, -5.0),
    "flow": FlowSchedule(6.0, -6.0),
    "linear": Linear(10.0),
    "edm": EDMSchedule(6.0, -4.0),
}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
every_parameterization = pytest.mark.parametrize("name", PARAMETERIZATIONS)
x_0 = torch.rand(6, 2, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1


def generator(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Known(Backbone):
    """A network whose output is known, and which keeps what it was given."""

    num_classes = 10

    def forward(self, x, log_snr, y=None):
        self.seen = x, log_snr, y
        return 0.7 * x + 0.1 * log_snr.reshape(-1, 1, 1, 1)


def objective(name="v", schedule=SCHEDULES["cosine"], weight=None, p_uncond=0.0) -> Denoising:
    levels = UniformTime(stratified=True)
    return Denoising(Known(), schedule, PARAMETERIZATIONS[name], weight or Uniform(), levels, p_uncond=p_uncond)


def seen_by_the_network(method: Denoising, name: str):
    """alpha, sigma, x_t, F and eps in NumPy, from what the network was given: scaled x_t and the log-SNR."""
    scaled, log_snr, _ = method.model.backbone.seen
    scaled, log_snr = scaled.numpy(), log_snr.numpy().reshape(-1, 1, 1, 1)
    ratio = np.exp(-log_snr / 2)  # sigma / alpha
    alpha = {EDMSchedule: np.ones_like(ratio), FlowSchedule: 1 / (1 + ratio)}.get(
        type(method.model.schedule), (1 + ratio**2) ** -0.5
    )
    sigma = ratio * alpha
    scale = {"flow": alpha + sigma, "edm": np.sqrt(sigma**2 + 0.25 * alpha**2)}.get(name, np.sqrt(alpha**2 + sigma**2))
    x_t = scale * scaled
    return alpha, sigma, x_t, 0.7 * scaled + 0.1 * log_snr, (x_t - alpha * x_0.numpy()) / sigma


@every_schedule
@every_parameterization
def test_the_loss_is_the_mean_square_of_the_networks_error(name, schedule):
    method = objective(name, schedule)
    loss = method(x_0, None, generator())
    alpha, sigma, _, output, eps = seen_by_the_network(method, name)
    x, r, w = x_0.numpy(), np.sqrt(alpha**2 + sigma**2), np.sqrt(sigma**2 + 0.25 * alpha**2)
    target = {
        "x0": x,
        "eps": eps,
        "v": (alpha * eps - sigma * x) / r,
        "flow": eps - x,
        "edm": (sigma * x / 0.5 - alpha * 0.5 * eps) / w,
    }[name]
    expected = ((output - target) ** 2).mean((1, 2, 3))
    np.testing.assert_allclose(loss.per_example, expected, rtol=1e-9)
    np.testing.assert_allclose(loss.terms["mse"], expected, rtol=1e-9)
    assert np.abs(eps).max() < 5 and 0.5 < eps.var() < 1.5, "the noise is standard normal"


@pytest.mark.parametrize("gamma", [0.5, 5.0])
@every_schedule
@every_parameterization
def test_min_snr_weighs_the_error_of_x_0(name, schedule, gamma):
    """min(SNR, gamma) ||x0_hat - x_0||^2 / D, whatever the network predicts."""
    method = objective(name, schedule, MinSNR(gamma))
    loss = method(x_0, None, generator())
    a, s, x_t, output, _ = seen_by_the_network(method, name)
    square, w2 = a**2 + s**2, s**2 + 0.25 * a**2
    x_0_hat = {
        "x0": output,
        "eps": (x_t - s * output) / a,
        "v": a / square * x_t - s / np.sqrt(square) * output,
        "flow": (x_t - s * output) / (a + s),
        "edm": 0.25 * a / w2 * x_t + 0.5 * s / np.sqrt(w2) * output,
    }[name]
    expected = np.minimum((a / s) ** 2, gamma).ravel() * ((x_0_hat - x_0.numpy()) ** 2).mean((1, 2, 3))
    np.testing.assert_allclose(loss.per_example, expected, rtol=1e-9)


def test_terms_are_detached_and_the_loss_is_not():
    network = MLP(2, None, num_classes=0, width=8, layers=1, fourier_features=0, fourier_scale=1.0)
    method = Denoising(network, SCHEDULES["cosine"], V(), Uniform(), UniformTime(True), p_uncond=0.0)
    loss = method(torch.zeros(4, 2), None, generator())
    assert loss.per_example.shape == (4,) and loss.per_example.requires_grad
    assert loss.terms["mse"].shape == (4,) and not loss.terms["mse"].requires_grad


@every_schedule
def test_the_density_of_uniform_time(schedule):
    """Integrates to 1 over log-SNR, and its integral is the law of independent draws, n = 20000, to 4 sigma."""
    t, density = UniformTime(stratified=True)(schedule, 40000, generator())
    log_snr, order = schedule.log_snr(t).sort()
    cdf = cumulative_trapezoid(density[order].numpy(), log_snr.numpy(), initial=0)
    assert cdf[-1] == pytest.approx(1, abs=2e-3)
    drawn = schedule.log_snr(UniformTime(stratified=False)(schedule, 20000, generator(1))[0]).sort().values
    for q in np.linspace(schedule.log_snr_min, schedule.log_snr_max, 13)[1:-1]:
        p = np.interp(q, log_snr, cdf)
        assert abs(float((drawn < q).double().mean()) - p) < 4 * math.sqrt(p * (1 - p) / 20000) + 1e-3


def test_stratified_times_are_spread_evenly():
    t, _ = UniformTime(stratified=True)(SCHEDULES["cosine"], 50, generator())
    gaps = t.sort().values.diff()
    torch.testing.assert_close(gaps, torch.full_like(gaps, 1 / 50), rtol=1e-9, atol=0)


def test_each_stratified_time_is_uniform():
    """Kolmogorov-Smirnov over 2000 batches at the level 1e-4, for the first, a middle and the last of 8."""
    levels, rng = UniformTime(stratified=True), generator()
    t = torch.stack([levels(SCHEDULES["cosine"], 8, rng)[0] for _ in range(2000)]).numpy()
    assert t.min() >= 0 and t.max() < 1
    assert all(stats.kstest(t[:, k], "uniform").pvalue > 1e-4 for k in (0, 3, 7))


@every_schedule
def test_log_normal_levels(schedule):
    """log(sigma / alpha) ~ N(-1.2, 1.2^2), its tails moved to the schedule's ends; n = 20000, KS at the level 1e-4."""
    t, density = LogNormal(-1.2, 1.2)(schedule, 20000, generator())
    assert bool(((t >= 0) & (t <= 1)).all())
    log_snr = schedule.log_snr(t).numpy()
    inside = (log_snr < schedule.log_snr_max - 1e-9) & (log_snr > schedule.log_snr_min + 1e-9)
    law = stats.norm(2.4, 2.4)
    low, high = law.cdf([schedule.log_snr_min, schedule.log_snr_max])
    assert stats.kstest((law.cdf(log_snr[inside]) - low) / (high - low), "uniform").pvalue > 1e-4
    for share, p in ((np.mean(t.numpy() > 1 - 1e-9), low), (np.mean(t.numpy() < 1e-9), 1 - high)):
        assert abs(share - p) < 4 * math.sqrt(p / 20000)
    np.testing.assert_allclose(density[inside], law.pdf(log_snr[inside]), rtol=1e-6)


def test_labels_are_dropped_at_the_rate_and_independently():
    """n = 40000: rate, correlation of neighbours and of successive calls, to 4 standard errors; no other change."""
    y, rng, n = torch.arange(40000) % 7, generator(), 40000
    first, second = (drop_condition(y, 0.3, rng) for _ in range(2))
    dropped = (first == -1).double()
    assert abs(float(dropped.mean()) - 0.3) < 4 * math.sqrt(0.21 / n)
    assert torch.equal(first[first >= 0], y[first >= 0])
    pairs = torch.stack([dropped[:-1], dropped[1:]]), torch.stack([dropped, (second == -1).double()])
    assert all(abs(float(torch.corrcoef(pair)[0, 1])) < 4 / math.sqrt(n) for pair in pairs)


@pytest.mark.parametrize("p_uncond, expected", [(0.0, {0}), (0.5, {0, -1}), (1.0, {-1})])
def test_the_objective_drops_labels(p_uncond, expected):
    method = objective(p_uncond=p_uncond)
    method(torch.zeros(64, 2, 3, 3, dtype=torch.float64), torch.zeros(64, dtype=torch.long), generator())
    assert set(method.model.backbone.seen[2].tolist()) == expected
    assert method.model.has_null == (p_uncond > 0)


@pytest.mark.parametrize("p_uncond", [-0.1, 1.5, math.nan])
def test_p_uncond_is_a_probability(p_uncond):
    with pytest.raises(ValueError, match="p_uncond must be"):
        objective(p_uncond=p_uncond)


@pytest.mark.parametrize(
    "make, sentence",
    [
        (lambda: MinSNR(0.0), "gamma must be"),
        (lambda: LogNormal(0.0, 0.0), "std must be"),
        (lambda: objective("eps", FlowSchedule(6.0, -math.inf)), "zero terminal SNR"),
    ],
)
def test_bad_arguments_are_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


def test_the_generator_determines_the_loss():
    y = torch.arange(6)
    first, again, other = (objective(p_uncond=0.5)(x_0, y, generator(seed)).per_example for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.isclose(first, other).any()


NETWORKS = {
    "unet": (lambda: UNet(1, None, 3, 8, 8, [1, 2], blocks=1, attention=[4], head_channels=8, dropout=0.0), (1, 8, 8)),
    "dit": (lambda: DiT(1, None, 3, 8, patch=2, width=16, depth=2, heads=2, mlp_ratio=2.0, dropout=0.0), (1, 8, 8)),
    "mlp": (lambda: MLP(2, None, 3, width=16, layers=2, fourier_features=4, fourier_scale=0.5), (2,)),
}


@pytest.mark.parametrize("make, shape", NETWORKS.values(), ids=NETWORKS)
def test_gradients_reach_every_parameter(make, shape):
    """From the second or third step on: a layer behind one that starts at zero has to wait for it."""
    torch.manual_seed(0)
    method = Denoising(make(), SCHEDULES["cosine"], V(), Uniform(), UniformTime(stratified=True), p_uncond=0.3)
    optimiser, x, y = torch.optim.SGD(method.parameters(), lr=0.1), torch.randn(16, *shape), torch.arange(16) % 3
    for step in range(4):
        optimiser.zero_grad()
        method(x, y, generator(step)).per_example.mean().backward()
        optimiser.step()
    without = [name for name, parameter in method.named_parameters() if not parameter.grad.abs().max() > 0]
    assert not without and len(list(method.parameters())) == len(list(method.model.backbone.parameters()))
