"""p(x | z_0) equals explicit densities."""

import math

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import norm

from diffguide.models.decoders import Discretized, Gaussian


def by_hand(x: np.ndarray, eps: np.ndarray, log_snr: float, values: int) -> np.ndarray:
    """log p(x | z_0) with N(z_0; alpha v, sigma^2) for every value v, variance preserving."""
    alpha, sigma = (1 / (1 + math.exp(-log_snr))) ** 0.5, (1 / (1 + math.exp(log_snr))) ** 0.5
    z, grid = alpha * x + sigma * eps, np.linspace(-1, 1, values)
    each = norm.logpdf(z, alpha * x, sigma) - logsumexp(norm.logpdf(z[..., None], alpha * grid, sigma), axis=-1)
    return each.reshape(len(x), -1).sum(1)


@pytest.mark.parametrize("log_snr", [-6.0, 2.0, 5.0, 9.0, 13.3, 30.0])
@pytest.mark.parametrize("values", [2, 17, 256])
def test_discretised_is_bayes_over_the_values(values, log_snr):
    rng = np.random.default_rng(0)
    x, eps = np.linspace(-1, 1, values)[rng.integers(values, size=(6, 1, 4, 4))], rng.normal(size=(6, 1, 4, 4))
    found = Discretized(values).log_prob(
        torch.from_numpy(x), torch.from_numpy(eps), torch.tensor(log_snr, dtype=torch.float64)
    )
    np.testing.assert_allclose(found, by_hand(x, eps, log_snr, values), rtol=1e-6, atol=1e-9)


def test_far_values_are_negligible():
    """At both ends of the range, with the sum truncated and not, in float32 as in training."""
    grid = torch.linspace(-1, 1, 256).reshape(-1, 1)
    for log_snr in (3.0, 8.0, 14.0):
        eps = torch.linspace(-6, 6, 256).reshape(-1, 1)
        found = Discretized(256).log_prob(grid, eps, torch.tensor(log_snr, dtype=torch.float64))
        expected = by_hand(np.linspace(-1, 1, 256)[:, None], eps.double().numpy(), log_snr, 256)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_gradients_reach_the_log_snr():
    x, eps = torch.tensor([[-1.0, 0.125, 1.0]], dtype=torch.float64), torch.tensor([[0.3, -1.4, 2.0]]).double()
    log_snr = torch.tensor(4.0, dtype=torch.float64, requires_grad=True)
    for decoder in (Discretized(17), Gaussian()):
        assert torch.autograd.gradcheck(lambda level: decoder.log_prob(x, eps, level), log_snr)


def test_gaussian_is_the_density_of_x_given_z_0():
    x, eps, log_snr = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64), 2.5
    level = math.exp(-log_snr / 2)
    expected = norm.logpdf(x.numpy(), (x + level * eps).numpy(), level).sum(1)
    found = Gaussian().log_prob(x, eps, torch.tensor(log_snr, dtype=torch.float64))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_data_with_other_quantization_levels_are_refused():
    Discretized(17).check(torch.arange(17) / 8 - 1)
    Discretized(256).check(torch.arange(256).float() / 127.5 - 1)
    Gaussian().check(torch.randn(9))
    for x in (torch.tensor([0.1]), torch.tensor([1.125])):
        with pytest.raises(ValueError, match="17 .* dataset.quantization_levels"):
            Discretized(17).check(x)
    with pytest.raises(ValueError, match="got 0.*objective/decoder=gaussian"):
        Discretized(0)
