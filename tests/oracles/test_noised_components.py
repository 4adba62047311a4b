"""Many components in few dimensions at one noise level: the same figures as with one level per point, in few passes."""

import numpy as np
import pytest
import torch
from exact_models import SCHEDULES, points, time_of
from test_oracles import Work

from diffguide.oracles import GaussianMixture
from diffguide.oracles.mixture import SMALL_DIMENSION


def mixture(dimension: int, components: int = 40) -> GaussianMixture:
    """Thin components of all directions, in three classes, one component without weight."""
    rng = np.random.default_rng(dimension)
    roots = rng.normal(size=(components, dimension, dimension)) * np.geomspace(0.01, 1, dimension)[:, None]
    covariances = roots @ roots.swapaxes(1, 2) + 1e-6 * np.eye(dimension)
    weights = np.r_[0.0, rng.random(components - 1) + 0.1]
    means, labels = rng.normal(size=(components, dimension)), np.arange(components) % 3
    return GaussianMixture(weights, means, covariances, labels, SCHEDULES["edm"])


@pytest.mark.parametrize("dimension", range(1, SMALL_DIMENSION + 2))
@pytest.mark.parametrize("y", [None, [0, 1, 2, -1, 1, 0, 2, -1, 0, 0, 1]], ids=["none", "classes"])
def test_one_level_gives_the_figures_of_one_level_per_point(dimension, y):
    """Also over several blocks, whose arrays are used again, and with gradients, whose arrays are not."""
    model, y = mixture(dimension), None if y is None else torch.tensor(y)
    model.block = 4 * 40 * dimension  # 4 points a block
    for time in (0.05, 0.5, 0.95):
        x = points(11, dimension) * (1 + float(SCHEDULES["edm"].alpha_sigma(time_of(time))[1]))
        t = time_of(time)
        rows = t.expand(11)
        for one, other in zip(model(x, t, y), model(x, rows, y)):
            np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-12)
        np.testing.assert_allclose(model.log_density(x, t, y), model.log_density(x, rows, y), rtol=1e-12, atol=1e-11)
        np.testing.assert_allclose(model.log_prob(x, t), model.log_prob(x, rows), rtol=1e-10, atol=1e-11)
        leaf = x.clone().requires_grad_()
        pulls = [torch.autograd.grad(model(leaf, level, y).eps.sin().sum(), leaf)[0] for level in (t, rows)]
        np.testing.assert_allclose(*pulls, rtol=1e-8, atol=1e-8 * float(pulls[0].abs().max()))


def test_the_transforms_of_torch_func_reach_the_points():
    model, t, x = mixture(2), time_of(0.4), points(3, 2)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda one: model(one[None], t).eps[0]))(x)
    leaf = x.clone().requires_grad_()
    eps = model(leaf, t).eps
    expected = torch.stack([torch.autograd.grad(eps[:, d].sum(), leaf, retain_graph=True)[0] for d in range(2)], dim=1)
    torch.testing.assert_close(jacobian, expected)


def test_a_call_makes_few_passes_and_bounded_arrays():
    """Two numbers per pair of point and component for w, and one each for two squares, log-joint and softmax."""
    model, x = mixture(2, components=1000), points(2000, 2)
    for y in (None, torch.arange(2000) % 3):
        with Work() as work:
            model(x, time_of(0.3), y)
        passes = 5 if y is None else 6  # and the priors of the labels
        assert work.numbers < (passes + 0.5) * 2000 * 1000 and work.largest <= model.block
