"""Inverse problems with a covariance of x_0 given x_t: exact posteriors of Gaussians, and the formulas in NumPy."""

import numpy as np
import pytest
import torch
from affine import terminal_law
from closed_forms import gaussian
from exact_models import oracle
from networks import batch, lively, unet
from potential_laws import COSINE, EVERYWHERE, VE, Given, White, points

from diffguide.guidance.potentials import JFPS, MMPS, TMPD, Deblur, Inpaint, LinearProblem, PiGDM, SuperResolution
from diffguide.guidance.potentials.covariances import solve_conjugate
from diffguide.guidance.potentials.pictures import Box
from diffguide.models.parameterizations import V
from diffguide.models.preconditioned import Preconditioned
from diffguide.samplers import Heun
from diffguide.samplers.grids import UniformLogSNR

NOISE, SIZE = 0.3, 5
rng = np.random.default_rng(0)
MEAN = rng.standard_normal(SIZE)
ROOT = rng.standard_normal((SIZE, SIZE))
COVARIANCE = ROOT @ ROOT.T / 3 + 0.2 * np.eye(SIZE)
A = rng.standard_normal((3, SIZE))
TIMES = (0.05, 0.4, 0.9)


class Matrix(LinearProblem):
    """y = A x_0 + s z for vectors, A any matrix."""

    def __init__(self, a, clean, noise=NOISE):
        self.a = torch.from_numpy(a)
        super().__init__(Given(clean), noise)

    def forward(self, x):
        return x @ self.a.T

    def solve(self, residual, variance):
        v = torch.as_tensor(variance).reshape(-1, 1, 1)
        return torch.linalg.solve(v * self.a @ self.a.T + self.noise**2 * torch.eye(len(self.a)), residual[:, :, None])[
            :, :, 0
        ]


class Mask5:
    def __call__(self, shape):
        return torch.tensor([True, False, True, True, False])


def posterior_mean(x, alpha, sigma, a, y, mean, covariance):
    """E[x_0 | x_t, y] of x_0 ~ N(mean, covariance): x_t and y are two measurements."""
    precision = np.linalg.inv(covariance) + alpha**2 / sigma**2 * np.eye(len(mean)) + a.T @ a / NOISE**2
    pull = np.linalg.solve(covariance, mean) + alpha / sigma**2 * x + y @ a / NOISE**2
    return np.linalg.solve(precision, pull.T).T


