"""Potential guidance against formulas written out, finite differences, and the rules of where it acts."""

import math

import numpy as np
import pytest
import torch
from all_samplers import SAMPLERS
from closed_forms import ExactMixture, two_classes
from exact_models import oracle
from potential_laws import COSINE, EVERYWHERE, VE, T, Towards, White, points

from diffguide.guidance import ClassifierFree
from diffguide.guidance.potentials import (
    LGD,
    MPGD,
    TFG,
    Brightness,
    EvenSteps,
    FreeDoM,
    NoisyPotentialGuidance,
    PotentialDensity,
    PotentialGuidance,
    UniversalGuidance,
)
from diffguide.models.evaluation_counters import EvaluationCounter
from diffguide.models.protocols import DenoiserWrapper, Prediction, SamplingError
from diffguide.randomness import Noise
from diffguide.samplers import DDIM, Heun
from diffguide.samplers.grids import UniformT
from diffguide.schedules import Flow

MEAN, POINT = torch.tensor([[0.3, -0.2, 0.5], [1.0, 0.4, -0.7]], dtype=torch.float64)
WIDTH, VARIANCE = 0.8, 0.6
EVEN = (EvenSteps(), EvenSteps())  # of rho and mu of TFG
x = points(6, 3)
both = pytest.mark.parametrize("schedule", [COSINE, VE], ids=["vp", "ve"])


def closed(schedule, t=T):
    """alpha, sigma, x0_hat, eps, d x0_hat / d x_t and grad f at x0_hat, in NumPy."""
    alpha, sigma = (float(a) for a in schedule.alpha_sigma(t))
    total = alpha**2 * VARIANCE + sigma**2
    pull = (x.numpy() - alpha * MEAN.numpy()) / total
    x_0 = MEAN.numpy() + alpha * VARIANCE * pull
    return alpha, sigma, x_0, sigma * pull, alpha * VARIANCE / total, (POINT.numpy() - x_0) / WIDTH**2


def white(schedule=COSINE) -> White:
    return White(MEAN, VARIANCE, schedule)


def near() -> Towards:
    return Towards(POINT, WIDTH)


