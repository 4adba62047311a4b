"""log p by the probability-flow ODE, against closed forms on every schedule."""

import math

import numpy as np
import pytest
import torch

from diffguide.evaluation.likelihood.flow_ode import Adaptive, ExactTrace, FixedGrid, Hutchinson, flow_log_density
from diffguide.models.evaluation_counters import EvaluationCounter
from diffguide.models.protocols import SamplingError
from diffguide.oracles import GaussianMixture, GMM2DLaw
from diffguide.randomness import Noise
from diffguide.schedules import EDM, VE, Cosine, Flow, SubVP

SCHEDULES = {
    "cosine": Cosine(12.0, -10.0),
    "ve": VE(9.2, -7.8),
    "flow": Flow(12.0, -12.0),
    "edm": EDM(12.43, -8.76),
    "sub_vp": SubVP(18.2, None, 0.1, 20.0),
}
MEAN, COVARIANCE = np.array([0.5, -0.3, 0.1]), np.array([[0.3, 0.1, 0.0], [0.1, 0.2, 0.05], [0.0, 0.05, 0.03]])
EXACT = ExactTrace(largest=8)


def gaussian(schedule) -> GaussianMixture:
    return GaussianMixture([1.0], [MEAN], [COVARIANCE], [0], schedule)


def closed_form(x: np.ndarray, schedule) -> np.ndarray:
    """log p_0 of the ODE that ends in N(0, s_1^2 I): a linear map with the gains sqrt((l + s_1^2) / (l + s_0^2))."""
    s_0, s_1 = math.exp(-schedule.log_snr_max / 2), math.exp(-schedule.log_snr_min / 2)
    values, vectors = np.linalg.eigh(COVARIANCE)
    gains = np.sqrt((values + s_1**2) / (values + s_0**2))
    z = MEAN @ vectors + gains * ((x - MEAN) @ vectors)
    return np.log(gains).sum() - 0.5 * (z**2 / s_1**2 + np.log(2 * np.pi * s_1**2)).sum(1)


def points(n: int, schedule, dtype=torch.float64) -> tuple[torch.Tensor, Noise]:
    x = gaussian(schedule).sample(n, torch.Generator().manual_seed(0))[0]
    return x.to(dtype), Noise(range(n), (3,), schedule, dtype=dtype)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_density_of_gaussians_is_the_closed_form(name):
    """With the exact trace, by the fixed grid and by the adaptive solver."""
    schedule = SCHEDULES[name]
    x, _ = points(8, schedule)
    steps = round(6.5 * (schedule.log_snr_max - schedule.log_snr_min))
    for solver in (FixedGrid(steps), Adaptive(1e-8, 1e-8, 3000))[: 2 if name == "cosine" else 1]:
        found = flow_log_density(gaussian(schedule), x, None, EXACT, solver, None)
        np.testing.assert_allclose(found.numpy(), closed_form(x.numpy(), schedule), rtol=0, atol=1e-6)


def test_the_fixed_grid_is_of_order_4():
    schedule, errors = SCHEDULES["cosine"], []
    x, _ = points(8, schedule)
    for steps in (32, 64):
        counter = EvaluationCounter(gaussian(schedule))
        found = flow_log_density(counter, x, None, EXACT, FixedGrid(steps), None)
        assert counter.tally.evaluations == 8 * 4 * steps
        errors.append(np.abs(found.numpy() - closed_form(x.numpy(), schedule)).max())
    assert 11 < errors[0] / errors[1] < 22


def test_a_network_in_float32_has_the_density_of_float64():
    """The state stays in float64: the error is that of the denoiser."""
    schedule = SCHEDULES["cosine"]
    x, _ = points(8, schedule, torch.float32)
    found = flow_log_density(gaussian(schedule), x, None, EXACT, FixedGrid(64), None)
    np.testing.assert_allclose(found.numpy(), closed_form(x.double().numpy(), schedule), rtol=0, atol=2e-3)


