"""Tilted laws against densities integrated by SciPy, closed forms of Gaussians, and each way of sampling against another."""

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from scipy.special import logsumexp

from diffguide.evaluation.quality.distances import energy_distance
from diffguide.models.tilts import PotentialTerm, Power, Tilt
from diffguide.oracles import Empirical, GaussianMixture, HighDimensional, TiltedLaw
from diffguide.oracles.tempering import temper

LINE = dict(weights=[0.3, 0.2, 0.5], means=[[-1.0], [2.0], [0.5]], covariances=[[0.5], [1.0], [2.0]], labels=[0, 0, 1])
PLANE = dict(
    weights=[0.3, 0.2, 0.5],
    means=[[-1.0, 0.0], [1.0, 1.0], [0.5, -0.5]],
    covariances=[[[0.5, 0.2], [0.2, 0.4]], [[0.6, -0.1], [-0.1, 0.9]], [[1.0, 0.4], [0.4, 1.5]]],
    labels=[0, 0, 1],
)


def guided(scale: float) -> Tilt:
    """p(x | y)^scale p(x)^(1 - scale)."""
    return Tilt((Power(scale), Power(1 - scale, -1)))


def away(scale: float, label: int) -> Tilt:
    return Tilt((Power(scale), Power(1 - scale, label)))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def log_mixture(x: np.ndarray, law: dict, label: int | None) -> np.ndarray:
    """log p(x | label), written with SciPy."""
    index = [k for k in range(len(law["labels"])) if label in (None, law["labels"][k])]
    weights = np.array(law["weights"])[index]
    terms = []
    for k, weight in zip(index, weights / weights.sum()):
        covariance = np.array(law["covariances"][k])
        covariance = np.diag(covariance) if covariance.ndim == 1 else covariance
        terms.append(np.log(weight) + stats.multivariate_normal(law["means"][k], covariance).logpdf(x))
    return logsumexp(terms, axis=0)


def log_tilted(x: np.ndarray, law: dict, label: int, scale: float) -> np.ndarray:
    return scale * log_mixture(x, law, label) + (1 - scale) * log_mixture(x, law, None)


@pytest.mark.parametrize("scale", [-0.2, 0.0, 0.4, 1.0, 3.0, 8.0])
def test_the_density_on_the_line_integrates_to_one(scale):
    part = TiltedLaw(GaussianMixture(**LINE), guided(scale)).of(1)
    axis = np.linspace(-30, 30, 60001)
    total = integrate.simpson(np.exp(log_tilted(axis[:, None], LINE, 1, scale)), x=axis)
    x = np.linspace(-4, 5, 50)[:, None]
    expected = log_tilted(x, LINE, 1, scale) - np.log(total)
    np.testing.assert_allclose(part.log_density(torch.tensor(x)), expected, atol=1e-7)


def test_the_density_in_the_plane_integrates_to_one():
    part = TiltedLaw(GaussianMixture(**PLANE), guided(3.0)).of(0)
    axis = np.linspace(-7, 7, 701)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    values = np.exp(log_tilted(grid, PLANE, 0, 3.0)).reshape(701, 701)
    total = integrate.simpson(integrate.simpson(values, x=axis), x=axis)
    x = np.random.default_rng(0).normal(size=(50, 2))
    expected = log_tilted(x, PLANE, 0, 3.0) - np.log(total)
    np.testing.assert_allclose(part.log_density(torch.tensor(x)), expected, atol=1e-6)


@pytest.mark.parametrize("scale", [2.0, 3.0, 8.0])
def test_a_product_of_gaussians_is_a_gaussian(scale):
    """Variances 1 and 2: 1 / (scale / 1 + (1 - scale) / 2), and in three dimensions by matrices."""
    pair = GaussianMixture([1, 1], [[0.0], [0.0]], [1.0, 2.0], [0, 1])
    mean, covariance, _ = TiltedLaw(pair, away(scale, 1)).of(0).gaussian
    assert covariance.item() == pytest.approx(2 / (1 + scale)) and mean.item() == 0
    generator = np.random.default_rng(1)
    roots = generator.normal(size=(2, 3, 3))
    covariances, means = 0.1 * np.eye(3) + roots @ roots.swapaxes(1, 2), generator.normal(size=(2, 3))
    covariances[1] += 2 * covariances[0]  # wider in every direction
    law = TiltedLaw(GaussianMixture([1, 1], means, covariances, [0, 1]), away(scale, 1))
    precision = scale * np.linalg.inv(covariances[0]) + (1 - scale) * np.linalg.inv(covariances[1])
    pull = scale * np.linalg.inv(covariances[0]) @ means[0] + (1 - scale) * np.linalg.inv(covariances[1]) @ means[1]
    wanted = stats.multivariate_normal(np.linalg.solve(precision, pull), np.linalg.inv(precision))
    x, y = torch.tensor(generator.normal(size=(20, 3))), torch.zeros(20, dtype=torch.long)
    np.testing.assert_allclose(law.log_density(x, None, y), wanted.logpdf(x), rtol=1e-10)
    drawn, _ = law.sample(20000, rng(), torch.zeros(20000, dtype=torch.long))
    np.testing.assert_allclose(
        np.cov(drawn.T), wanted.cov_object.covariance, atol=5 * wanted.cov_object.covariance.max() / 141
    )


