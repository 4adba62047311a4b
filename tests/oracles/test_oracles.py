"""Closed forms of Gaussian mixtures equal NumPy, quadrature, automatic differentiation and 50-digit results."""

import mpmath
import numpy as np
import pytest
import torch
from closed_forms import Mixture, gaussian, two_classes
from exact_models import SCHEDULES, oracle, points, three_dimensional, time_of
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffguide.oracles import GaussianMixture
from diffguide.schedules import EDM, Flow

pytestmark = pytest.mark.filterwarnings("ignore:divide by zero")  # by NumPy for a weight of 0
CONDITIONS = {"none": None, "classes": [0, 1, 1, 0, 1, 0], "mixed": [-1, 0, 1, -1, 1, 0], "dropped": [-1] * 6}


@pytest.mark.parametrize("y", CONDITIONS.values(), ids=CONDITIONS)
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("law", [two_classes(), three_dimensional()], ids=["2-D", "3-D"])
def test_moments_and_density_are_those_of_numpy(law, schedule, y):
    """At one level for the batch and at one per row."""
    model, y = oracle(law, schedule), None if y is None else torch.tensor(y)
    for t in (time_of(0.05), time_of(0.5), time_of(0.95), torch.linspace(0.02, 0.98, 6, dtype=torch.float64)):
        alpha, sigma = (part.numpy() for part in schedule.alpha_sigma(t))
        x = points(6, law.means.shape[1]) * float(np.max(alpha + sigma))
        facts = (x.numpy(), alpha, sigma, None if y is None else y.numpy())
        score = law.score(*facts)
        x_0, eps = model(x, t, y)
        np.testing.assert_allclose(x_0, law.mean(*facts), rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(eps, -np.reshape(sigma, (-1, 1)) * score, rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(model.score(x, t, y), score, rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(model.log_density(x, t, y), law.log_density(*facts), rtol=1e-10, atol=1e-9)


KINDS = {  # forms of covariances, and the matrices
    "a number": (0.3, [0.3 * np.eye(2)] * 3),
    "one each": ([0.3, 0.1, 0.2], [0.3 * np.eye(2), 0.1 * np.eye(2), 0.2 * np.eye(2)]),
    "diagonals": ([[0.3, 0.1], [0.2, 0.5], [0.1, 0.1]], [np.diag([0.3, 0.1]), np.diag([0.2, 0.5]), 0.1 * np.eye(2)]),
    "one diagonal": ([[0.3, 0.1]], [np.diag([0.3, 0.1])] * 3),
    "one matrix": ([[[0.3, 0.1], [0.1, 0.2]]], [[[0.3, 0.1], [0.1, 0.2]]] * 3),
}


@pytest.mark.parametrize("stated, matrices", KINDS.values(), ids=KINDS)
def test_every_form_of_covariances_is_the_same_mixture(stated, matrices):
    law = Mixture([1, 2, 1], [[1.0, 0.5], [-0.5, 1.2], [-0.8, -0.9]], matrices, [0, 1, 1])
    some, full = (GaussianMixture([1, 2, 1], law.means, c, [0, 1, 1], SCHEDULES["flow"]) for c in (stated, matrices))
    x, y, z = points(7, 2), torch.tensor([-1, 0, 1, 1, 0, -1, 0]), points(7, 2, seed=1)
    for t, s in (
        (time_of(0.4), time_of(0.3)),
        (torch.linspace(0.3, 0.9, 7, dtype=torch.float64), torch.linspace(0.1, 0.8, 7, dtype=torch.float64)),
    ):
        alpha, sigma = (part.numpy() for part in some.schedule.alpha_sigma(t))
        np.testing.assert_allclose(some(x, t, y).x_0, law.mean(x.numpy(), alpha, sigma, y.numpy()), atol=1e-12)
        np.testing.assert_allclose(some.score(x, t, y), law.score(x.numpy(), alpha, sigma, y.numpy()), atol=1e-11)
        np.testing.assert_allclose(some.covariance(x, t, y), full.covariance(x, t, y), atol=1e-12)
        for one, other in zip(some.reverse_kernel(x, t, s, y), full.reverse_kernel(x, t, s, y)):
            np.testing.assert_allclose(one.expand_as(other), other, atol=1e-12)
        step = some.sample_reverse(x, t, s, y, torch.zeros(7), 0 * z)  # the mean of the first possible component
        kernel = full.reverse_kernel(x, t, s, y)
        k = (kernel.weights > 0).int().argmax(1)
        np.testing.assert_allclose(step, kernel.means[torch.arange(7), k], atol=1e-12)
    draws, labels = some.sample(20000, torch.Generator().manual_seed(0))
    for label in (0, 1):
        inside = law.labels == label
        share = law.weights * inside / law.weights[inside].sum()
        mean = share @ law.means
        offset = law.means - mean
        covariance = np.einsum("k,kde->de", share, law.covariances) + (offset.T * share) @ offset
        np.testing.assert_allclose(draws[labels == label].mean(0), mean, atol=0.04)
        np.testing.assert_allclose(np.cov(draws[labels == label].T), covariance, atol=0.05)


class Work(TorchDispatchMode):
    """Counts operations and the numbers they create, without views; `largest` is the largest result."""

    def __init__(self):
        super().__init__()
        self.operations, self.numbers, self.largest = 0, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        self.operations += 1
        for tensor, result in zip(tree_leaves(found), function._schema.returns):
            is_view = result.alias_info is not None and not result.alias_info.is_write
            if isinstance(tensor, torch.Tensor) and not is_view:
                self.numbers += tensor.numel()
                self.largest = max(self.largest, tensor.numel())
        return found


def test_a_shared_matrix_is_the_same_as_one_per_component():
    law, x, t = three_dimensional(), points(4, 3), time_of(0.5)
    matrix = law.covariances[:1]  # whose eigenvectors are not a symmetric matrix
    some, full = (
        GaussianMixture(law.weights, law.means, c, law.labels, SCHEDULES["flow"]) for c in (matrix, matrix.repeat(5, 0))
    )
    np.testing.assert_allclose(some(x, t).x_0, full(x, t).x_0, atol=1e-12)
    np.testing.assert_allclose(some.covariance(x, t), full.covariance(x, t), atol=1e-12)
    kernels = (model.reverse_kernel(x, t, None) for model in (some, full))
    for one, other in zip(*kernels):
        np.testing.assert_allclose(one.expand_as(other), other, atol=1e-12)
    draws = some.sample(40000, torch.Generator().manual_seed(0), torch.full((40000,), 1))[0]  # one component
    np.testing.assert_allclose(np.cov(draws.T), matrix[0], atol=0.03 * float(np.trace(matrix[0])))


@pytest.mark.parametrize("sigma", [0.002, 0.05])
def test_closed_forms_are_precise_at_low_noise(sigma):
    """Compared with 50 digits: thin, close components at noise level 0.002, points between them."""
    mpmath.mp.dps = 50
    means = [[0.7, -0.3], [0.7007, -0.3], [0.7, -0.302], [-1.0, 0.4]]
    covariances = [
        [[1e-6, 5e-7], [5e-7, 2e-6]],
        [[4e-6, 0], [0, 1e-6]],
        [[1e-3, 9e-4], [9e-4, 1e-3]],
        [[0.1, 0], [0, 0.1]],
    ]
    schedule = EDM(14.0, -8.0)
    t = schedule.t_of(-2 * np.log(sigma))
    alpha, sigma_t = map(float, schedule.alpha_sigma(t))
    model = GaussianMixture([1.0, 2.0, 1.0, 3.0], means, covariances, [0, 1, 0, 1], schedule)
    x = torch.tensor(means[0]).double() + sigma * points(5, 2)
    x_0, eps = model(x, t)
    for row in range(len(x)):
        place, terms = mpmath.matrix(x[row].tolist()), []
        for weight, mean, covariance in zip([1, 2, 1, 3], means, covariances):
            s, mu = mpmath.matrix(covariance), mpmath.matrix(mean)
            c = mpmath.mpf(alpha) ** 2 * s + mpmath.mpf(sigma_t) ** 2 * mpmath.eye(2)
            pull = c**-1 * (place - alpha * mu)
            log_density = (
                -((place - alpha * mu).T * pull)[0] / 2 - mpmath.log(mpmath.det(c)) / 2 - mpmath.log(2 * mpmath.pi)
            )
            terms.append((mpmath.log(mpmath.mpf(weight) / 7) + log_density, mu + alpha * s * pull, sigma_t * pull))
        mass = [mpmath.exp(term[0]) for term in terms]
        total = sum(mass)
        mean, noise = (
            sum((m * term[part] for m, term in zip(mass, terms)), mpmath.zeros(2, 1)) / total for part in (1, 2)
        )
        assert max(abs(x_0[row, d] - float(mean[d])) for d in range(2)) < 1e-13
        assert max(abs(eps[row, d] - float(noise[d])) for d in range(2)) < 1e-11
        assert abs(model.log_density(x, t)[row] - float(mpmath.log(total))) < 1e-10


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_tweedie_first_and_second_order(schedule):
    """x_0 = (x_t + sigma^2 grad log p) / alpha, Cov = (sigma^2 / alpha^2)(I + sigma^2 Hess log p), by autograd."""
    model, t = oracle(three_dimensional(), schedule), time_of(0.45)
    alpha, sigma = schedule.alpha_sigma(t)
    x, y = points(4, 3) * sigma, torch.tensor([-1, 0, 1, 2])
    for row in range(4):
        one, label = x[row], y[row : row + 1]
        log_density = lambda value: model.log_density(value[None], t, label)[0]  # noqa: E731
        gradient = torch.autograd.functional.jacobian(log_density, one)
        hessian = torch.autograd.functional.hessian(log_density, one)
        prediction, covariance = model(one[None], t, label), model.covariance(one[None], t, label)[0]
        torch.testing.assert_close(prediction.x_0[0], (one + sigma**2 * gradient) / alpha, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(prediction.eps[0], -sigma * gradient, rtol=1e-9, atol=1e-10)
        expected = (sigma / alpha) ** 2 * (torch.eye(3) + sigma**2 * hessian)
        torch.testing.assert_close(covariance, expected, rtol=1e-8, atol=1e-9)
        jacobian = torch.autograd.functional.jacobian(lambda value: model(value[None], t, label).x_0[0], one)
        torch.testing.assert_close(jacobian, alpha / sigma**2 * covariance, rtol=1e-8, atol=1e-9)


def test_the_class_posterior_obeys_bayes():
    """log p(y | x) = log p(x | y) + log p(y) - log p(x); and sum_y p(y | x) score(x | y) = score(x)."""
    law, t, x = three_dimensional(), time_of(0.6), points(6, 3)
    model = oracle(law)
    alpha, sigma = (float(a) for a in model.schedule.alpha_sigma(t))
    prior = np.log([law.weights[law.labels == label].sum() for label in range(3)])
    joint = np.stack([law.log_density(x.numpy(), alpha, sigma, np.full(6, label)) for label in range(3)], 1) + prior
    expected = joint - law.log_density(x.numpy(), alpha, sigma)[:, None]
    np.testing.assert_allclose(model.log_prob(x, t), expected, atol=1e-11)
    scores = torch.stack([model.score(x, t, torch.full((6,), label)) for label in range(3)], dim=1)
    torch.testing.assert_close((model.log_prob(x, t).exp()[..., None] * scores).sum(1), model.score(x, t))
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(model.log_prob(x, t)[:, 1].sum(), x)
    torch.testing.assert_close(gradient, scores[:, 1] - model.score(x, t).detach())


def test_far_classes_keep_their_log_probability():
    model = GaussianMixture([1.0, 1.0], [[-50.0], [50.0]], 0.01, [0, 1], SCHEDULES["edm"])
    x, t = torch.tensor([[-50.0], [49.0]], dtype=torch.float64), time_of(0.0)
    v = 0.01 + float(model.schedule.alpha_sigma(t)[1]) ** 2
    expected = [[0, -(100**2) / (2 * v)], [-(99**2 - 1) / (2 * v), 0]]
    np.testing.assert_allclose(model.log_prob(x, t), expected, rtol=1e-12)


def test_the_noise_level_posterior_obeys_bayes():
    law, x = two_classes(), points(5, 2)
    times, prior = torch.tensor([0.1, 0.4, 0.8]).double(), torch.tensor([0.2, 0.5, 0.3]).double()
    model = oracle(law, SCHEDULES["cosine"])
    scales = [tuple(float(a) for a in model.schedule.alpha_sigma(t)) for t in times]
    mass = np.stack([p * np.exp(law.log_density(x.numpy(), *a)) for p, a in zip(prior.numpy(), scales)], axis=1)
    np.testing.assert_allclose(
        model.level_log_prob(x, times, prior).exp(), mass / mass.sum(1, keepdims=True), atol=1e-12
    )
    white = oracle(gaussian([0.0, 0.0], np.eye(2)), SCHEDULES["cosine"])  # every p_t is N(0, I)
    np.testing.assert_allclose(white.level_log_prob(x, times, prior), prior.log().expand(5, 3), atol=1e-12)
    np.testing.assert_allclose(white.level_log_prob(x, times), np.full((5, 3), -np.log(3)), atol=1e-12)


@pytest.mark.parametrize("y", [None, 0, 1])
def test_densities_integrate_to_one(y):
    """Also the clean one (t None)."""
    line = torch.linspace(-5, 5, 201, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line)
    model, label = oracle(two_classes()), None if y is None else torch.full((len(grid),), y)
    for t in (None, time_of(0.3)):
        assert float(model.log_density(grid, t, label).exp().sum() * 0.05**2) == pytest.approx(1, abs=1e-6)


def test_results_have_the_dtype_of_x():
    model, t, x = oracle(two_classes()), time_of(0.0), points(5, 2)
    for dtype, answer in ((torch.float64,) * 2, (torch.float32,) * 2, (torch.bfloat16, torch.float32)):
        asked = x.to(dtype)
        exact = model(asked.double(), t)
        for field, expected in zip(model(asked, t), exact):
            assert field.dtype == answer and torch.equal(field, expected.to(answer))
        assert model.log_density(asked, t).dtype == model.covariance(asked, t).dtype == answer


def test_every_tensor_moves_to_the_device():
    """To the meta device, where an operation that mixes devices fails."""
    for law in (
        oracle(two_classes()).to("meta"),
        GaussianMixture([1, 1], [[0, 0], [1, 1]], 0.1, [0, 1], SCHEDULES["cosine"]).to("meta"),
    ):
        x, y = torch.empty(3, 2, device="meta"), torch.zeros(3, dtype=torch.long, device="meta")
        for t in (time_of(0.5), torch.full((3,), 0.5, dtype=torch.float64, device="meta")):
            answers = [*law(x, t, y), law.log_density(x, t, y), law.log_prob(x, t), law.covariance(x, t, y)]
            assert {answer.device.type for answer in answers} == {"meta"}
        step = law.sample_reverse(x, time_of(0.5), time_of(0.4), y, x[:, 0], x)
        assert step.device.type == law.reverse_kernel(x, time_of(0.5), None).means.device.type == "meta"


def test_results_do_not_depend_on_the_blocks_of_rows(monkeypatch):
    model, x, y = oracle(three_dimensional()), points(11, 3), torch.arange(11) % 4 - 1
    t, s = torch.linspace(0.2, 0.8, 11, dtype=torch.float64), torch.linspace(0.1, 0.7, 11, dtype=torch.float64)
    asked = lambda: [  # noqa: E731
        *model(x, t, y), model.log_density(x, t, y), model.log_prob(x, t), model.covariance(x, t, y),
        *model.reverse_kernel(x, t, s, y), model.sample_reverse(x, t, s, y, t, x), *model(x, time_of(0.5), y),
    ]  # fmt: skip
    whole = asked()
    monkeypatch.setattr(GaussianMixture, "block", 32)
    for one, other in zip(asked(), whole):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_predictions_at_pure_noise_are_the_prior():
    law = two_classes()
    model, x, y = oracle(law, Flow(14.0, -np.inf)), points(3, 2), torch.tensor([-1, 0, 1])
    x_0, eps = model(x, time_of(1.0), y)
    expected = [law.weights @ law.means, (5 * law.means[0] + 2 * law.means[1]) / 7, law.means[2]]
    np.testing.assert_allclose(x_0, expected, atol=1e-12)
    np.testing.assert_allclose(eps, x, atol=1e-12)


def test_the_cost_is_linear_in_the_dimension():
    """3072 dimensions with one likely component per point."""
    means = torch.randn(20, 3072, generator=torch.Generator().manual_seed(0)).double()
    model = GaussianMixture(torch.ones(20), means, 0.25, torch.arange(20), SCHEDULES["cosine"])
    t, y = time_of(0.5), torch.arange(16)
    alpha, sigma = model.schedule.alpha_sigma(t)
    x, v = alpha * means[:16] + sigma * points(16, 3072), 0.25 * alpha**2 + sigma**2
    with Work() as work:
        x_0, eps = model(x, t, y)
    assert work.largest <= 20 * 16 * 3072  # no matrix of 3072 x 3072
    torch.testing.assert_close(eps, sigma / v * (x - alpha * means[:16]), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(x_0, means[:16] + alpha * 0.25 / v * (x - alpha * means[:16]), rtol=1e-11, atol=1e-11)


def test_the_cost_is_linear_in_pairs_of_point_and_component():
    """At most a hundred numbers per pair, in fewer operations than components."""
    components, rng = 1000, torch.Generator().manual_seed(0)
    root = 0.2 * torch.randn(components, 2, 2, generator=rng).double()
    covariances, labels = root @ root.mT + 1e-4 * torch.eye(2), torch.arange(components) % 4
    model = GaussianMixture(torch.ones(components), points(components, 2), covariances, labels, SCHEDULES["edm"])
    with Work() as work:
        model(points(256, 2), time_of(0.3))
    assert work.numbers < 100 * 256 * components and work.operations < components