def assert_is(prediction, x_0, eps, tolerance=1e-10):
    np.testing.assert_allclose(prediction.x_0, x_0, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(prediction.eps, eps, rtol=tolerance, atol=tolerance)


@both
@pytest.mark.parametrize("w", [-0.5, 0.7, 3.0])
def test_bayes_through_the_network(schedule, w):
    alpha, sigma, x_0, eps, slope, gradient = closed(schedule)
    found = PotentialGuidance(white(schedule), near(), w, EVERYWHERE)(x, T)
    assert_is(found, x_0 + w * sigma**2 / alpha * slope * gradient, eps - w * sigma * slope * gradient)


@both
def test_bayes_on_x_t(schedule):
    """The law N(m, v) times exp f is Gaussian: its score is what the guided eps says."""
    alpha, sigma, *_ = closed(schedule)
    found = NoisyPotentialGuidance(white(schedule), near(), 1.0, EVERYWHERE)(x, T)
    total = alpha**2 * VARIANCE + sigma**2
    precision = 1 / total + 1 / WIDTH**2
    mean = (alpha * MEAN.numpy() / total + POINT.numpy() / WIDTH**2) / precision
    eps = sigma * precision * (x.numpy() - mean)
    assert_is(found, (x.numpy() - sigma * eps) / alpha, eps, 1e-8)


@both
def test_mpgd_moves_x_0_alone(schedule):
    _, _, x_0, eps, _, gradient = closed(schedule)
    assert_is(MPGD(white(schedule), near(), 0.2, EVERYWHERE)(x, T), x_0 + 0.2 * gradient, eps)


@both
def test_freedom_moves_x_0_along_the_networks_gradient(schedule):
    _, _, x_0, eps, slope, gradient = closed(schedule)
    assert_is(FreeDoM(white(schedule), near(), 0.2, EVERYWHERE)(x, T), x_0 + 0.2 * slope * gradient, eps)


def test_freedom_moves_a_ddim_step_by_rho():
    """x_s is DDIM's plus alpha_s scale grad: with s near t, the paper's x_{t-1} - sqrt(abar_t) scale grad E."""
    sampler, times = DDIM(1, UniformT(), eta=0.0), torch.tensor([0.45, 0.44], dtype=torch.float64)
    alpha_s = float(COSINE.alpha_sigma(times[1])[0])
    *_, slope, gradient = closed(COSINE)
    moved = sampler(FreeDoM(white(), near(), 0.2, EVERYWHERE), x, times) - sampler(white(), x, times)
    np.testing.assert_allclose(moved, alpha_s * 0.2 * slope * gradient, atol=1e-10)


@both
@pytest.mark.parametrize("w, steps", [(1.5, 0), (0.0, 3), (1.5, 3)])
def test_universal_guidance_is_its_closed_form(schedule, w, steps):
    """m gradient steps towards a point go 1 - (1 - rate / width^2)^m of the way; the fields still agree."""
    alpha, sigma, x_0, eps, slope, gradient = closed(schedule)
    found = UniversalGuidance(white(schedule), near(), w, EVERYWHERE, steps, 0.1)(x, T)
    moved = (1 - (1 - 0.1 / WIDTH**2) ** steps) * (POINT.numpy() - x_0)
    forward = w * sigma * slope * gradient
    assert_is(found, x_0 + sigma / alpha * forward + moved, eps - forward - alpha / sigma * moved)
    torch.testing.assert_close(alpha * found.x_0 + sigma * found.eps, x)


@both
def test_tfg_is_its_closed_form(schedule):
    alpha, _, x_0, eps, slope, gradient = closed(schedule)
    found = TFG(white(schedule), near(), 2.0, EVERYWHERE, 0.3, 0.05, 4, 0, 0.0, *EVEN)(x, T)
    moved = (1 - (1 - 0.1 / WIDTH**2) ** 4) * (POINT.numpy() - x_0)  # 2 mu
    assert_is(found, x_0 + 0.6 / alpha * slope * gradient + moved, eps)


def test_tfg_holds_the_others():
    """rho = 0 and one step on x_0 is MPGD, at zero smoothing too; mu = 0 leaves the gradient through the network."""
    mpgd = MPGD(white(), near(), 0.2, EVERYWHERE)(x, T)
    noise = Noise(range(6), (3,), COSINE, dtype=torch.float64)
    tfg = TFG(white(), near(), 1.0, EVERYWHERE, 0.0, 0.2, 1, 3, 0.0, *EVEN).start(noise, torch.tensor([1.0, 0.0]))
    assert_is(tfg(x, T), mpgd.x_0, mpgd.eps)
    torch.testing.assert_close(tfg.value(x, T, None), near()(x, None))  # copies that are all the same
    alpha, _, x_0, eps, slope, gradient = closed(COSINE)
    only = TFG(white(), near(), 1.0, EVERYWHERE, 0.3, 0.0, 4, 0, 0.0, *EVEN)(x, T)
    assert_is(only, x_0 + 0.3 / alpha * slope * gradient, eps)


def smoothed_gradient(x_0, r, draws):
    """Of log mean_i exp f(x_0 + r z_i): a softmax-weighted mean of gradients."""
    seen = x_0[None] + r * draws
    values = -((seen - POINT.numpy()) ** 2).sum(-1) / (2 * WIDTH**2)
    weights = np.exp(values - values.max(0))
    weights /= weights.sum(0)
    return (weights[..., None] * (POINT.numpy() - seen) / WIDTH**2).sum(0)


@both
@pytest.mark.parametrize("kind", ["lgd", "tfg"])
def test_smoothing_is_a_log_mean_exp(schedule, kind):
    """With the draws that the run hands over, against NumPy; r_t = sigma / sqrt(alpha^2 + sigma^2)."""
    noise = Noise(range(6), (3,), schedule, dtype=torch.float64)
    alpha, sigma, x_0, eps, slope, _ = closed(schedule)
    r = sigma / math.hypot(alpha, sigma)
    guided = (
        LGD(white(schedule), near(), 0.7, EVERYWHERE, 5)
        if kind == "lgd"
        else TFG(white(schedule), near(), 0.7, EVERYWHERE, 0.3, 0.0, 0, 5, 0.5, *EVEN)
    ).start(noise, torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64))
    draws = np.stack([draw.numpy() for draw in guided.draws])
    assert draws.shape == (5, 6, 3) and abs(np.corrcoef(draws.reshape(5, -1)) - np.eye(5)).max() < 0.8
    gradient = slope * smoothed_gradient(x_0, r if kind == "lgd" else 0.5 * r, draws)
    if kind == "lgd":
        assert_is(guided(x, T), x_0 + 0.7 * sigma**2 / alpha * gradient, eps - 0.7 * sigma * gradient)
    else:
        assert_is(guided(x, T), x_0 + 0.7 * 0.3 / alpha * gradient, eps)


