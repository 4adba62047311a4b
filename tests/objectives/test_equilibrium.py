"""Equilibrium matching: its formula, its minimum in one dimension, and the descent that samples it."""

import numpy as np
import pytest
import torch
from networks import mlp

from diffguide.backbones import Backbone
from diffguide.models.equilibrium_energy import DotProduct, EquilibriumEnergy, SquaredNorm
from diffguide.models.evaluation_counters import count_evaluations
from diffguide.objectives import EquilibriumMatching
from diffguide.objectives.levels import draw_uniform
from diffguide.oracles import GaussianMixture
from diffguide.randomness import Noise
from diffguide.samplers import Descent
from diffguide.schedules import Cosine, NoSchedule

MEANS, SPREAD = np.array([0.8, -0.6]), 0.2  # of two equal Gaussians on the line


def generator(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Cubic(Backbone):
    """F = x^3 + 0.2 x + 0.1, elementwise."""

    num_classes, out_features, noise_conditioned, is_compiled, conditional = 0, 0, False, False, False

    def forward(self, x, log_snr, y=None):
        assert log_snr is None
        return x**3 + 0.2 * x + 0.1


def draws(x_0, seed=0):
    """What the objective draws, in NumPy."""
    rng = generator(seed)
    share = draw_uniform(len(x_0), rng, True).numpy()[:, None]
    return share, torch.randn(x_0.shape, generator=rng, dtype=x_0.dtype).numpy()


FORMS = {
    "dot": (DotProduct(), lambda x: x * (x**3 + 0.2 * x + 0.1), lambda x: 4 * x**3 + 0.4 * x + 0.1),
    "norm": (
        SquaredNorm(),
        lambda x: -((x**3 + 0.2 * x + 0.1) ** 2) / 2,
        lambda x: -(x**3 + 0.2 * x + 0.1) * (3 * x**2 + 0.2),
    ),
}


@pytest.mark.parametrize("form, value, slope", FORMS.values(), ids=FORMS)
def test_the_loss_is_its_formula(form, value, slope):
    """The target is 4 min(1, 5 - 5 g) (x_0 - eps), as in the authors' code."""
    x_0 = torch.randn(16, 3, generator=generator(1), dtype=torch.float64)
    share, eps = draws(x_0)
    x = share * x_0.numpy() + (1 - share) * eps
    target = 4 * np.minimum(1, 5 - 5 * share) * (x_0.numpy() - eps)
    objective = EquilibriumMatching(Cubic(), form=form)
    loss = objective(x_0, None, generator())
    np.testing.assert_allclose(loss.per_example.detach(), ((slope(x) - target) ** 2).mean(1), rtol=1e-10)
    found = objective.model.log_density(x_0).detach()
    np.testing.assert_allclose(found, value(x_0.numpy()).sum(1), rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        held_out = objective(x_0, None, generator()).per_example
    torch.testing.assert_close(held_out, loss.per_example.detach())


def field(x, decay_start=0.8, magnitude=4.0):
    """E[m c(g) (x_0 - eps) | x] by quadrature over g, of the two Gaussians: a gradient, since x is a number."""
    share = (np.arange(4000) + 0.5)[:, None, None] / 4000
    variance = share**2 * SPREAD**2 + (1 - share) ** 2
    off = x[None, :, None] - share * MEANS
    weight = np.exp(-(off**2) / (2 * variance)) / np.sqrt(variance)
    mean = MEANS + (share * SPREAD**2 - (1 - share)) / variance * off  # of x_0 - eps, given x, g and the component
    decay = magnitude * np.minimum(1, (1 - share) / (1 - decay_start))
    return (weight * decay * mean).sum((0, 2)) / weight.sum((0, 2))


class Exact(Backbone):
    """F with x F = the integral of `field` from 0 on a fine grid, plus `off` times an error."""

    num_classes, out_features, noise_conditioned, is_compiled, conditional = 0, 0, False, False, False
    grid = np.linspace(-7, 7, 5601)

    def __init__(self):
        super().__init__()
        self.off, self.error = 0.0, None
        slopes = np.concatenate([field(part) for part in np.array_split(self.grid, 40)])
        self.slopes = torch.from_numpy(slopes)
        self.step = self.grid[1] - self.grid[0]
        areas = torch.cat([torch.zeros(1), ((self.slopes[1:] + self.slopes[:-1]) / 2 * self.step).cumsum(0)])
        self.areas = areas - areas[len(areas) // 2]

    def forward(self, x, log_snr, y=None):
        place = ((x.detach() - self.grid[0]) / self.step).long().clamp(0, len(self.grid) - 2)
        beyond = x - torch.from_numpy(self.grid)[place]
        bend = (self.slopes[place + 1] - self.slopes[place]) / self.step
        value = self.areas[place] + self.slopes[place] * beyond + bend * beyond**2 / 2
        return (value + self.off * self.error(x)) / x


EXACT = Exact()


@pytest.mark.parametrize("error", [lambda x: x, lambda x: x**2, torch.sin], ids=["linear", "square", "sine"])
@pytest.mark.parametrize("shift", [0.0, 0.15])
def test_the_mean_direction_to_the_data_is_a_fixed_point(error, shift):
    """The derivative of the mean loss along an error of the energy is 0 there, and not for shifted data."""
    n, rng = 20000, generator(3)
    means = torch.from_numpy(MEANS)[torch.randint(2, (n, 1), generator=rng)]
    x_0 = shift + means + SPREAD * torch.randn(n, 1, generator=rng, dtype=torch.float64)
    backbone = EXACT
    objective, sides = EquilibriumMatching(backbone), []
    for off in (1e-4, -1e-4):
        backbone.off, backbone.error = off, error
        sides.append(objective(x_0, None, generator()).per_example.detach())
    change = (sides[0] - sides[1]) / 2e-4
    z = float(change.mean() / (change.std() / n**0.5))
    assert abs(z) < 4.5 if shift == 0 else abs(z) > 4.5


def test_descent_is_nesterovs():
    """x + h g, g = grad at x + h m g' of the last step; without momentum, gradient descent; to a maximum."""
    model = EquilibriumEnergy(Cubic(), False, SquaredNorm())
    slope = FORMS["norm"][2]
    for momentum in (0.0, 0.4):
        sampler = Descent(5, 0.1, momentum)
        times, noise = sampler.times(model), Noise(range(3), (2,), None, dtype=torch.float64)
        start = sampler.begin(model, times, noise)
        torch.testing.assert_close(start, noise.normal(times[0], 0))
        x, g = start.numpy(), 0.0
        for _ in range(5):
            g = slope(x + 0.1 * momentum * g)
            x = x + 0.1 * g
        found = sampler(model, start, times, None, noise)
        np.testing.assert_allclose(found, x, rtol=1e-10)


def test_a_descent_stays_away_from_pure_noise_of_a_model_with_levels():
    """At t = 0, and evaluations are counted."""
    law, tally = count_evaluations(GaussianMixture([1.0], [[0.3, -0.2]], 0.5, [0], Cosine(12.0, -10.0)))
    sampler = Descent(60, 0.2, 0.3)
    noise = Noise(range(2), (2,), law.schedule, dtype=torch.float64)
    times = sampler.times(law)
    found = sampler(law, sampler.begin(law, times, noise), times, None, noise)
    np.testing.assert_allclose(found, [[0.3, -0.2]] * 2, atol=1e-6)
    assert tally.evaluations == 120


def test_networks_train_with_labels():
    torch.manual_seed(0)
    network = mlp(2, num_classes=2, noise_conditioned=False)
    torch.nn.init.normal_(network.linear_out.weight)
    objective = EquilibriumMatching(network, NoSchedule(), p_uncond=0.3)
    x_0, y = torch.randn(8, 2, generator=generator()), torch.tensor([0, 1] * 4)
    objective(x_0, y, generator()).per_example.mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in objective.parameters())
    model = objective.model
    assert model.conditional and model.has_null and model.num_classes == 2 and not model.normalized
    assert (model.log_density(x_0, None, y) - model.log_density(x_0)).abs().max() > 1e-3


MISTAKES = {
    "schedule": (lambda: EquilibriumMatching(Cubic(), Cosine()), "take schedule=none"),
    "level": (lambda: EquilibriumMatching(mlp(2)), "noise_conditioned=false"),
    "numbers": (lambda: EquilibriumMatching(mlp(2, out_features=3, noise_conditioned=False)), "the shape of the data"),
    "decay": (lambda: EquilibriumMatching(Cubic(), decay_start=1.0), "decay_start"),
    "momentum": (lambda: Descent(10, 0.1, 1.0), "momentum"),
}


@pytest.mark.parametrize("make, message", MISTAKES.values(), ids=MISTAKES)
def test_what_does_not_fit_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()
