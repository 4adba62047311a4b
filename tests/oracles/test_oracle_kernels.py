"""Exact reverse steps and exact samples of Gaussian mixtures."""

import numpy as np
import pytest
import torch
from closed_forms import Mixture, gaussian, two_classes
from exact_models import SCHEDULES, oracle, points, three_dimensional, time_of


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_the_reverse_kernel_of_a_gaussian_conditions_the_joint(schedule):
    """The joint Gaussian of (x_s, x_t)."""
    s_0, mu, t, s = two_classes().covariances[0], np.array([0.4, -1.0]), time_of(0.7), time_of(0.4)
    (a_t, s_t), (a_s, s_s) = ([float(a) for a in schedule.alpha_sigma(u)] for u in (t, s))
    c_s, c_t = a_s**2 * s_0 + s_s**2 * np.eye(2), a_t**2 * s_0 + s_t**2 * np.eye(2)
    x, gain = points(3, 2), a_t / a_s * c_s @ np.linalg.inv(c_t)
    kernel = oracle(gaussian(mu, s_0), schedule).reverse_kernel(x, t, s)
    np.testing.assert_allclose(kernel.means[:, 0], a_s * mu + (x.numpy() - a_t * mu) @ gain.T, atol=1e-10)
    np.testing.assert_allclose(kernel.covariances[0, 0], c_s - a_t / a_s * gain @ c_s, atol=1e-10)


@pytest.mark.parametrize("y", [None, 0, 1])
def test_the_reverse_kernel_maps_one_marginal_to_the_next(y):
    """integral p_t(x_t) p(x_s | x_t) dx_t = p_s(x_s), pointwise by quadrature in one dimension."""
    law = Mixture([0.5, 0.2, 0.3], [[1.0], [-0.5], [-1.8]], [[[0.3]], [[0.05]], [[0.2]]], [0, 0, 1])
    model, t, s = oracle(law, SCHEDULES["flow"]), time_of(0.6), time_of(0.5)
    grid = torch.linspace(-8, 8, 4001, dtype=torch.float64)[:, None]
    label = None if y is None else torch.full((4001,), y)
    kernel = model.reverse_kernel(grid, t, s, label)
    places = torch.linspace(-3, 3, 13, dtype=torch.float64)
    deviation = kernel.covariances[..., 0, 0].sqrt()[..., None]
    inside = torch.distributions.Normal(kernel.means, deviation).log_prob(places).exp()  # [B, K, 13]
    density = (kernel.weights[..., None] * inside).sum(1) * model.log_density(grid, t, label).exp()[:, None]
    scale = tuple(float(a) for a in model.schedule.alpha_sigma(s))
    expected = np.exp(law.log_density(places[:, None].numpy(), *scale, None if y is None else np.full(13, y)))
    np.testing.assert_allclose(density.sum(0) * (16 / 4000), expected, atol=1e-12)


def test_reverse_kernel_to_clean_data_has_the_posterior_moments():
    model, t, x, y = oracle(three_dimensional()), time_of(0.5), points(5, 3), torch.tensor([-1, 0, 1, 2, 2])
    r, m, c = model.reverse_kernel(x, t, None, y)
    mean = torch.einsum("bk,bkd->bd", r, m)
    torch.testing.assert_close(mean, model(x, t, y).x_0)
    second = torch.einsum("bk,bkde->bde", r, c + m[..., None] * m[..., None, :])
    torch.testing.assert_close(second - mean[:, :, None] * mean[:, None], model.covariance(x, t, y))


def test_a_reverse_step_is_a_draw_from_the_kernel():
    """`choice` selects components in proportion to their weights; z is multiplied by a root of the covariance."""
    model, t, s = oracle(three_dimensional()), time_of(0.5), time_of(0.45)
    x = points(1, 3).expand(4000, 3)
    choice = (torch.arange(4000) + 0.5).double() / 4000
    kernel = model.reverse_kernel(x[:1], t, s)
    means = model.sample_reverse(x, t, s, None, choice, torch.zeros(4000, 3))
    distance = (means[:, None] - kernel.means[0]).norm(dim=2)
    assert distance.min(1).values.max() < 1e-12
    shares = distance.argmin(1).bincount(minlength=5) / 4000
    torch.testing.assert_close(shares.double(), kernel.weights[0], rtol=0, atol=3e-4)
    k = int(kernel.weights[0].argmax())
    inside = float(kernel.weights[0, :k].sum() + kernel.weights[0, k] / 2)
    ends = model.sample_reverse(x[:3], t, s, None, torch.full((3,), inside), torch.eye(3))
    root = ends - kernel.means[0, k]
    torch.testing.assert_close(root.mT @ root, kernel.covariances[0, k])


def test_a_reverse_step_to_a_later_time_is_refused():
    with pytest.raises(ValueError, match="s must be below t"):
        oracle(two_classes()).reverse_kernel(points(2, 2), time_of(0.4), time_of(0.4))


def test_samples_have_the_requested_classes():
    model, y = oracle(three_dimensional()), torch.tensor([0, 1, 2, -1] * 5000)
    x, labels = model.sample(20000, torch.Generator().manual_seed(1), y)
    assert (labels[y >= 0] == y[y >= 0]).all() and x.dtype == torch.float64
    assert (labels[y == -1] == 2).double().mean() == pytest.approx(0.6, abs=0.03)  # 5000 draws: 4 standard errors
    np.testing.assert_allclose(x[labels == 1].mean(0), three_dimensional().means[3], atol=0.05)
    again = model.sample(20000, torch.Generator().manual_seed(1), y)[0]
    assert torch.equal(x, again)
