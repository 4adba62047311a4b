"""Classifier guidance: exact with the exact classifier, in every sampler, and ADM's form of it in the limit."""

import math

import pytest
import torch
from all_samplers import SAMPLERS, every_sampler
from closed_forms import two_classes
from networks import encoder, lively, mlp, unet

from diffguide.backbones import Embedding
from diffguide.guidance import ClassifierFree, ClassifierGuidance
from diffguide.guidance.classifier import match_log_snr
from diffguide.models.evaluation_counters import EvaluationCounter
from diffguide.models.noisy_classifier import NoisyClassifier
from diffguide.models.parameterizations import V
from diffguide.models.preconditioned import Preconditioned
from diffguide.models.protocols import Classifier, DenoiserWrapper
from diffguide.oracles import GaussianMixture
from diffguide.randomness import Noise
from diffguide.samplers import DDPM
from diffguide.samplers.ancestral import posterior_variance
from diffguide.samplers.grids import UniformLogSNR
from diffguide.schedules import EDM, Cosine, Flow

EVERYWHERE = (0.0, math.inf)
SCHEDULES = {"cosine": Cosine(12.0, -10.0), "flow": Flow(12.0, -12.0), "edm": EDM(12.4, -8.7)}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
x = 1.5 * torch.randn(8, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
y = torch.tensor([0, 1, 0, 1, 1, 0, 0, 1])
t = torch.tensor(0.45, dtype=torch.float64)
either_time = pytest.mark.parametrize(
    "t", [t, t.expand(8), torch.linspace(0.05, 0.95, 8, dtype=torch.float64)], ids=["0-d", "[B]", "various"]
)


class Unconditional(DenoiserWrapper):
    """The same law, of a model that was never told a class: it must not be given one."""

    num_classes, conditional, has_null = 0, False, True

    def __call__(self, x_t, t, y=None):
        assert y is None
        return self.denoiser(x_t, t)


class Seen(Classifier):
    """Counts the calls of a classifier."""

    def __init__(self, classifier):
        self.classifier, self.calls = classifier, 0
        self.schedule, self.num_classes = classifier.schedule, classifier.num_classes

    def log_prob(self, x_t, t):
        self.calls += 1
        return self.classifier.log_prob(x_t, t)


def exact(schedule=SCHEDULES["cosine"]) -> GaussianMixture:
    mixture = two_classes()
    return GaussianMixture(
        mixture.weights.tolist(),
        mixture.means.tolist(),
        mixture.covariances.tolist(),
        mixture.labels.tolist(),
        schedule,
    )


def assert_close(found, expected, tolerance=1e-10):
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@every_schedule
@pytest.mark.parametrize("scale", [-0.5, 0.3, 1.0, 6.0])
@either_time
def test_with_the_exact_classifier_it_is_classifier_free_guidance(schedule, scale, t):
    """Bayes: grad log p(y | x_t) = score(x_t | y) - score(x_t). w on an unconditional model, 1 + w on a conditional one."""
    model = exact(schedule)
    found = ClassifierGuidance(Unconditional(model), model, scale, EVERYWHERE)(x, t, y)
    assert_close(found, ClassifierFree(model, scale, EVERYWHERE)(x, t, y))
    found = ClassifierGuidance(model, model, scale, EVERYWHERE)(x, t, y)
    assert_close(found, ClassifierFree(model, 1 + scale, EVERYWHERE)(x, t, y))


@pytest.mark.parametrize("other", SCHEDULES.values(), ids=SCHEDULES)
@every_schedule
def test_a_classifier_with_another_schedule_is_evaluated_at_the_same_log_snr(schedule, other):
    model, classifier = exact(schedule), exact(other)
    for time in (0.1, 0.45, 0.8):
        time = torch.tensor(time, dtype=torch.float64)
        found = ClassifierGuidance(Unconditional(model), classifier, 3.0, EVERYWHERE)(x, time, y)
        assert_close(found, ClassifierFree(model, 3.0, EVERYWHERE)(x, time, y), 1e-8)


def test_equal_log_snr_keeps_x_0_and_eps():
    """alpha x_0 + sigma eps becomes alpha' x_0 + sigma' eps; beyond the other's ends it is taken at its end."""
    here, there, eps = Flow(12.0, -12.0), EDM(5.0, -5.0), torch.randn(8, 2, dtype=torch.float64)
    times = torch.tensor([1e-4, 0.2, 0.5, 0.6, 0.7, 0.8, 0.85, 1.0], dtype=torch.float64)
    (alpha, sigma) = here.alpha_sigma(times, 2)
    moved, other = match_log_snr(alpha * x + sigma * eps, times, here, there)
    (alpha, sigma), inside = there.alpha_sigma(other, 2), here.log_snr(times).abs() < 5
    torch.testing.assert_close(moved[inside], (alpha * x + sigma * eps)[inside], rtol=1e-9, atol=1e-9)
    assert inside.sum() == 6 and other[0] == 0 and other[-1] == 1


def run(denoiser, make, steps=6) -> torch.Tensor:
    sampler = make(steps)
    times = sampler.times(denoiser)
    noise = Noise(range(8), (2,), denoiser.schedule, dtype=torch.float64)
    start = denoiser.schedule.alpha_sigma(times[0])[1] * noise.normal(times[0], 0)
    return sampler(denoiser, start, times, y, noise)


@every_sampler
def test_every_sampler_is_reached(make):
    """Guided samples are those of classifier-free guidance, and far from those without."""
    model = exact()
    plain, guided = (run(ClassifierGuidance(Unconditional(model), model, w, EVERYWHERE), make) for w in (0.0, 3.0))
    free = run(ClassifierFree(model, 3.0, EVERYWHERE), make)
    assert (guided - plain).abs().mean() > 0.01
    torch.testing.assert_close(guided, free, rtol=1e-5, atol=1e-5)


def test_the_list_of_samplers_is_that_of_the_files():
    assert len(SAMPLERS) > 20


def adm(model, steps: int) -> torch.Tensor:
    """Algorithm 1 of arXiv 2105.05233: mean + w Var grad log p(y | x_t), with noise of the same variance."""
    schedule, times = model.schedule, DDPM(steps, UniformLogSNR(), 0.0).times(model)
    noise = Noise(range(8), (2,), schedule, dtype=torch.float64)
    x_t = schedule.alpha_sigma(times[0])[1] * noise.normal(times[0], 0)
    for t, s in zip(times[:-1], times[1:]):
        variance, (alpha, sigma) = posterior_variance(schedule, t, s), schedule.alpha_sigma(s)
        prediction = model(x_t, t)
        gradient = model.score(x_t, t, y) - model.score(x_t, t)
        mean = alpha * prediction.x_0 + (sigma**2 - variance).clamp(min=0).sqrt() * prediction.eps
        x_t = mean + 2.0 * variance * gradient + variance.sqrt() * noise.increment(t, s)
    return x_t


def test_the_ancestral_form_of_adm_is_the_limit():
    """The same noise, twice the steps: half the distance, for a step moves the mean by (alpha_s / alpha_t) Var[x_t | x_s]
    times the gradient here, and by Var[x_s | x_t, x_0] there."""
    model, distance = exact(), {}
    ours = ClassifierGuidance(Unconditional(model), model, 2.0, EVERYWHERE)
    for steps in (25, 100, 400):
        found = run(ours, lambda steps: DDPM(steps, UniformLogSNR(), 0.0), steps)
        distance[steps] = float((found - adm(model, steps)).abs().mean())
    assert distance[25] > 0.02  # not the same
    assert distance[100] < 0.45 * distance[25] and distance[400] < 0.45 * distance[100]


def test_one_step_of_adm_and_ours():
    """The shift of the mean: ours over ADM's is (alpha_s / alpha_t) sigma_t^2 / sigma_s^2, 1 for short steps."""
    model = exact()
    ours = ClassifierGuidance(Unconditional(model), model, 1.0, EVERYWHERE)
    gradient = model.score(x, t, y) - model.score(x, t)
    for step in (0.1, 0.01, 0.001):
        s, schedule = t - step, model.schedule
        (alpha, sigma), (alpha_t, sigma_t) = schedule.alpha_sigma(s), schedule.alpha_sigma(t)
        variance = posterior_variance(schedule, t, s)
        root = (sigma**2 - variance).sqrt()
        shift = sum(a * (b - c) for a, b, c in zip((alpha, root), ours(x, t, y), model(x, t)))
        ratio = alpha / alpha_t * sigma_t**2 / sigma**2
        torch.testing.assert_close(shift, ratio * variance * gradient, rtol=1e-8, atol=1e-12)
        assert abs(float(ratio) - 1) < 8 * step


@pytest.mark.parametrize("make, shape", [(mlp, (2,)), (None, (1, 8, 8))], ids=["mlp", "encoder"])
def test_the_gradient_is_that_of_the_network(make, shape):
    """Against differences of log p(y | x_t), with rows without a class left alone."""
    network = lively(mlp(out_features=3, num_classes=0) if make else encoder()).double()
    classifier, y = NoisyClassifier(network, SCHEDULES["edm"]), torch.tensor([0, -1, 2, 1])
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(4, *shape, generator=rng, dtype=torch.float64)
    denoiser = Preconditioned(lively(mlp() if make else unet()).double(), SCHEDULES["edm"], V(), has_null=True)
    direction = torch.randn(4, *shape, generator=rng, dtype=torch.float64)
    h, rows = 1e-5, torch.arange(4)
    plus, minus = (classifier.log_prob(x + sign * h * direction, t)[rows, y] for sign in (1, -1))
    expected = torch.where(y >= 0, (plus - minus) / (2 * h), 0)
    guided, plain = (ClassifierGuidance(denoiser, classifier, w, EVERYWHERE)(x, t, y) for w in (2.0, 0.0))
    alpha, sigma = (float(part) for part in SCHEDULES["edm"].alpha_sigma(t))
    along = ((guided.x_0 - plain.x_0) * direction).flatten(1).sum(1)
    torch.testing.assert_close(along, 2.0 * sigma**2 / alpha * expected, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(alpha * guided.x_0 + sigma * guided.eps, x, rtol=1e-9, atol=1e-9)
    assert torch.equal(guided.x_0[1], plain.x_0[1]) and float(expected.abs().max()) > 1e-3


@either_time
def test_only_needed_predictions_are_evaluated(t):
    """Rows without a class, scale 0, no condition, and levels outside the interval; each bit for bit."""
    model, mixed = exact(), torch.where(torch.arange(8) % 2 == 0, -1, y)
    guided, plain = ClassifierGuidance(model, model, 3.0, EVERYWHERE)(x, t, mixed), model(x, t, mixed)
    assert torch.equal(guided.x_0[::2], plain.x_0[::2]) and not torch.equal(guided.x_0[1::2], plain.x_0[1::2])
    for scale, interval, label in ((0.0, EVERYWHERE, y), (3.0, EVERYWHERE, None), (3.0, (0.0, 1e-3), y)):
        classifier, counter = Seen(model), EvaluationCounter(model)
        found = ClassifierGuidance(counter, classifier, scale, interval)(x, t, label)
        assert torch.equal(found.x_0, model(x, t, label).x_0) and torch.equal(found.eps, model(x, t, label).eps)
        assert counter.tally.evaluations == 8 and (classifier.calls == 0 or t.ndim == 1)
        assert counter.tally.potential_evaluations == 8 * classifier.calls


def test_the_interval_acts_row_by_row():
    times = torch.tensor([0.9, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    model, levels = exact(), SCHEDULES["cosine"].noise_level(times)
    guided = ClassifierGuidance(model, model, 3.0, (float(levels[5]), float(levels[2])))
    always = ClassifierGuidance(model, model, 3.0, EVERYWHERE)
    for k, time in enumerate(times):
        expected = (always if 2 <= k < 5 else model)(x, time, y)
        assert_close(guided(x, time, y), expected, 0)
        assert_close([field[k] for field in guided(x, times, y)], [field[k] for field in expected], 1e-12)


def test_it_nests_with_classifier_free_guidance():
    """w of the one inside 1 + v of the other, and the other way round: both are sums of scores."""
    model = exact()
    outside = ClassifierGuidance(ClassifierFree(model, 2.5, EVERYWHERE), model, 1.5, EVERYWHERE)
    assert_close(outside(x, t, y), ClassifierFree(model, 4.0, EVERYWHERE)(x, t, y))
    inside = ClassifierFree(ClassifierGuidance(model, model, 1.5, EVERYWHERE), 2.0, EVERYWHERE)
    assert_close(inside(x, t, y), ClassifierFree(model, 5.0, EVERYWHERE)(x, t, y))


def test_it_can_be_differentiated():
    """A potential outside gets the gradient through it: the input is not detached."""
    model = exact()
    guided = ClassifierGuidance(model, model, 2.0, EVERYWHERE)
    inputs = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(guided(inputs, t, y).x_0.square().sum(), inputs)
    h = 1e-5 * torch.randn(8, 2, dtype=torch.float64)
    with torch.no_grad():
        plus, minus = (guided(x + sign * h, t, y).x_0.square().sum() for sign in (1, -1))
    assert float((found * h).sum()) == pytest.approx(float(plus - minus) / 2, rel=1e-5)


def facts(**changed):
    model = exact()
    for name, value in changed.items():
        setattr(model, name, value)
    return model


@pytest.mark.parametrize(
    "denoiser, classifier, scale, interval, sentence",
    [
        (facts(num_classes=3), exact(), 1.0, EVERYWHERE, "has 2 classes, .* has 3"),
        (exact(), Unconditional(exact()), 1.0, EVERYWHERE, "objective=classifier.* got a Unconditional"),
        (exact(), exact(), math.nan, EVERYWHERE, "scale must be"),
        (exact(), exact(), 1.0, (2.0, 1.0), "interval must be"),
        (exact(), exact(), 1.0, (0.0, 1.0, 2.0), "interval must be"),
        (exact(Flow(12.0, -math.inf)), exact(), 1.0, EVERYWHERE, "log_snr_min=-inf"),
    ],
)
def test_invalid_arguments_raise(denoiser, classifier, scale, interval, sentence):
    with pytest.raises(ValueError, match=sentence):
        ClassifierGuidance(denoiser, classifier, scale, interval)


def test_an_embedding_is_no_class():
    with pytest.raises(ValueError, match="needs class indices"):
        ClassifierGuidance(exact(), exact(), 1.0, EVERYWHERE)(x, t, Embedding(torch.zeros(8, 3)))