def test_lgd_is_exact_on_unit_data():
    """Data N(m, 1): r is the spread of x_0 given x_t, so many copies give the posterior mean; one at r = 0 does not."""
    unit, tilt = White(0.3, 1.0), Towards(1.0, 1.0)
    noise = Noise(range(4), (1,), COSINE, dtype=torch.float64)
    start = points(4, 1, seed=3)
    guided = LGD(unit, tilt, 1.0, EVERYWHERE, 1000).start(noise, torch.tensor([1.0, 0.0]))(start, T)
    spread, x_0 = unit.spread(T), unit(start, T).x_0
    exact = x_0 + spread / (spread + 1.0) * (1.0 - x_0)
    naive = PotentialGuidance(unit, tilt, 1.0, EVERYWHERE)(start, T).x_0
    assert float((guided.x_0 - exact).abs().max()) < 0.25 * float((naive - exact).abs().max())


LAW = oracle(two_classes(), COSINE)
points_2 = points(6, 2, seed=1)
y = torch.tensor([0, 1, -1, 0, 1, -1])


class Wavy(Brightness):
    """Anything with derivatives of every order, that reads y."""

    of_class = True

    def __call__(self, x, y):
        return (x[:, 0] * (1 + y)).sin() + (x[:, 1] ** 3) / 5 + x[:, 0] * x[:, 1]


METHODS = {
    "potential": lambda d, f=None, w=0.7, i=EVERYWHERE: PotentialGuidance(d, f or Wavy(), w, i),
    "noised": lambda d, f=None, w=0.7, i=EVERYWHERE: NoisyPotentialGuidance(d, f or Wavy(), w, i),
    "mpgd": lambda d, f=None, w=0.7, i=EVERYWHERE: MPGD(d, f or Wavy(), w, i),
    "freedom": lambda d, f=None, w=0.7, i=EVERYWHERE: FreeDoM(d, f or Wavy(), w, i),
    "universal": lambda d, f=None, w=0.7, i=EVERYWHERE: UniversalGuidance(d, f or Wavy(), w, i, 2, 0.1),
    "lgd": lambda d, f=None, w=0.7, i=EVERYWHERE: LGD(d, f or Wavy(), w, i, 3),
    "tfg": lambda d, f=None, w=0.7, i=EVERYWHERE: TFG(d, f or Wavy(), w, i, 0.3, 0.2, 2, 2, 0.1, *EVEN),
}
every_method = pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)
TIMES = torch.tensor([0.9, 0.45, 0.1], dtype=torch.float64)


def begun(guided, n=6):
    return guided.start(Noise(range(n), (2,), COSINE, dtype=torch.float64), TIMES)


