"""Sliced score matching against its formula, and against denoising score matching on a Gaussian."""

import copy
import math

import numpy as np
import pytest
import torch

from diffguide.backbones import MLP, Backbone, UNet
from diffguide.models.parameterizations import Eps, Flow, V
from diffguide.objectives import Denoising, Sliced
from diffguide.objectives.levels import NoiseLevels, UniformTime
from diffguide.objectives.resampling import LossSecondMoment
from diffguide.objectives.weights import Uniform
from diffguide.schedules import Cosine, Monotone

COSINE = Cosine(6.0, -5.0)


def generator(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Linear(Backbone):
    """eps_hat = A x + b, with the scale of the input undone at the one noise level of these tests."""

    num_classes = 0

    def __init__(self, matrix, offset):
        super().__init__()
        self.matrix, self.offset = torch.nn.Parameter(matrix), torch.nn.Parameter(offset)

    def forward(self, x, log_snr, y=None):
        return x @ self.matrix.T + self.offset


class At(NoiseLevels):
    """Always the same time."""

    def __call__(self, schedule, n, rng):
        return torch.full((n,), 0.4, dtype=torch.float64), torch.ones(n, dtype=torch.float64)


MEAN, SPREAD = torch.tensor([0.3, -0.5, 0.1], dtype=torch.float64), torch.tensor([0.4, 0.7, 1.1], dtype=torch.float64)


def exact(off: float) -> Linear:
    """eps_hat = sigma C^-1 (x_t - alpha m) of the Gaussian N(m, diag S), C = alpha^2 S + sigma^2, plus an error."""
    alpha, sigma = COSINE.alpha_sigma(0.4)
    matrix = torch.diag(sigma / (alpha**2 * SPREAD + sigma**2))
    return Linear(matrix + off * torch.tensor([[1.0, 2, 0], [0, -1, 0], [1, 0, 0.5]]), -matrix @ (alpha * MEAN) + off)


def gaussian(n: int, seed: int):
    return MEAN + SPREAD.sqrt() * torch.randn(n, 3, generator=generator(seed), dtype=torch.float64)


@pytest.mark.parametrize("slices", [1, 3])
def test_the_sliced_loss_is_its_formula(slices):
    network, x_0 = exact(0.2), gaussian(7, 0)
    loss = Sliced(network, COSINE, Eps(), At(), slices, 0.0)(x_0, None, generator(5))
    rng = generator(5)
    alpha, sigma = (float(part) for part in COSINE.alpha_sigma(0.4))
    x_t = alpha * x_0 + sigma * torch.randn(7, 3, generator=rng, dtype=torch.float64)
    eps = (x_t @ network.matrix.T + network.offset).detach().numpy()
    expected, matrix = (eps**2).sum(1) / 6, network.matrix.detach().numpy()
    for _ in range(slices):
        v = torch.randn(7, 3, generator=rng, dtype=torch.float64).numpy()
        expected = expected - sigma * np.einsum("bi,ij,bj->b", v, matrix, v) / 3 / slices
    np.testing.assert_allclose(loss.per_example.detach(), expected, rtol=1e-12)


@pytest.mark.parametrize("off", [0.0, 0.2])
def test_sliced_is_denoising_score_matching_up_to_a_constant(off):
    """E sliced = E ||eps_hat - eps||^2 / (2 D) - 1/2, here in closed form; n = 40000, to 4 standard errors."""
    network, x_0 = exact(off), gaussian(40000, 1)
    sliced = Sliced(network, COSINE, Eps(), At(), 1, 0.0)(x_0, None, generator(2)).per_example.detach()
    alpha, sigma = COSINE.alpha_sigma(0.4)
    covariance, error = torch.diag(alpha**2 * SPREAD + sigma**2), network.matrix.detach() - exact(0).matrix.detach()
    offset = network.offset.detach() - exact(0).offset.detach() + error @ (alpha * MEAN)
    best = (alpha**2 * SPREAD / covariance.diagonal()).sum()  # of E ||E[eps | x_t] - eps||^2
    square = best + (error @ covariance @ error.T).trace() + offset @ offset
    assert abs(float(sliced.mean() - (square / 6 - 0.5))) < 4 * float(sliced.std()) / 200
    denoising = Denoising(network, COSINE, Eps(), Uniform(), At(), 0.0)(x_0, None, generator(2)).per_example.detach()
    assert abs(float(denoising.mean() - square / 3)) < 4 * float(denoising.std()) / 200


@pytest.mark.parametrize("off, still", [(0.0, True), (0.2, False)])
def test_the_gradient_vanishes_at_the_exact_score(off, still):
    """20 batches of 2000: every entry's mean within 4.5 standard errors of 0 there, and not elsewhere."""
    network = exact(off)
    method, gradients = Sliced(network, COSINE, Eps(), At(), 1, 0.0), []
    for seed in range(20):
        loss = method(gaussian(2000, seed), None, generator(100 + seed)).per_example.mean()
        gradients.append(torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(network.parameters()))]))
    gradients = torch.stack(gradients)
    score = gradients.mean(0).abs() / (gradients.std(0) / math.sqrt(20))
    assert (float(score.max()) < 4.5) == still


def unet(attention: list[int], **options) -> UNet:
    return UNet(1, None, 0, 8, 8, [1], blocks=1, attention=attention, head_channels=8, dropout=0.0, **options)


@pytest.mark.parametrize("network", [unet([]), unet([8], double_differentiable=True, checkpointing=True)])
def test_networks_of_images_are_differentiated_twice(network):
    """Without attention, or with such as says so; layers that are computed again are too."""
    Sliced(network, COSINE, V(), UniformTime(True), 1, 0.0)(torch.randn(2, 1, 8, 8), None, generator())[
        0
    ].sum().backward()
    assert all(part.grad is None or part.grad.isfinite().all() for part in network.parameters())
    assert any(part.grad is not None and part.grad.any() for part in network.parameters())


def mlp() -> MLP:
    torch.manual_seed(0)
    return MLP(2, None, num_classes=0, width=16, layers=2, fourier_features=4, fourier_scale=0.5)


def test_the_sliced_objective_in_evaluation_and_without_gradients():
    """As the held-out loss calls it: no graph, nothing that needs a gradient, the same number."""
    method, x = Sliced(mlp(), COSINE, V(), UniformTime(True), 1, 0.0), torch.randn(8, 2)
    loss = method(x, None, generator()).per_example
    assert loss.requires_grad
    with torch.no_grad():
        still = copy.deepcopy(method).eval().requires_grad_(False)(x, None, generator()).per_example
    assert not still.requires_grad and torch.allclose(still, loss.detach())


@pytest.mark.parametrize(
    "make, sentence",
    [
        (
            lambda: Sliced(mlp(), Monotone(6, -5, False, 8), V(), UniformTime(True), 1, 0.0),
            "a fixed schedule, got Monotone",
        ),
        (lambda: Sliced(mlp(), COSINE, V(), LossSecondMoment(2, 1, 0.1, True), 1, 0.0), "levels=uniform_t"),
        (lambda: Sliced(mlp(), COSINE, V(), UniformTime(True), 0, 0.0), "slices must be"),
        (lambda: Sliced(mlp(), COSINE, Flow(), UniformTime(True), 1, 1.5), "p_uncond must be"),
        (lambda: Sliced(unet([8]), COSINE, V(), UniformTime(True), 1, 0.0), "backbone.double_differentiable=true"),
    ],
)
def test_bad_arguments_are_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