@pytest.mark.parametrize("scale", [0.4, 3.0, 8.0])
def test_samples_on_the_line_have_the_law(scale):
    """Rejection, and cells of the quadrature: both against the distribution function, n = 4000."""
    part = TiltedLaw(GaussianMixture(**LINE), guided(scale)).of(0)
    axis = np.linspace(-15, 15, 30001)
    mass = integrate.cumulative_simpson(np.exp(log_tilted(axis[:, None], LINE, 0, scale)), x=axis, initial=0)
    assert part.bounded()
    for x in (part.sample(4000, rng()), part.grid().sample(4000, rng(1))):
        assert stats.kstest(x[:, 0].numpy(), lambda v: np.interp(v, axis, mass / mass[-1])).pvalue > 0.01


def test_three_laws_at_once():
    """A product of two classes over the whole, as compose names it, sampled by rejection and by the grid."""
    law = GaussianMixture([1, 1, 1], [[0.0, 0.5], [0.5, 0.0], [-0.5, -0.5]], 0.5, [0, 1, 2])
    part = TiltedLaw(law, Tilt((Power(1.5, 0), Power(1.5, 1), Power(-2.0, -1)))).of(-1)
    assert part.bounded()
    first, second = part.sample(1500, rng()), part.grid().sample(1500, rng(1))
    floor = energy_distance(part.grid().sample(1500, rng(2)), second)
    assert energy_distance(first, second) < 2.5 * floor


def six_dimensions() -> GaussianMixture:
    generator = np.random.default_rng(2)
    roots = 0.4 * generator.normal(size=(4, 6, 6))
    covariances = 0.3 * np.eye(6) + roots @ roots.swapaxes(1, 2)
    return GaussianMixture([1, 2, 2, 1], 0.8 * generator.normal(size=(4, 6)), covariances, [0, 0, 1, 1])


def test_tempering_reaches_a_gaussian():
    """Six dimensions, from N(0, I) to a law three deviations away: mean and covariance, n = 3000."""
    generator = np.random.default_rng(3)
    root = generator.normal(size=(6, 6))
    covariance, mean = 0.05 * np.eye(6) + root @ root.T / 10, generator.normal(size=6) * 3
    precision, centre = torch.tensor(np.linalg.inv(covariance)), torch.tensor(mean)

    def log_p(x):
        return -0.5 * ((x - centre) @ precision * (x - centre)).sum(1)

    start = torch.randn(3000, 6, generator=rng(), dtype=torch.float64)
    x = temper(lambda x: -0.5 * x.square().sum(1), log_p, start, rng(1))
    deviation = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose((x.numpy().mean(0) - mean) / deviation, 0, atol=0.1)
    np.testing.assert_allclose(
        np.cov(x.T) / np.outer(deviation, deviation), covariance / np.outer(deviation, deviation), atol=0.12
    )


@pytest.mark.parametrize("scale", [2.0, 4.0])
def test_tempering_mixes_as_rejection_draws(scale):
    """A mixture in six dimensions with overlapping classes: the energy distance between the two is that of one of them."""
    part = TiltedLaw(six_dimensions(), guided(scale)).of(0)
    exact = [part.sample(1500, rng(seed)) for seed in range(4)]
    x = temper(part.log_proposal, part.log_product, part.propose(2000, rng(5)), rng(6))[:1500]
    floors = [energy_distance(exact[0], other) for other in exact[1:]]
    assert energy_distance(x, exact[0]) < 2 * max(floors)
    assert len(x.unique(dim=0)) > 1450  # copies have moved apart