@every_method
def test_gradients_pass_through_every_method(make):
    """d x_0 / d x_t, and d eps / d x_t, against finite differences: no wrapper detaches what requires a gradient."""
    guided = begun(make(LAW), 2)
    for field in (0, 1):
        assert torch.autograd.gradcheck(
            lambda x: guided(x, T, torch.tensor([0, -1]))[field], points(2, 2, seed=5).requires_grad_(), rtol=1e-5
        )


@every_method
def test_guidance_of_guidance(make):
    """Bayes around every method: its gradient is that of f of the inner x_0, by finite differences, under no_grad."""
    inner = begun(make(LAW))
    outer = PotentialGuidance(inner, Towards(0.3, 0.9), 1.0, EVERYWHERE)
    with torch.no_grad():
        found = outer(points_2, T, y)
        plain = inner(points_2, T, y)

        def f(shift):
            return Towards(0.3, 0.9)(inner(points_2 + shift, T, y).x_0, y)

        steps = 1e-5 * torch.eye(2, dtype=torch.float64)
        gradient = torch.stack([(f(e) - f(-e)) / 2e-5 for e in steps], 1)
    sigma = COSINE.alpha_sigma(T)[1]
    torch.testing.assert_close(found.eps, plain.eps - sigma * gradient, rtol=1e-6, atol=1e-6)
    assert not found.x_0.requires_grad and not points_2.requires_grad


@every_method
def test_the_interval_and_rows_at_levels_of_their_own(make):
    """Outside (lo, hi] it is the denoiser bit for bit, and no potential is evaluated; [B] times agree with one time."""
    times = torch.tensor([0.9, 0.7, 0.5, 0.4, 0.3, 0.1], dtype=torch.float64)
    levels = COSINE.noise_level(times)
    classes = torch.tensor([0, 1, 1, 0, 1, 0])
    guided = begun(make(LAW, i=(float(levels[4]), float(levels[2]))))
    always = begun(make(LAW))
    rows = guided(points_2, times, classes)
    for k, t in enumerate(times):
        expected = (always if 2 <= k < 4 else LAW)(points_2, t, classes)
        for found, row, field in zip(guided(points_2, t, classes), rows, expected):
            assert torch.equal(found, field)
            torch.testing.assert_close(row[k], field[k], rtol=1e-11, atol=1e-11)
    counter = Towards(0.0, 1.0)
    begun(make(LAW, counter, i=(5.0, 6.0)))(points_2, T, classes)
    assert counter.calls == 0


@every_method
def test_rows_without_class(make):
    """A potential of the class leaves y = -1 alone; one that reads no y guides every row."""
    plain, guided = LAW(points_2, T, y), begun(make(LAW))(points_2, T, y)
    for found, field in zip(guided, plain):
        assert torch.equal(found[y < 0], field[y < 0])
    assert float((guided.x_0 - plain.x_0)[y >= 0].abs().amin(1).min()) > 0
    assert torch.equal(begun(make(LAW))(points_2, T).x_0, LAW(points_2, T).x_0)
    free = begun(make(LAW, Towards(5.0, 1.0)))
    assert float((free(points_2, T, y).x_0 - plain.x_0).abs().amax(1).min()) > 1e-3
    assert float((free(points_2, T).x_0 - LAW(points_2, T).x_0).abs().amax(1).min()) > 1e-3


@pytest.mark.parametrize(
    "name, potential_calls",
    [("potential", 1), ("noised", 1), ("mpgd", 1), ("freedom", 1), ("universal", 3), ("lgd", 3), ("tfg", 6)],
)
def test_a_step_costs_one_evaluation_and_so_many_of_the_potential(name, potential_calls):
    """One of the network for each, and of the potential as many as the method's steps and copies."""
    counter, potential = EvaluationCounter(LAW), near_2()
    begun(METHODS[name](counter, potential))(points_2, T, y)
    assert (counter.tally.evaluations, potential.calls) == (6, potential_calls)
    assert counter.tally.potential_evaluations == 6 * potential_calls


