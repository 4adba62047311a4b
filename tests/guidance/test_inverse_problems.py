"""Linear inverse problems: operators against matrices, exact posteriors of Gaussians, known biases, known pixels."""

import numpy as np
import pytest
import torch
from affine import terminal_law
from closed_forms import gaussian
from exact_models import oracle
from potential_laws import COSINE, EVERYWHERE, VE, Given, Towards, White, points

from diffguide.guidance.potentials import DPS, MPGD, Deblur, Inpaint, PiGDM, PotentialGuidance, RePaint, SuperResolution
from diffguide.guidance.potentials.pictures import Box, FileMask, FilePicture, RandomMask
from diffguide.models.protocols import SamplingError
from diffguide.randomness import Noise
from diffguide.samplers import DDIM, DDPM, DPMpp2M, Heun, TimeTravel
from diffguide.samplers.adaptive import Dopri5
from diffguide.samplers.grids import UniformLogSNR, UniformT

SHAPE, NOISE, MEAN, VARIANCE = (1, 4, 6), 0.3, 0.2, 0.7
CLEAN = points(*SHAPE, seed=4)
T = torch.tensor(0.4, dtype=torch.float64)
PROBLEMS = {
    "inpaint": lambda picture: Inpaint(picture, Box(1, 2, 2, 3), NOISE, 0),
    "super_resolution": lambda picture: SuperResolution(picture, 2, NOISE, 0),
    "deblur": lambda picture: Deblur(picture, 0.8, NOISE, 0),
}
every_problem = pytest.mark.parametrize("name", PROBLEMS)