def test_many_dimensions_without_a_bound():
    """Away from another class with two components, which no rejection can do: the moments of a chain of another kind."""
    law = six_dimensions()
    part = TiltedLaw(law, Tilt((Power(1.0), Power(0.3, 1)))).of(0)
    assert not part.bounded()
    x = part.sample(1500, rng())
    proposals = part.propose(50000, rng(1))  # importance sampling
    weights = (part.log_product(proposals) - part.log_proposal(proposals)).softmax(0)
    assert 1 / weights.square().sum() > 10000
    mean = weights @ proposals
    variance = weights @ (proposals - mean).square()
    assert ((x.mean(0) - mean).abs() / variance.sqrt()).max() < 0.12
    assert (x.var(0) / variance - 1).abs().max() < 0.15


def test_laws_that_cannot_be_normalised_are_refused():
    narrow_and_wide = GaussianMixture([1, 1], [[0.0], [0.0]], [1.0, 2.0], [0, 1])
    assert TiltedLaw(narrow_and_wide, guided(-0.9)).of(0).normalized
    with pytest.raises(ValueError, match=r"p\(x \| 0\)\^-1.5.*not normalisable.*does not fall"):
        TiltedLaw(narrow_and_wide, guided(-1.5)).of(0)
    assert TiltedLaw(narrow_and_wide, guided(-5.0)).of(1).normalized  # as wide as the whole
    with pytest.raises(ValueError, match="its precision has the eigenvalue"):
        TiltedLaw(narrow_and_wide, away(-1.0, 1)).of(0)
    crossed = GaussianMixture([1, 1], [[0.0] * 3] * 2, [[1.0, 1.0, 4.0], [2.0, 2.0, 1.0]], [0, 1])
    with pytest.raises(ValueError, match="not normalisable"):
        TiltedLaw(crossed, away(2.0, 0)).of(1)
    thin = GaussianMixture([1, 1, 1], [[0.0] * 3] * 3, [[1.0, 1.0, 4.0], [1.0, 2.0, 2.0], [2.0, 2.0, 1.0]], [0, 0, 1])
    with pytest.raises(ValueError, match="not normalisable.* along "):
        TiltedLaw(thin, away(4.0, 1)).of(0)


def test_a_potential_tilts_too():
    """exp(b x) moves a Gaussian by b times its variance."""

    def lean(x, y):
        return 1.5 * x[:, 0]

    one = GaussianMixture([1.0], [[0.5, 0.0]], [[0.4, 1.0]], [0])
    part = TiltedLaw(one, Tilt(potentials=(PotentialTerm(2.0, lean),))).of(0)
    x = part.sample(4000, rng())
    np.testing.assert_allclose(x.mean(0), [0.5 + 3.0 * 0.4, 0.0], atol=0.05)
    np.testing.assert_allclose(x.var(0), [0.4, 1.0], rtol=0.1)
    z = torch.tensor([[1.0, 0.2]], dtype=torch.float64)
    wanted = stats.multivariate_normal([1.7, 0.0], np.diag([0.4, 1.0])).logpdf(z)
    assert part.log_density(z).item() == pytest.approx(wanted.item(), abs=1e-6)


def test_points_and_labels():
    """A data set of points: classes without common points are not changed; rows follow their labels."""
    data = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.5, -0.5]])
    law = TiltedLaw(Empirical(data, torch.tensor([0, 1, 1])), guided(4.0))
    x, y = law.sample(60, rng(), torch.tensor([0, 1, -1] * 20))
    assert y.tolist() == [0, 1, -1] * 20 and bool((x[y == 0] == data[0].double()).all())
    assert bool((x[y == 1][:, 0] > 0).all()) and len(x[y == -1].unique(dim=0)) == 3
    far = TiltedLaw(HighDimensional(dimensions=16, classes=4), guided(3.0))
    assert far.sample(8, rng(), torch.arange(8) % 4)[0].shape == (8, 16)
    with pytest.raises(ValueError, match="clean data"):
        law.log_density(x, torch.tensor(0.5))


def test_tilts_are_multiplied_and_described():
    tilt = guided(3.0)
    assert tilt.describe() == "p(x | y)^3 p(x)^-2"
    assert tilt.given(-1) == Tilt((Power(1.0, -1),)) and tilt.given(2).powers == (Power(3.0, 2), Power(-2.0, -1))
    assert tilt.raised(2.0).times(Tilt((Power(4.0, -1),))).powers == (Power(6.0),)
    of_class = PotentialTerm(1.0, lambda x, y: x[:, 0], True)
    assert Tilt(potentials=(of_class,)).given(-1).potentials == ()
    assert "<lambda>" in Tilt(potentials=(of_class,)).describe()