def near_2():
    return Towards(0.5, 1.0)


@every_method
def test_scale_0_is_off(make):
    potential = near_2()
    guided = begun(make(LAW, potential, 0.0))
    if not isinstance(guided, UniversalGuidance):  # whose backward steps have no scale
        assert torch.equal(guided(points_2, T, y).x_0, LAW(points_2, T, y).x_0) and potential.calls == 0


def test_mpgd_needs_no_gradient_of_the_network():
    """A denoiser that works in NumPy will do; what goes through the network says what it needs."""
    numpy_law = ExactMixture(two_classes(), COSINE)
    found = MPGD(numpy_law, near_2(), 0.1, EVERYWHERE)(points_2, T, y)
    torch.testing.assert_close(found.x_0, MPGD(LAW, near_2(), 0.1, EVERYWHERE)(points_2, T, y).x_0)
    with pytest.raises(Exception, match="requires grad|numpy"):
        PotentialGuidance(numpy_law, near_2(), 1.0, EVERYWHERE)(points_2, T, y)


def test_a_model_without_gradient_raises_one_line():
    class Detached(DenoiserWrapper):
        def __call__(self, x_t, t, y=None):
            return Prediction(*(field.detach() for field in self.denoiser(x_t, t, y)))

    with pytest.raises(SamplingError, match="Detached has no gradient"):
        PotentialGuidance(Detached(LAW), near_2(), 1.0, EVERYWHERE)(points_2, T, y)


@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - {"dopri5"}))
@pytest.mark.parametrize("method", ["potential", "mpgd"])
def test_every_sampler_is_guided(name, method):
    """Agreeing fields and eps as it is: samples come nearer to the point than without guidance; twice the same."""
    sampler = SAMPLERS[name](80 if name == "sa_solver" else 24)  # which needs them without guidance too
    guided = METHODS[method](
        LAW, Towards(torch.tensor([2.0, -2.0]).double(), 1.0), 0.2 if method == "mpgd" else 1.0, (0.0, 3.0)
    )
    times = sampler.times(guided)

    def run(denoiser):
        noise = Noise(range(20), (2,), COSINE, dtype=torch.float64)
        return sampler(denoiser, noise.normal(times[0], 0), times, None, noise)

    found = run(guided)
    assert torch.equal(found, run(guided)) and bool(found.isfinite().all())
    point = torch.tensor([2.0, -2.0])
    assert float((found - point).norm(dim=1).mean()) < 0.95 * float((run(LAW) - point).norm(dim=1).mean())