def test_hutchinson_is_unbiased():
    """One example with many probes; sign probes are exact for a diagonal Jacobian."""
    schedule, solver, n = SCHEDULES["cosine"], FixedGrid(12), 800
    x = points(1, schedule)[0].expand(n, 3).contiguous()
    noise = Noise(range(n), (3,), schedule, dtype=torch.float64)
    exact = flow_log_density(gaussian(schedule), x[:1], None, EXACT, solver, None)
    for probes in (1, 3):
        found = flow_log_density(gaussian(schedule), x, None, Hutchinson(probes), solver, noise)
        error = found.std() / math.sqrt(n)
        assert abs(found.mean() - exact) < 4 * error < 0.3
    again = flow_log_density(
        gaussian(schedule), x[:5], None, Hutchinson(3), solver, noise=noise_of(5, schedule), index=1
    )
    assert not bool((again == found[:5]).any())  # another draw has other probes
    diagonal = GaussianMixture([1.0], [MEAN], [np.diag(COVARIANCE)], [0], schedule)
    traces = [(EXACT, None), (Hutchinson(1), noise_of(5, schedule))]
    one, other = (flow_log_density(diagonal, x[:5], None, trace, solver, noise) for trace, noise in traces)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def reference(x: np.ndarray, schedule, steps: int, probes) -> np.ndarray:
    """log p_0 by Runge-Kutta 4 in v = z / sqrt(1 + s^2), for a Gaussian, with the probes [P, B, D] of each evaluation."""
    start, end = -schedule.log_snr_max / 2, -schedule.log_snr_min / 2
    h, numbers = (end - start) / steps, iter(range(4 * steps))

    def slope(u, v):
        sin, cos = np.sin(np.arctan(np.exp(u))), np.cos(np.arctan(np.exp(u)))
        precision = np.linalg.inv(cos**2 * COVARIANCE + sin**2 * np.eye(3))
        offset = (v - cos * MEAN) @ precision
        eps, x_0 = sin * offset, MEAN + cos * offset @ COVARIANCE
        p = probes(next(numbers))
        trace = np.einsum("pbd,de,pbe->b", p, sin * precision, p) / len(p)
        return sin * cos * (cos * eps - sin * x_0), sin * trace - 3 * sin**2

    v, growth = x / np.hypot(1, np.exp(start)), np.zeros(len(x))
    for k in range(steps):
        u = start + k * h
        one, a = slope(u, v)
        two, b = slope(u + h / 2, v + h / 2 * one)
        three, c = slope(u + h / 2, v + h / 2 * two)
        four, d = slope(u + h, v + h * three)
        v, growth = v + h / 6 * (one + 2 * two + 2 * three + four), growth + h / 6 * (a + 2 * b + 2 * c + d)
    z = v * np.hypot(1, np.exp(end))
    prior = -0.5 * (z**2 / np.exp(2 * end) + np.log(2 * np.pi) + 2 * end).sum(1)
    return prior + 1.5 * np.log((1 + np.exp(2 * end)) / (1 + np.exp(2 * start))) + growth


@pytest.mark.parametrize("probes", [1, 3])
def test_each_evaluation_has_new_signs_and_one_backward_pass_per_probe(probes):
    schedule, steps = SCHEDULES["cosine"], 6
    x, noise = points(5, schedule)
    trace, counter = Hutchinson(probes), EvaluationCounter(gaussian(schedule))
    found = flow_log_density(counter, x, None, trace, FixedGrid(steps), noise)
    signs = [trace.vectors(x, noise_of(5, schedule), 0, number)[0].numpy() for number in range(4 * steps)]
    assert set(np.unique(signs)) == {-1, 1} and len({s.tobytes() for s in signs}) == 4 * steps
    np.testing.assert_allclose(found, reference(x.numpy(), schedule, steps, lambda k: signs[k]), rtol=0, atol=1e-11)
    assert counter.tally.evaluations == 5 * 4 * steps and counter.tally.backward_passes == probes * 5 * 4 * steps
    assert len(np.unique(np.reshape(signs, (-1, 3)), axis=0)) == 8  # the coordinates have signs of their own


def test_a_solver_with_error_control_has_the_same_signs_along_the_path():
    """Otherwise the difference of two slopes, its error, would be that of their signs."""
    schedule = SCHEDULES["cosine"]
    x, noise = points(5, schedule)
    found = flow_log_density(gaussian(schedule), x, None, Hutchinson(2), Adaptive(1e-8, 1e-8, 4000), noise)
    signs = Hutchinson(2).vectors(x, noise_of(5, schedule), 0, 0)[0].numpy()
    np.testing.assert_allclose(found, reference(x.numpy(), schedule, 400, lambda k: signs), rtol=0, atol=1e-6)