def matrix(name: str) -> np.ndarray:
    """A, rows = values of the measurement, built by loops."""
    _, height, width = SHAPE
    index = lambda i, j: i * width + j  # noqa: E731
    if name == "inpaint":
        known = [0.0 if 1 <= i < 3 and 2 <= j < 5 else 1.0 for i in range(height) for j in range(width)]
        return np.diag(known)
    if name == "super_resolution":
        a = np.zeros((height // 2 * (width // 2), height * width))
        for i in range(height):
            for j in range(width):
                a[i // 2 * (width // 2) + j // 2, index(i, j)] = 0.25
        return a
    kernels = []
    for n in (height, width):  # a Gaussian wrapped around, as the sum of its Fourier series
        k = np.fft.fftfreq(n)
        response = np.exp(-2 * (np.pi * 0.8 * k) ** 2)
        kernels.append([np.mean(response * np.cos(2 * np.pi * k * d)) * n / n for d in range(n)])
    a = np.zeros((height * width, height * width))
    for i in range(height):
        for j in range(width):
            for u in range(height):
                for v in range(width):
                    a[index(i, j), index(u, v)] = kernels[0][(i - u) % height] * kernels[1][(j - v) % width]
    return a


@every_problem
def test_an_operator_is_its_matrix(name):
    """A x, its likelihood and (v A A^T + s^2)^-1 are those of the matrix; a clean picture is measured with noise s."""
    a, problem, x = matrix(name), PROBLEMS[name](Given(CLEAN)), points(3, *SHAPE)
    flat = x.flatten(1).numpy()
    np.testing.assert_allclose(problem.forward(x).flatten(1), flat @ a.T, atol=1e-12)
    y = problem.measurement.flatten().numpy()
    residual = y - flat @ a.T
    np.testing.assert_allclose(problem(x, None), -(residual**2).sum(1) / (2 * NOISE**2), rtol=1e-10)
    np.testing.assert_allclose(problem.distance(x), np.linalg.norm(residual, axis=1), rtol=1e-10)
    precision = np.linalg.inv(0.4 * a @ a.T + NOISE**2 * np.eye(len(a)))
    found = problem.log_likelihood(x, 0.4)
    np.testing.assert_allclose(found, -0.5 * np.einsum("bi,ij,bj->b", residual, precision, residual), rtol=1e-9)
    error = (y - a @ CLEAN.flatten().numpy())[np.abs(a).sum(1) > 0]
    assert 0.5 * NOISE < np.std(error) < 1.5 * NOISE
    assert torch.equal(problem.measurement, PROBLEMS[name](Given(CLEAN)).measurement)


@every_problem
def test_a_given_measurement_is_used_as_it_is(name):
    problem = PROBLEMS[name](Given(CLEAN))
    again = PROBLEMS[name](Given(problem.measurement[0], measured=True))
    assert torch.equal(again(points(2, *SHAPE), None), problem(points(2, *SHAPE), None))


def posterior(a, y, mean, variance):
    """Mean and covariance of x_0 ~ N(mean, variance I) given y = A x_0 + s z."""
    gain = variance * a.T @ np.linalg.inv(variance * a @ a.T + NOISE**2 * np.eye(len(a)))
    return mean + gain @ (y - a @ mean), variance * (np.eye(a.shape[1]) - gain @ a)


@every_problem
@pytest.mark.parametrize("schedule", [COSINE, VE], ids=["vp", "ve"])
def test_pseudo_inverse_guidance_is_exact_on_white_data(name, schedule):
    """E[x_0 | x_t, y], at any level: x_t is one more measurement, of precision alpha^2 / sigma^2."""
    a, problem, x = matrix(name), PROBLEMS[name](Given(CLEAN)), points(3, *SHAPE)
    guided = PiGDM(White(MEAN, VARIANCE, schedule), problem, 1.0, EVERYWHERE, VARIANCE)
    y, flat = problem.measurement.flatten().numpy(), x.flatten(1).numpy()
    for time in (0.05, 0.4, 0.9):
        alpha, sigma = (float(part) for part in schedule.alpha_sigma(torch.tensor(time, dtype=torch.float64)))
        precision = np.eye(a.shape[1]) * (1 / VARIANCE + alpha**2 / sigma**2) + a.T @ a / NOISE**2
        pull = MEAN / VARIANCE + alpha / sigma**2 * flat + y @ a / NOISE**2
        found = guided(x, torch.tensor(time, dtype=torch.float64))
        expected = np.linalg.solve(precision, pull.T).T
        np.testing.assert_allclose(found.x_0.flatten(1), expected, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(found.eps.flatten(1), (flat - alpha * expected) / sigma, rtol=1e-5, atol=1e-6)


KNOWN = torch.tensor([True, False, True, True])
PICTURE = torch.tensor([1.0, -2.0, 0.5, -0.4], dtype=torch.float64)


class Mask4:
    def __call__(self, shape):
        return KNOWN


def vector_problem(noise=NOISE) -> Inpaint:
    return Inpaint(Given(PICTURE, measured=True), Mask4(), noise, 0)


def test_the_law_of_pseudo_inverse_guidance():
    """Samples have the posterior's mean and covariance; those of the plain likelihood of x0_hat are too narrow."""
    law = oracle(gaussian(np.full(4, MEAN), VARIANCE * np.eye(4)), COSINE)
    sampler, problem = Heun(80, UniformLogSNR()), vector_problem()
    times = sampler.times(law)
    alpha, sigma = (float(part) for part in COSINE.alpha_sigma(times[0]))
    start = alpha * np.full(4, MEAN), (alpha**2 * VARIANCE + sigma**2) * np.eye(4)
    exact = posterior(np.diag(KNOWN.numpy().astype(float)), PICTURE.numpy() * KNOWN.numpy(), np.full(4, MEAN), VARIANCE)
    mean, covariance = terminal_law(sampler, PiGDM(law, problem, 1.0, EVERYWHERE, VARIANCE), times, *start)
    np.testing.assert_allclose(mean, exact[0], atol=0.01)
    np.testing.assert_allclose(covariance, exact[1], atol=0.01)
    mean, covariance = terminal_law(sampler, PotentialGuidance(law, problem, 1.0, EVERYWHERE), times, *start)
    assert covariance[0, 0] < 0.5 * exact[1][0, 0] and covariance[1, 1] == pytest.approx(VARIANCE, abs=0.01)


@pytest.mark.parametrize("noise", [0.1, 0.3, 2.0])
def test_the_bias_of_the_plain_likelihood(noise):
    """The gain on y - x0_hat is V / s^2, where the posterior's is V / (V + s^2): a factor 1 + V / s^2 too strong."""
    law, problem = White(MEAN, VARIANCE), vector_problem(noise)
    x = points(3, 4)
    plain, spread = law(x, T).x_0, law.spread(T)
    moved = PotentialGuidance(law, problem, 1.0, EVERYWHERE)(x, T).x_0 - plain
    right = PiGDM(law, problem, 1.0, EVERYWHERE, VARIANCE)(x, T).x_0 - plain
    residual = (PICTURE - plain) * KNOWN
    torch.testing.assert_close(moved, spread / noise**2 * residual)
    torch.testing.assert_close(right, spread / (spread + noise**2) * residual)
    torch.testing.assert_close(moved, (1 + spread / noise**2) * right)


def test_dps_moves_a_step_by_zeta_along_the_unit_residual():
    """|x_s - DDIM's x_s| is zeta alpha_s / alpha_t times the slope of x0_hat, whatever the residual and its noise."""
    law, times = White(MEAN, VARIANCE), torch.tensor([0.4, 0.39], dtype=torch.float64)
    x, sampler = points(3, 4), DDIM(1, UniformT(), eta=0.0)
    (alpha, sigma), alpha_s = COSINE.alpha_sigma(times[0]), COSINE.alpha_sigma(times[1])[0]
    slope = alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2)
    residual = (PICTURE - law(x, times[0]).x_0) * KNOWN
    unit = residual / residual.norm(dim=1, keepdim=True)
    for noise in (0.1, 1.0):
        guided = DPS(law, vector_problem(noise), 0.3, EVERYWHERE)
        moved = sampler(guided, x, times) - sampler(law, x, times)
        torch.testing.assert_close(moved, 0.3 * alpha_s / alpha * slope * unit)
    still = DPS(law, Inpaint(Given(law(x, T).x_0[0], measured=True), Mask4(), 0.1, 0), 0.3, EVERYWHERE)
    assert bool(still(x[:1], T).x_0.isfinite().all())  # on the measurement there is no direction


def test_mpgd_with_step_s_squared_is_on_the_measurement():
    found = MPGD(White(MEAN, VARIANCE), vector_problem(), NOISE**2, EVERYWHERE)(points(3, 4), T)
    torch.testing.assert_close(found.x_0[:, KNOWN], PICTURE[KNOWN].expand(3, -1))


def run(sampler, guided, shape, n=6, schedule=COSINE, first=0):
    noise, times = Noise(range(first, n), shape, schedule, dtype=torch.float64), sampler.times(guided)
    return sampler(guided, schedule.alpha_sigma(times[0])[1] * noise.normal(times[0], 0), times, None, noise)


SAMPLERS = {  # and whether each level has noise of its own
    "ddim": (DDIM(10, UniformT(), eta=0.0), True),
    "ddpm": (DDPM(10, UniformT(), variance=0.0), True),
    "time_travel": (TimeTravel(DDPM(8, UniformT(), variance=0.0), 2, EVERYWHERE), True),
    "heun": (Heun(10, UniformT()), False),
    "dpmpp_2m": (DPMpp2M(10, UniformT()), False),
    "dopri5": (Dopri5(2, UniformT(), 0.01, 0.01, 1000, 0.002), False),
}


class Seen(White):
    """Remembers what it was shown."""

    def __call__(self, x_t, t, y=None):
        self.shown = x_t
        return super().__call__(x_t, t, y)


def test_repaint_shows_the_network_noised_known_values():
    """alpha y + sigma z with the run's z, fresh at another level; x_0 and eps agree with what was shown."""
    law = Seen(MEAN, VARIANCE)
    times = torch.tensor([0.9, 0.4, 0.1], dtype=torch.float64)
    guided = RePaint(law, vector_problem(), EVERYWHERE, True).start(
        Noise(range(3), (4,), COSINE, dtype=torch.float64), times
    )
    x, drawn = points(3, 4), []
    for t in times:
        alpha, sigma = COSINE.alpha_sigma(t)
        found = guided(x, t)
        drawn.append((law.shown[:, KNOWN] - alpha * PICTURE[KNOWN]) / sigma)
        assert torch.equal(law.shown[:, ~KNOWN], x[:, ~KNOWN])
        torch.testing.assert_close(alpha * found.x_0 + sigma * found.eps, law.shown)
        assert torch.equal(found.x_0[:, KNOWN], PICTURE[KNOWN].expand(3, -1))
    assert float((drawn[0] - drawn[1]).abs().min()) > 1e-3 and 0.5 < float(torch.cat(drawn).std()) < 1.5


def test_repaint_draws_anew_where_time_travel_comes_again():
    """The same level twice in one run: other noise, unless each sample keeps its own; a new run starts over."""
    for fresh in (True, False):
        guided = RePaint(White(MEAN, VARIANCE), vector_problem(), EVERYWHERE, fresh)
        noise, x, times = Noise(range(3), (4,), COSINE, dtype=torch.float64), points(3, 4), torch.tensor([0.9, 0.4])
        run = guided.start(noise, times)
        first, second, again = run(x, T), run(x, T), guided.start(noise, times)(x, T)
        assert torch.equal(first.eps, again.eps) and torch.equal(first.eps[:, KNOWN], second.eps[:, KNOWN]) != fresh


@pytest.mark.parametrize("sampler, fresh", SAMPLERS.values(), ids=SAMPLERS)
def test_repaint_keeps_what_is_known(sampler, fresh):
    """Known values end on the measurement; on independent data the others are as without it. Samples are their seeds'."""
    law, problem = White(MEAN, VARIANCE), vector_problem()
    guided = RePaint(law, problem, EVERYWHERE, fresh)
    found = run(sampler, guided, (4,), 400)
    alpha, sigma = (float(part) for part in COSINE.alpha_sigma(sampler.times(guided)[-1]))
    np.testing.assert_allclose(found[:, KNOWN], PICTURE[KNOWN].expand(400, -1), atol=6 * sigma)
    assert abs(float(found[:, ~KNOWN].mean()) - MEAN) < 0.15
    torch.testing.assert_close(found[2:6], run(sampler, guided, (4,), 6, first=2))
    outside = run(sampler, RePaint(law, problem, (1e4, 1e5), fresh), (4,), 5)
    assert torch.equal(outside, run(sampler, law, (4,), 5))


def test_repaint_has_no_ode():
    guided = RePaint(White(MEAN, VARIANCE), vector_problem(), EVERYWHERE, True)
    with pytest.raises(SamplingError, match="guidance=repaint .* guidance.fresh=false"):
        run(Dopri5(2, UniformT(), 0.05, 0.05, 1000, 0.002), guided, (4,))


def test_masks_hide_the_given_values():
    assert Box(1, 2, 2, 3)((1, 4, 6)).sum() == 24 - 6
    assert abs(float(RandomMask(0.3, 1)((3, 40, 50)).float().mean()) - 0.7) < 0.05
    assert RandomMask(0.3, 1)((3, 40, 50)).shape == (40, 50) and RandomMask(0.3, 1)((40,)).shape == (40,)
    assert torch.equal(RandomMask(0.3, 1)((40,)), RandomMask(0.3, 1)((40,)))
    assert not torch.equal(RandomMask(0.3, 1)((40,)), RandomMask(0.3, 2)((40,)))


def test_arrays_and_images_are_read_with_their_values(tmp_path):
    """An .npz holds the values themselves, an image u / 127.5 - 1; a white pixel of a mask is known."""
    from PIL import Image

    picture = CLEAN.clamp(-1, 1)
    np.savez(tmp_path / "a.npz", picture.numpy())
    assert torch.equal(FilePicture(str(tmp_path / "a.npz"), False).values, picture)
    array = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3) * 3
    Image.fromarray(array).save(tmp_path / "a.png")
    np.testing.assert_allclose(FilePicture(str(tmp_path / "a.png"), False).values, array.transpose(2, 0, 1) / 127.5 - 1)
    deep = (array[..., 0].astype(np.int32) * 257).astype(np.uint16)  # 16 bits, which were clipped to white
    Image.fromarray(deep).save(tmp_path / "deep.png")
    np.testing.assert_allclose(FilePicture(str(tmp_path / "deep.png"), False).values[0], array[..., 0] / 127.5 - 1)
    known = np.random.default_rng(0).random((4, 6)) > 0.5
    Image.fromarray(known.astype(np.uint8) * 255).save(tmp_path / "mask.png")
    np.savez(tmp_path / "mask.npz", known.astype(float))
    for file in ("mask.png", "mask.npz"):
        problem = Inpaint(Given(CLEAN), FileMask(str(tmp_path / file)), NOISE, 0)
        np.testing.assert_array_equal(problem.known[0, 0], known)
    (tmp_path / "none.png").write_bytes(b"no image")
    np.savez(tmp_path / "two.npz", known, known)
    for file in ("none.png", "two.npz", "absent.npz", "absent.png"):
        with pytest.raises(ValueError, match=f"path must name an .npz.*{file}"):
            FilePicture(str(tmp_path / file), False)


LAW = White(0.0, 1.0)


def repaint(problem=None) -> RePaint:
    return RePaint(LAW, problem or vector_problem(), EVERYWHERE, True)


def quarter() -> SuperResolution:
    return SuperResolution(Given(CLEAN), 2, NOISE, 0)


@pytest.mark.parametrize(
    "make, sentence",
    [
        (lambda: vector_problem(0.0), "noise must be"),
        (lambda: Inpaint(Given(CLEAN), Box(3, 0, 2, 3), NOISE, 0), r"rows 3 to 5 and columns 0 to 3"),
        (lambda: Inpaint(Given(CLEAN), Box(0, 0, 4, 6), NOISE, 0), "the mask hides every value"),
        (lambda: Inpaint(Given(CLEAN), Mask4(), NOISE, 0), r"mask \[4\] .* \[1, 4, 6\]"),
        (lambda: SuperResolution(Given(CLEAN), 4, NOISE, 0), r"factor 4 must divide .* \[1, 4, 6\]"),
        (lambda: SuperResolution(Given(CLEAN), 1, NOISE, 0), "factor must be"),
        (lambda: Deblur(Given(CLEAN), 0.0, NOISE, 0), "width must be"),
        (lambda: Deblur(Given(PICTURE), 1.0, NOISE, 0), r"only images .* are blurred, got \[4\]"),
        (lambda: RandomMask(1.0, 0), "hidden must be"),
        (lambda: DPS(LAW, Towards(0.0, 1.0), 1.0, EVERYWHERE), "LinearProblem, got Towards"),
        (lambda: repaint(quarter()), "Inpaint, got SuperResolution"),
        (lambda: PiGDM(LAW, vector_problem(), 1.0, EVERYWHERE, 0.0), "data_variance must be"),
        (lambda: PiGDM(LAW, vector_problem(), 1.0, EVERYWHERE, 1.0)(points(2, 5), T), r"cannot measure \[2, 5\]"),
        (
            lambda: MPGD(LAW, quarter(), 1.0, EVERYWHERE)(points(2, 1, 8, 8), T),
            r"\[1, 2, 3\].*\[1, 8, 8\].*\[1, 4, 4\]",
        ),
        (lambda: repaint()(points(2, 4), T), r"call start\(noise, times\) first"),
        (lambda: repaint().start(None, T), "pass noise to the run"),
    ],
)
def test_invalid_arguments_raise(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
