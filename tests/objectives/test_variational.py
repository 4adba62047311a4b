"""The variational bound: against closed forms on Gaussian data, its gradients, and that training lowers it."""

import math

import numpy as np
import pytest
import torch

from diffguide.backbones import MLP, Backbone
from diffguide.models.decoders import Discretized, Gaussian
from diffguide.models.parameterizations import X0, Eps, V
from diffguide.objectives.levels import LogitNormal, LogNormal, UniformLogSNR, UniformTime
from diffguide.objectives.resampling import LossSecondMoment
from diffguide.objectives.variational import Variational
from diffguide.schedules import VE, Cosine, Flow, Monotone

VARIANCES = torch.tensor([0.3, 2.0], dtype=torch.float64)
ENTROPY = float(0.5 * torch.log2(2 * math.pi * math.e * VARIANCES).mean())  # bits per dimension
COSINE = Cosine(10.0, -10.0)


def generator(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Perfect(Backbone):
    """E[eps | x_t] of zero-mean Gaussian data, from x_t / sqrt(alpha^2 + sigma^2) of any normalisation; eps is read."""

    def __init__(self, schedule):
        super().__init__()
        self.schedule = schedule

    def forward(self, x, log_snr, y=None):
        alpha, sigma = self.schedule.scales(log_snr.double(), 2)
        return sigma / (alpha**2 * VARIANCES + sigma**2) * torch.hypot(alpha, sigma) * x


class Null(MLP):
    """Always 0."""

    def forward(self, x, log_snr, y=None):
        return 0 * super().forward(x, log_snr, y)


def data(n: int, seed: int = 1) -> torch.Tensor:
    return VARIANCES.sqrt() * torch.randn(n, 2, generator=generator(seed), dtype=torch.float64)


def network(**changed) -> MLP:
    torch.manual_seed(0)
    return MLP(2, None, num_classes=0, width=16, layers=2, fourier_features=4, fourier_scale=0.5, **changed)


def objective(backbone, schedule=COSINE, decoder=None, levels=None, steps=None, parameterization=None) -> Variational:
    levels, decoder = levels or UniformTime(True), decoder or Gaussian()
    return Variational(backbone, schedule, decoder, parameterization or Eps(), levels, steps, 0.0)


def mean_and_error(values: torch.Tensor) -> tuple[float, float]:
    return float(values.mean()), float(values.std() / len(values) ** 0.5)


SCHEDULES = {
    "cosine": COSINE,
    "flow": Flow(10.0, -10.0),
    "ve": VE(10.0, -10.0),
    "learned": Monotone(10.0, -10.0, True, 8),
}
LEVELS = {"t": UniformTime(True), "log-SNR": UniformLogSNR(False), "logit": LogitNormal(0.0, 1.5)}


@pytest.mark.parametrize("name, schedule", SCHEDULES.items(), ids=SCHEDULES)
def test_the_bound_of_the_perfect_denoiser_is_the_entropy(name, schedule):
    """At ends of 10 and -10 what is lost there is below 1e-4 bits per dimension."""
    x = data(400000)
    levels = UniformTime(True) if schedule.is_learned else UniformLogSNR(True)
    loss = objective(Perfect(schedule), schedule, levels=levels)(x, None, generator())
    mean, error = mean_and_error(loss.per_example.detach())
    assert abs(mean - ENTROPY) < 4 * error + 1e-4 and error < 0.03
    prior = 0.5 * math.exp(-10) * (x**2).mean(1) / math.log(2)
    torch.testing.assert_close(loss.terms["prior"], prior, rtol=1e-7, atol=0)
    parts = sum(loss.terms[name] for name in ("prior", "reconstruction", "diffusion"))
    torch.testing.assert_close(parts, loss.per_example.detach())


@pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)
def test_its_mean_does_not_depend_on_the_distribution_of_levels(levels):
    found = [
        objective(Perfect(COSINE), levels=part)(data(40000), None, generator()) for part in (levels, UniformTime(False))
    ]
    (mean, error), (other, error_2) = (mean_and_error(loss.terms["diffusion"]) for loss in found)
    assert abs(mean - other) < 4 * math.hypot(error, error_2)


@pytest.mark.parametrize("steps", [1, 3, 20])
def test_steps_are_those_of_the_discrete_bound(steps):
    """T/2 E[expm1(log_snr(s) - log_snr(t)) mmse(log_snr(t))], mmse of eps in closed form; above the continuous bound."""
    schedule = Cosine(4.0, -4.0)
    loss = objective(Perfect(schedule), schedule, steps=steps)(data(200000), None, generator())
    log_snr = schedule.log_snr(torch.arange(steps + 1, dtype=torch.float64) / steps).numpy()
    alpha2, sigma2 = 1 / (1 + np.exp(-log_snr[1:])), 1 / (1 + np.exp(log_snr[1:]))
    v = VARIANCES.numpy()[:, None]
    mmse = (alpha2 * v / (alpha2 * v + sigma2)).mean(0)
    expected = float((0.5 * np.expm1(log_snr[:-1] - log_snr[1:]) * mmse).sum() / math.log(2))
    mean, error = mean_and_error(loss.terms["diffusion"])
    assert abs(mean - expected) < 4 * error and error < 0.05 * expected
    continuous = objective(Perfect(schedule), schedule)(data(200000), None, generator()).terms["diffusion"].mean()
    assert mean > float(continuous)