def test_one_new_sign_vector_per_evaluation_has_a_smaller_error_than_four_constant_ones():
    """The standard deviation over 400 seeds of the log-density of one example."""
    schedule, n = SCHEDULES["cosine"], 400

    class Constant(Hutchinson):
        def vectors(self, x, noise, index, evaluation):
            return super().vectors(x, noise, index, 0)

    x = points(1, schedule)[0].expand(n, 3).contiguous()
    new, constant = (
        flow_log_density(gaussian(schedule), x, None, trace, FixedGrid(24), noise_of(n, schedule)).std()
        for trace in (Hutchinson(1), Constant(4))
    )
    assert 0 < new < 0.7 * constant


def noise_of(n: int, schedule) -> Noise:
    return Noise(range(n), (3,), schedule, dtype=torch.float64)


@pytest.mark.parametrize("solver", [FixedGrid(16), Adaptive(1e-5, 1e-5, 3000)], ids=["fixed", "adaptive"])
def test_the_density_of_an_example_does_not_depend_on_its_batch(solver):
    schedule = SCHEDULES["flow"]
    x, noise = points(6, schedule)
    together = flow_log_density(gaussian(schedule), x, None, Hutchinson(2), solver, noise)
    alone = Noise([4], (3,), schedule, dtype=torch.float64)
    own = flow_log_density(gaussian(schedule), x[4:5], None, Hutchinson(2), solver, alone)
    torch.testing.assert_close(own, together[4:5], rtol=0, atol=1e-10)


def test_the_density_of_a_mixture_given_its_classes_is_exact():
    """Conditional and unconditional, within 0.002 nats/dim, which is mostly due to the noise of z_0, 0.0025."""
    law = GMM2DLaw(Cosine(12.0, -14.0))  # the mean of a class is not 0, that of the prior is
    x, y = law.sample(32, torch.Generator().manual_seed(1))
    for condition in (None, y):
        found = flow_log_density(law, x, condition, EXACT, FixedGrid(40), None)
        assert float((found - law.log_density(x, None, condition)).abs().mean()) / 2 < 2e-3


def test_images_and_vectors_have_the_same_density():
    """Requires inputs with the shape of the data."""
    schedule = SCHEDULES["cosine"]
    law = gaussian(schedule)

    class Pictures:
        schedule, levels, tally = law.schedule, None, None

        def __call__(self, x_t, t, y=None):
            assert x_t.shape[1:] == (1, 3, 1)
            return type(prediction := law(x_t.flatten(1), t))(*(part.reshape(x_t.shape) for part in prediction))

    x, _ = points(4, schedule)
    pictures = flow_log_density(Pictures(), x.reshape(4, 1, 3, 1), None, EXACT, FixedGrid(8), None)
    torch.testing.assert_close(pictures, flow_log_density(law, x, None, EXACT, FixedGrid(8), None))


def test_infinite_ends_large_traces_and_missing_noise_raise():
    x, noise = points(2, SCHEDULES["flow"])
    with pytest.raises(ValueError, match="finite ends"):
        flow_log_density(gaussian(Flow(math.inf, -math.inf)), x, None, EXACT, FixedGrid(4), None)
    with pytest.raises(ValueError, match="3 values.*metric/trace=hutchinson"):
        flow_log_density(gaussian(SCHEDULES["flow"]), x, None, ExactTrace(2), FixedGrid(4), None)
    with pytest.raises(SamplingError, match="max_evaluations=20"):
        flow_log_density(gaussian(SCHEDULES["flow"]), x, None, EXACT, Adaptive(1e-8, 1e-8, 20), None)
    with pytest.raises(ValueError, match="noise"):
        flow_log_density(gaussian(SCHEDULES["flow"]), x, None, Hutchinson(1), FixedGrid(4), None)


@pytest.mark.parametrize(
    "build, key",
    [
        (lambda: Hutchinson(0), "probes"),
        (lambda: FixedGrid(0), "steps"),
        (lambda: Adaptive(0.0, 0.0, 100), "atol"),
        (lambda: Adaptive(1e-3, 0.0, 8), "max_evaluations"),
    ],
)
def test_traces_and_solvers_check_their_arguments(build, key):
    with pytest.raises(ValueError, match=key):
        build()
