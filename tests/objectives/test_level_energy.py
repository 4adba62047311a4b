"""Dual score, conditional time score and diffusive classification: their formulas, and the exact law as fixed point."""

import math

import numpy as np
import pytest
import torch
from closed_forms import Mixture
from exact_energies import ERRORS, MEANS, SHARES, SPREAD, ExactEnergy, ExactTimeScore, derivatives, draw
from networks import mlp

from diffguide.backbones import Backbone
from diffguide.models.level_energy import LevelEnergy, TimeScore
from diffguide.objectives import ConditionalTimeScore, DiffusiveClassification, DualScore, LossSecondMoment
from diffguide.objectives.levels import UniformLogSNR, UniformTime
from diffguide.schedules import EDM, TRE, Cosine, Flow, Monotone

SCHEDULES = {"tre": TRE(8.0, -9.0), "flow": Flow(8.0, -9.0), "edm": EDM(8.0, -9.0)}
SCHEDULE, EVEN = SCHEDULES["tre"], UniformLogSNR()
LAW = Mixture(SHARES, MEANS, np.stack([SPREAD**2 * np.eye(2)] * 2), [0, 1])


def generator(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def trainable(num_classes: int) -> Backbone:
    """A small network with one output that is not 0."""
    torch.manual_seed(0)
    network = mlp(2, out_features=1, num_classes=num_classes)
    torch.nn.init.normal_(network.linear_out.weight)
    return network


class Polynomial(Backbone):
    """F = 0.3 + <c, z> + 0.2 l <d, z> + 0.1 l^2 + 0.4 |z|^2 + 0.05 l z_1 z_2, for NumPy and torch alike."""

    num_classes, out_features, noise_conditioned, is_compiled, conditional = 0, 1, True, False, False

    def forward(self, z, log_snr, y=None):
        return self.value(z, log_snr)[:, None]

    @staticmethod
    def value(z, log_snr):
        linear = 0.5 * z[:, 0] - 0.2 * z[:, 1] + 0.2 * log_snr * (z[:, 0] + 2 * z[:, 1])
        return 0.3 + linear + 0.1 * log_snr**2 + 0.4 * (z**2).sum(1) + 0.05 * log_snr * z[:, 0] * z[:, 1]


def log_polynomial(z, log_snr):
    """log N(z; 0, I) + a F without its constant, in NumPy."""
    return -0.5 * (z**2).sum(1) + (1 + np.exp(-log_snr)) ** -0.5 * Polynomial.value(z, log_snr)


def slope(function, z):
    """The gradient in z by central differences."""
    steps = 1e-5 * np.eye(z.shape[1])
    return np.stack([(function(z + step) - function(z - step)) / 2e-5 for step in steps], axis=1)


def levels_and_noise(rng, n, count=1, levels=EVEN):
    """What an objective draws: the log-SNRs and noises of `count` levels, in NumPy."""
    log_snr = [SCHEDULE.log_snr(levels(SCHEDULE, n, rng)[0]).numpy() for _ in range(count)]
    eps = [torch.randn(n, 2, generator=rng, dtype=torch.float64).numpy() for _ in range(count)]
    return log_snr, eps


def test_dual_score_is_its_formula_in_the_variable_of_the_paper():
    """In y = x_0 + sqrt(v) eps, v = 1 / SNR: the derivatives of log p(y) and of log N(y; x_0, v I), by differences."""
    x_0 = draw(24)
    loss = DualScore(Polynomial(), SCHEDULE, time_weight=0.7)(x_0, None, generator())
    (log_snr,), (eps,) = levels_and_noise(generator(), 24)
    x_0 = x_0.numpy()
    y = x_0 + np.exp(-log_snr / 2)[:, None] * eps

    def log_p(y, log_snr):
        a = (1 + np.exp(-log_snr)) ** -0.5
        return log_polynomial(a[:, None] * y, log_snr) + 2 * np.log(a)

    def log_kernel(log_snr):
        return log_snr - ((y - x_0) ** 2).sum(1) * np.exp(log_snr) / 2

    deviation = np.exp(-log_snr / 2)[:, None]
    mse = ((eps + deviation * slope(lambda y: log_p(y, log_snr), y)) ** 2).mean(1)
    rates = [(f(log_snr + 1e-5) - f(log_snr - 1e-5)) / 2e-5 for f in (lambda level: log_p(y, level), log_kernel)]
    time = (rates[0] - rates[1]) ** 2 / 4
    np.testing.assert_allclose(loss.terms["mse"], mse, rtol=1e-6)
    np.testing.assert_allclose(loss.terms["time"], time, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(loss.per_example.detach(), mse + 0.7 * time, rtol=1e-6)


def test_conditional_time_score_is_its_formula():
    """The weight of the authors' code: the derivative by a, times (1 - a^2) / sqrt(2 a^2 + v (1 - a^2)), squared, over D."""
    x_0, n = draw(24), 24
    loss = ConditionalTimeScore(Polynomial(), SCHEDULE, data_variance=0.6)(x_0, None, generator())
    (log_snr,), (eps,) = levels_and_noise(generator(), n, levels=UniformTime())
    x_0 = x_0.numpy()
    a = (1 + np.exp(-log_snr)) ** -0.5
    variance = 1 - a**2
    z = a[:, None] * x_0 + np.sqrt(variance)[:, None] * eps
    target = (2 * a - a * (eps**2).sum(1)) / variance + (eps * x_0).sum(1) / np.sqrt(variance)
    rate = a / 2 * np.sqrt(2 * (2 * a**2 + 0.6 * variance)) * Polynomial.value(z, log_snr) * 2 / (a * variance)
    weight = variance / np.sqrt(2 * a**2 + 0.6 * variance)
    np.testing.assert_allclose(loss.per_example.detach(), (weight * (rate - target)) ** 2 / 2, rtol=1e-9)


@pytest.mark.parametrize("compared", [2, 3])
def test_diffusive_classification_is_its_formula(compared):
    x_0, n = draw(12), 12
    loss = DiffusiveClassification(Polynomial(), SCHEDULE, compared=compared, ce_weight=0.4)(x_0, None, generator())
    log_snr, eps = levels_and_noise(generator(), n, compared)
    mse, ce = np.zeros(n), np.zeros(n)
    for own in range(compared):
        a = (1 + np.exp(-log_snr[own])) ** -0.5
        b = np.sqrt(1 - a**2)
        z = a[:, None] * x_0.numpy() + b[:, None] * eps[own]
        mse += ((eps[own] + b[:, None] * slope(lambda z: log_polynomial(z, log_snr[own]), z)) ** 2).mean(1) / compared
        logits = np.stack([log_polynomial(z, level) for level in log_snr])
        ce -= (logits[own] - np.logaddexp.reduce(logits)) / compared
    np.testing.assert_allclose(loss.terms["mse"], mse, rtol=1e-6)
    np.testing.assert_allclose(loss.terms["ce"], ce, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(loss.per_example.detach(), mse + 0.4 * ce, rtol=1e-6)


CASES = {
    "dual_score": (DualScore, ExactEnergy, ["mse", "time", "loss"]),
    "ctsm": (ConditionalTimeScore, ExactTimeScore, ["loss"]),
    "diffclf": (DiffusiveClassification, ExactEnergy, ["mse", "ce", "loss"]),
}
every_case = pytest.mark.parametrize("objective, network, terms", CASES.values(), ids=CASES)


@every_case
def test_the_exact_log_density_is_a_fixed_point(objective, network, terms):
    """The mean derivative of each term is 0 along every error of the network, within 4.5 standard errors."""
    backbone = network()
    found = derivatives(objective(backbone, SCHEDULE), backbone)
    for term in terms:
        for name, (mean, error) in found[term].items():
            assert abs(mean) < 4.5 * error + 1e-9, (term, name, mean, error)


@every_case
def test_other_weights_of_the_modes_are_no_fixed_point(objective, network, terms):
    backbone = network(torch.tensor([0.1, 0.9], dtype=torch.float64))
    found = derivatives(objective(backbone, SCHEDULE), backbone)["loss"]
    assert max(abs(mean) / error for mean, error in found.values()) > 8


@pytest.mark.parametrize("objective, term", [(DualScore, "time"), (DiffusiveClassification, "ce")])
def test_only_the_second_term_sees_a_constant_of_a_level(objective, term):
    """Denoising is blind to F + c(level); the other term is not, for a constant that is wrong at one level only."""
    backbone = ExactEnergy()
    objective = objective(backbone, SCHEDULE)
    values = []
    for off in (0.0, 6.0):
        backbone.off, backbone.error = off, ERRORS["level"]
        values.append(objective(draw(2000), None, generator()).terms)
    torch.testing.assert_close(values[0]["mse"], values[1]["mse"])
    assert (values[1][term] - values[0][term]).mean() > 0.05


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("kind, network", [(LevelEnergy, ExactEnergy), (TimeScore, ExactTimeScore)])
def test_density_and_prediction_of_the_exact_network_are_those_of_the_law(schedule, kind, network):
    """An integral is off by the signal that is left at pure noise."""
    model, x_0 = kind(network(), schedule, False), draw(6)
    exact_at_noise = isinstance(model, LevelEnergy)
    for t in (None, torch.tensor(0.3, dtype=torch.float64), torch.linspace(0.2, 0.9, 6, dtype=torch.float64)):
        alpha, sigma = schedule.alpha_sigma(0.0 if t is None else t)
        x = alpha.reshape(-1, 1) * x_0 + sigma.reshape(-1, 1) * torch.randn(
            6, 2, generator=generator(), dtype=torch.float64
        )
        expected = LAW.log_density(x.numpy(), alpha.numpy(), sigma.numpy())
        tolerance = 1e-9 if exact_at_noise else 0.03
        np.testing.assert_allclose(model.log_density(x, t).detach(), expected, atol=tolerance, rtol=0)
        if t is None:
            continue
        prediction = model(x, t)
        score = LAW.score(x.numpy(), alpha.numpy(), sigma.numpy())
        eps = -sigma.reshape(-1, 1).numpy() * score
        np.testing.assert_allclose(prediction.eps.detach(), eps, atol=1e-9 if exact_at_noise else 0.02, rtol=0)
        agreed = alpha.reshape(-1, 1) * prediction.x_0 + sigma.reshape(-1, 1) * prediction.eps
        torch.testing.assert_close(agreed.detach(), x)


def test_the_integral_starts_at_pure_noise_and_converges():
    """log q(high) - log q(low) of the exact time score; few nodes are off by more."""
    z, log_snr = draw(6), torch.tensor(3.0, dtype=torch.float64)
    exact = TimeScore(ExactTimeScore(), SCHEDULE, False, 200).log_ratio(z, log_snr, None)
    for nodes, tolerance in ((32, 1e-6), (4, 1.0)):
        found = TimeScore(ExactTimeScore(), SCHEDULE, False, nodes).log_ratio(z, log_snr, None)
        assert (found - exact).abs().max() < tolerance
    assert (found - exact).abs().max() > 1e-4
    low = torch.tensor(SCHEDULE.log_snr_min, dtype=torch.float64)
    assert TimeScore(ExactTimeScore(), SCHEDULE, False).log_ratio(z, low, None).abs().max() < 1e-12


@pytest.mark.parametrize("make", [LevelEnergy, TimeScore])
def test_any_network_is_normal_at_pure_noise_and_reads_its_class(make):
    model = make(trainable(3), SCHEDULE, True)
    x, y = torch.randn(6, 2, generator=generator()), torch.tensor([0, 1, 2, -1, 0, 1])
    found = model.log_density(x, torch.tensor(1.0, dtype=torch.float64), y).detach()
    normal = -0.5 * (x.square() + math.log(2 * math.pi)).sum(1)
    torch.testing.assert_close(found, normal, atol=0.1, rtol=0)  # the signal left is 0.011
    assert (model.log_density(x, None, y) - model.log_density(x, None, None))[[0, 1, 2]].abs().min() > 1e-4
    assert model.has_null and model.conditional and not model.is_compiled and model.num_classes == 3


@pytest.mark.parametrize("objective", [case[0] for case in CASES.values()], ids=CASES)
def test_networks_train_and_held_out_losses_have_no_graph(objective):
    made = objective(trainable(2), SCHEDULE, p_uncond=0.5)
    x_0, y = draw(8).float(), torch.tensor([0, 1] * 4)
    made(x_0, y, generator()).per_example.mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in made.parameters())
    with torch.no_grad():
        held_out = made.eval()(x_0, y, generator())
    assert not held_out.per_example.requires_grad
    torch.testing.assert_close(held_out.per_example, made(x_0, y, generator()).per_example.detach())
    assert set(made.figures(held_out)) <= {"validation_mse", "validation_ce", "validation_accuracy", "validation_time"}


@pytest.mark.parametrize("objective", [DualScore, ConditionalTimeScore])
def test_levels_that_follow_the_losses_see_them(objective):
    levels = LossSecondMoment(bins=4, history=2)
    made = objective(trainable(0), SCHEDULE, levels)
    for seed in range(3):
        made(draw(64).float(), None, generator(seed))
        made.finish_step(lambda part: part)
    with pytest.raises(ValueError, match="several levels of an example"):
        DiffusiveClassification(mlp(2, out_features=1), SCHEDULE, levels)


MISTAKES = {
    "outputs": (lambda: DualScore(mlp(2, out_features=3), SCHEDULE), "one output, but this MLP has 3"),
    "image": (lambda: DualScore(mlp(2), SCHEDULE), "an output in the shape of the data"),
    "no level": (lambda: DualScore(mlp(2, out_features=1, noise_conditioned=False), SCHEDULE), "noise_conditioned=true"),
    "learned": (lambda: DualScore(mlp(2, out_features=1), Monotone()), "fixed schedule"),
    "infinite": (lambda: DualScore(mlp(2, out_features=1), Flow(math.inf, -9.0), UniformTime()), "log_snr_max"),
    "signal left": (lambda: DualScore(mlp(2, out_features=1), Cosine(6.0, -4.0)), "set schedule.log_snr_min=-10"),
    "time_weight": (lambda: DualScore(mlp(2, out_features=1), SCHEDULE, time_weight=-1), "time_weight"),
    "compared": (lambda: DiffusiveClassification(mlp(2, out_features=1), SCHEDULE, compared=1), "compared"),
    "nodes": (lambda: ConditionalTimeScore(mlp(2, out_features=1), SCHEDULE, nodes=1), "nodes"),
}  # fmt: skip


@pytest.mark.parametrize("make, message", MISTAKES.values(), ids=MISTAKES)
def test_what_does_not_fit_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()