def test_every_parameterization_is_read_as_eps():
    """The diffusion term of networks that say 0: of X0 that is eps_hat = x_t / sigma, of V sigma x_t, of Eps 0."""
    x, t = data(500), {}
    for make in (X0, V, Eps):
        loss = objective(Null(2, None, 0, 8, 1, 0, 1.0).double(), parameterization=make())(x, None, generator(5))
        t[make] = loss.terms["mse"], loss.log_snr
    assert torch.equal(t[X0][1], t[Eps][1])
    rng = generator(5)
    torch.rand((), generator=rng, dtype=torch.float64)
    eps = torch.randn(x.shape, generator=rng, dtype=torch.float64)
    alpha, sigma = COSINE.scales(t[X0][1], 2)
    x_t = alpha * x + sigma * eps
    for make, eps_hat in ((X0, x_t / sigma), (V, sigma * x_t), (Eps, 0 * x_t)):
        torch.testing.assert_close(t[make][0], ((eps_hat - eps) ** 2).mean(1), rtol=1e-6, atol=1e-9)


def test_gradients_of_a_learned_schedule():
    """Ends and network: of the bound; the curve between: of the squared diffusion term; in steps all of the bound.

    By finite differences, to 2e-3 of float32 parameters.
    """
    x = data(16)
    for steps in (None, 5):
        schedule, backbone = Monotone(6.0, -5.0, True, 8), network().double()
        schedule.centre.data += torch.linspace(-2, 2, 8)
        backbone.linear_out.weight.data.normal_(generator=generator(1))
        method = objective(backbone, schedule, Gaussian(), UniformTime(True), steps, V())
        method(x, None, generator()).per_example.mean().backward()
        bound = lambda loss: float(loss.per_example.detach().mean())  # noqa: E731
        square = lambda loss: float((loss.terms["diffusion"] ** 2).mean() * math.log(2))  # noqa: E731
        parts = [(schedule.top, bound), (schedule.gap, bound), (backbone.linear_out.bias, bound)]
        for part in (schedule.centre, schedule.steep):
            parts.append((part, bound if steps else square))
        for part, value in parts:
            index = min(1, part.numel() - 1)
            slope, h, sides = float(part.grad.view(-1)[index]), 2.0**-7, []
            for sign in (1, -1):
                part.data.view(-1)[index] += sign * h
                sides.append(value(method(x, None, generator())))
                part.data.view(-1)[index] -= sign * h
            assert (sides[0] - sides[1]) / (2 * h) == pytest.approx(slope, rel=2e-3, abs=1e-6)


def test_learned_ends_and_network_find_the_entropy():
    """From a range of log-SNR that is far too narrow, 300 steps; the bound comes within 0.15 bits of the entropy."""
    schedule, backbone = Monotone(2.0, -1.0, True, 8), network()
    method = objective(backbone, schedule)
    optimiser = torch.optim.Adam(method.parameters(), lr=0.02)
    before = float(method(data(4000).float(), None, generator()).per_example.detach().mean())
    for step in range(300):
        optimiser.zero_grad()
        method(data(256, seed=step).float(), None, generator(step)).per_example.mean().backward()
        optimiser.step()
    loss = method.eval()(data(20000, seed=9).float(), None, generator())
    mean, error = mean_and_error(loss.per_example.detach())
    assert before > ENTROPY + 0.5 and ENTROPY - 4 * error < mean < ENTROPY + 0.15
    assert schedule.log_snr_max > 2.5 and schedule.log_snr_min < -1.3


@pytest.mark.parametrize("steps", [None, 3, 7])
def test_times_may_be_resampled(steps):
    """What a training step saw is remembered, other times are drawn, and the mean of the bound stays; in steps too, whose
    ends lie in other bins than the times that were drawn."""
    levels = LossSecondMoment(4, 2, 0.01, True)
    method, x = objective(Perfect(COSINE), levels=levels, steps=steps), data(40000)
    method(x[:400], None, generator())
    levels.finish_step(lambda tensor: tensor)
    assert levels.shares().std() > 0.1
    plainly = objective(Perfect(COSINE), steps=steps)
    found, plain = (part(x, None, generator(1)).terms["diffusion"] for part in (method, plainly))
    (mean, error), (other, error_2) = mean_and_error(found), mean_and_error(plain)
    assert abs(mean - other) < 4 * math.hypot(error, error_2)


class Listening(Null):
    """Notes the classes that it is told."""

    def forward(self, x, log_snr, y=None):
        self.told = y
        return super().forward(x, log_snr, y)


@pytest.mark.parametrize("p_uncond, expected", [(0.0, {0, 1}), (0.4, {-1, 0, 1}), (1.0, {-1})])
def test_classes_are_passed_on_or_dropped(p_uncond, expected):
    backbone = Listening(2, None, 2, 8, 1, 0, 1.0).double()
    method = Variational(backbone, COSINE, Gaussian(), Eps(), UniformTime(True), None, p_uncond)
    y = torch.arange(400) % 2
    method(data(400), y, generator())
    assert set(backbone.told.tolist()) == expected and method.model.has_null == (p_uncond > 0)
    assert float((backbone.told == -1).double().mean()) == pytest.approx(p_uncond, abs=0.08)
    assert bool(((backbone.told == y) | (backbone.told == -1)).all())


@pytest.mark.parametrize("make, sentence", [
    (lambda: objective(network(), steps=0), "steps must be"),
    (lambda: objective(network(), Cosine(math.inf, -10.0)), "schedule with finite ends"),
    (lambda: objective(network(), Monotone(6, -5, True, 8), levels=LogNormal(0, 1)), "learned .*drawn in time.* LogNormal"),
    (lambda: objective(network(), levels=UniformLogSNR(True), steps=3), "a bound of 3 steps needs .* UniformLogSNR"),
    (lambda: Variational(network(), COSINE, Gaussian(), Eps(), UniformTime(True), None, 1.5), "p_uncond must be in"),
    (lambda: objective(network(), decoder=Discretized(17))(data(3).float(), None, generator()), "dataset.quantization_levels"),
])  # fmt: skip
def test_impossible_arguments_are_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