def test_a_sample_is_a_function_of_its_seed():
    """LGD draws per sample: rows 2 to 5 alone are what they are among six."""
    sampler, guided = Heun(6, UniformT()), METHODS["lgd"](LAW, near_2())
    times = sampler.times(guided)

    def run(seeds):
        noise = Noise(seeds, (2,), COSINE, dtype=torch.float64)
        return sampler(guided, noise.normal(times[0], 0), times, None, noise)

    torch.testing.assert_close(run(range(6))[2:], run(range(2, 6)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["potential", "lgd", "tfg", "mpgd"])
def test_classifier_free_guidance_around_it(name):
    """Both conditions as one batch, with each sample's noise twice; other rows than a run's samples are refused."""
    inner = METHODS[name](LAW, near_2())
    outer = begun(ClassifierFree(inner, 3.0, EVERYWHERE))
    classes = torch.tensor([0, 1, 1, 0, 1, 0])
    strong, weak = (begun(inner)(points_2, T, c) for c in (classes, None))
    for found, a, b in zip(outer(points_2, T, classes), strong, weak):
        torch.testing.assert_close(found, b + 3.0 * (a - b))
    if name in ("lgd", "tfg"):
        with pytest.raises(SamplingError, match=r"\[6, 2\], and x \[7, 2\]"):
            begun(inner)(points(7, 2), T)


def test_a_density_is_tilted():
    """log p + w f; a potential of the class leaves rows without one; its gradient is the guided score on x_t."""
    density = PotentialDensity(LAW, Towards(0.4, 0.7), 2.0)
    expected = LAW.log_density(points_2, T, y) - ((points_2 - 0.4) ** 2).sum(1) / 0.49
    torch.testing.assert_close(density.log_density(points_2, T, y), expected)
    assert not density.normalized and PotentialDensity(LAW, near_2(), 0.0).normalized
    x = points_2.clone().requires_grad_()
    (score,) = torch.autograd.grad(density.log_density(x, T, y).sum(), x)
    guided = NoisyPotentialGuidance(LAW, Towards(0.4, 0.7), 2.0, EVERYWHERE)(points_2, T, y)
    torch.testing.assert_close(-guided.eps / COSINE.alpha_sigma(T)[1], score)
    wavy = PotentialDensity(LAW, Wavy(), 1.0)
    assert torch.equal(wavy.log_density(points_2, T, y)[y < 0], LAW.log_density(points_2, T, y)[y < 0])
    assert torch.equal(wavy.log_density(points_2, T), LAW.log_density(points_2, T))


def wrong_shape(x, y):
    return x.sum(1, keepdim=True)


def a_number(x, y):
    return 3.0


def not_finite(x, y):
    return (x[:, 0] - 100).log()


def constant(x, y):
    return torch.zeros(len(x))


@pytest.mark.parametrize(
    "potential, sentence",
    [
        (wrong_shape, r"wrong_shape must return one number per row, \[6\] for x \[6, 2\], got \[6, 1\]"),
        (a_number, r"a_number must return one number per row, \[6\] for x \[6, 2\], got float"),
        (not_finite, "not_finite is not finite: nan in row 0"),
        (constant, "constant has no gradient"),
    ],
)
@pytest.mark.parametrize("method", ["potential", "noised", "mpgd"])
def test_an_invalid_potential_raises_one_line(potential, sentence, method):
    with pytest.raises(SamplingError, match=sentence):
        METHODS[method](LAW, potential)(points_2, T, y)


@pytest.mark.parametrize(
    "make, sentence",
    [
        (lambda: MPGD(LAW, 3.0, 1.0, EVERYWHERE), "potential must be callable as f"),
        (lambda: MPGD(LAW, near_2(), math.nan, EVERYWHERE), "scale must be"),
        (lambda: MPGD(LAW, near_2(), 1.0, (2.0, 1.0)), "interval must be"),
        (
            lambda: MPGD(White(0.0, 1.0, Flow(12.0, -math.inf)), near_2(), 1.0, EVERYWHERE),
            "interval must end below infinity",
        ),
        (lambda: UniversalGuidance(LAW, near_2(), 1.0, EVERYWHERE, -1, 0.1), "backward_steps must be"),
        (lambda: UniversalGuidance(LAW, near_2(), 1.0, EVERYWHERE, 1, 0.0), "backward_rate must be"),
        (lambda: LGD(LAW, near_2(), 1.0, EVERYWHERE, 0), "copies must be"),
        (lambda: TFG(LAW, near_2(), 1.0, EVERYWHERE, -0.1, 0.2, 2, 2, 0.1), "rho must be"),
        (lambda: LGD(LAW, near_2(), 1.0, EVERYWHERE, 2)(points_2, T), r"call start\(noise, times\) first"),
        (lambda: LGD(LAW, near_2(), 1.0, EVERYWHERE, 2).start(None, TIMES), "pass noise to the run"),
        (lambda: PotentialDensity(LAW, near_2(), math.inf), "scale must be"),
    ],
)
def test_invalid_arguments_raise(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