def exact_of(guided, schedule, a, problem, mean, covariance, tolerance=1e-7):
    x = points(4, SIZE)
    for time in TIMES:
        t = torch.tensor(time, dtype=torch.float64)
        alpha, sigma = (float(part) for part in schedule.alpha_sigma(t))
        y = problem.measurement[0].numpy()
        expected = posterior_mean(x.numpy(), alpha, sigma, a, y, mean, covariance)
        for times in (t, t.expand(4)):
            found = guided(x, times)
            np.testing.assert_allclose(found.x_0, expected, rtol=tolerance, atol=tolerance)
            np.testing.assert_allclose(found.eps, (x.numpy() - alpha * expected) / sigma, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("schedule", [COSINE, VE], ids=["vp", "ve"])
def test_mmps_is_exact_for_any_gaussian(schedule):
    """With one iteration per measured value, for any matrix A and any covariance of the data."""
    problem = Matrix(A, MEAN + 0.5)
    law = oracle(gaussian(MEAN, COVARIANCE), schedule)
    exact_of(MMPS(law, problem, iterations=3), schedule, A, problem, MEAN, COVARIANCE)


@pytest.mark.parametrize("schedule", [COSINE, VE], ids=["vp", "ve"])
def test_tmpd_is_exact_where_the_covariance_is_diagonal(schedule):
    """Independent values of which some are known."""
    variances = np.diag([0.2, 0.5, 1.0, 2.0, 0.1])
    problem = Inpaint(Given(MEAN + 0.5), Mask5(), NOISE, 0)
    law = oracle(gaussian(MEAN, variances), schedule)
    exact_of(TMPD(law, problem), schedule, np.diag(Mask5()(None).numpy().astype(float)), problem, MEAN, variances)


@pytest.mark.parametrize("schedule", [COSINE, VE], ids=["vp", "ve"])
def test_jfps_is_exact_on_white_data(schedule):
    """Where it is pseudo-inverse guidance, without a gradient of the network."""
    problem = Matrix(A, MEAN + 0.5)
    law = oracle(gaussian(MEAN, 0.7 * np.eye(SIZE)), schedule)
    exact_of(JFPS(law, problem, data_variance=0.7), schedule, A, problem, MEAN, 0.7 * np.eye(SIZE))
    with torch.no_grad():
        x, t = points(3, SIZE), torch.tensor(0.4, dtype=torch.float64)
        for a, b in zip(JFPS(law, problem, data_variance=0.7)(x, t), PiGDM(law, problem, data_variance=0.7)(x, t)):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_the_samples_of_mmps_have_the_posterior():
    problem, law = Matrix(A, MEAN + 0.5), oracle(gaussian(MEAN, COVARIANCE), COSINE)
    sampler = Heun(80, UniformLogSNR())
    times = sampler.times(law)
    alpha, sigma = (float(part) for part in COSINE.alpha_sigma(times[0]))
    start = alpha * MEAN, alpha**2 * COVARIANCE + sigma**2 * np.eye(SIZE)
    mean, covariance = terminal_law(sampler, MMPS(law, problem, iterations=3), times, *start)
    gain = COVARIANCE @ A.T @ np.linalg.inv(A @ COVARIANCE @ A.T + NOISE**2 * np.eye(3))
    np.testing.assert_allclose(mean, MEAN + gain @ (problem.measurement[0].numpy() - A @ MEAN), atol=0.02)
    np.testing.assert_allclose(covariance, COVARIANCE - gain @ A @ COVARIANCE, atol=0.02)


PICTURES = {
    "inpaint": lambda picture: Inpaint(picture, Box(1, 2, 2, 3), NOISE, 0),
    "super_resolution": lambda picture: SuperResolution(picture, 2, NOISE, 0),
    "deblur": lambda picture: Deblur(picture, 0.8, NOISE, 0),
}


def conjugate_by_hand(matrix, right, iterations):
    """The textbook's loop for one system."""
    v, residual = np.zeros_like(right), right.copy()
    direction = residual.copy()
    for _ in range(iterations):
        step = residual @ residual / (direction @ matrix @ direction)
        following = residual - step * matrix @ direction
        v = v + step * direction
        direction = following + following @ following / (residual @ residual) * direction
        residual = following
    return v


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("kind", [MMPS, TMPD])
def test_a_network_is_guided_by_the_formula(name, kind):
    """Row by row with the whole Jacobian of the network, in NumPy."""
    backbone = lively(unet(num_classes=0)).double()
    model, t = Preconditioned(backbone, COSINE, V(), True), torch.tensor(0.45, dtype=torch.float64)
    x = batch(2, 1, 8, 8)[0].double()
    problem = PICTURES[name](Given(points(1, 8, 8, seed=3)))
    alpha, sigma = (float(part) for part in COSINE.alpha_sigma(t))
    guided = kind(model, problem, 0.8, EVERYWHERE, **({"iterations": 2} if kind is MMPS else {}))
    found, plain = guided(x, t), model(x, t)
    a = problem.forward(torch.eye(64).double().reshape(64, 1, 8, 8)).flatten(1).numpy().T
    y = problem.measurement.flatten().numpy()
    for row in range(2):
        one = x[row : row + 1]
        jacobian = torch.autograd.functional.jacobian(lambda z: model(z, t).x_0, one).reshape(64, 64).numpy()
        mean = plain.x_0[row].flatten().numpy()
        residual = y - a @ mean if name != "inpaint" else (y - mean) * np.diag(a)
        spread = a @ (sigma**2 / alpha * jacobian.T) @ a.T
        if kind is TMPD:
            weighed = residual / (NOISE**2 + spread @ np.ones(len(residual)))
        else:
            weighed = conjugate_by_hand(spread + NOISE**2 * np.eye(len(residual)), residual, 2)
        change = 0.8 * sigma**2 / alpha * jacobian.T @ (a.T @ weighed)
        np.testing.assert_allclose(found.x_0[row].flatten(), mean + change, rtol=1e-7, atol=1e-8)
        eps = plain.eps[row].flatten().numpy() - alpha / sigma * change
        np.testing.assert_allclose(found.eps[row].flatten(), eps, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("kind", [MMPS, TMPD, JFPS])
def test_scale_0_is_off_and_rows_are_independent(kind):
    law, problem = oracle(gaussian(MEAN, COVARIANCE), COSINE), Matrix(A, MEAN + 0.5)
    x, t = points(4, SIZE), torch.tensor(0.4, dtype=torch.float64)
    assert torch.equal(kind(law, problem, 0.0)(x, t).x_0, law(x, t).x_0)
    whole = kind(law, problem)(x, t)
    torch.testing.assert_close(whole.x_0[2:3], kind(law, problem)(x[2:3], t).x_0, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", [MMPS, TMPD, JFPS])
def test_it_can_be_differentiated_itself(kind):
    """As another guidance around it does: against differences."""
    law, problem = oracle(gaussian(MEAN, COVARIANCE), COSINE), Matrix(A, MEAN + 0.5)
    t, x = torch.tensor(0.4, dtype=torch.float64), points(1, SIZE).requires_grad_()
    guided, direction = kind(law, problem), points(1, SIZE, seed=1)
    slope = (torch.autograd.grad(guided(x, t).x_0.square().sum(), x)[0] * direction).sum()
    ends = [guided(x.detach() + step * direction, t).x_0.square().sum() for step in (1e-5, -1e-5)]
    torch.testing.assert_close(slope, (ends[0] - ends[1]) / 2e-5, rtol=1e-6, atol=1e-7)


def test_conjugate_gradients_solve_each_row_by_itself():
    """A row of zeros stays one; as many iterations as values are exact, and more change nothing."""
    matrices = np.stack([m @ m.T + np.eye(4) for m in rng.standard_normal((3, 4, 4))])
    right = torch.from_numpy(np.concatenate([rng.standard_normal((2, 4)), np.zeros((1, 4))]))
    for iterations in (4, 9):
        found = solve_conjugate(lambda v: torch.einsum("bij,bj->bi", torch.from_numpy(matrices), v), right, iterations)
        np.testing.assert_allclose(found, np.linalg.solve(matrices, right.numpy()[:, :, None])[:, :, 0], atol=1e-9)


@pytest.mark.parametrize("make, sentence", [
    (lambda: MMPS(White(0.0, 1.0), lambda x, y: x.sum(1)), "guidance=mmps needs a potential that is LinearProblem"),
    (lambda: TMPD(White(0.0, 1.0), lambda x, y: x.sum(1)), "guidance=tmpd needs a potential that is LinearProblem"),
    (lambda: JFPS(White(0.0, 1.0), lambda x, y: x.sum(1)), "guidance=jfps needs a potential that is LinearProblem"),
    (lambda: MMPS(White(0.0, 1.0), iterations=0), "iterations must be"),
    (lambda: JFPS(White(0.0, 1.0), data_variance=0.0), "data_variance must be"),
    (lambda: MMPS(White(0.0, 1.0), Matrix(A, MEAN))(points(2, 4), torch.tensor(0.4).double()), "cannot measure"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
