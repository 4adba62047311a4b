"""log p(y | x_t) by squared errors: the exact posterior in the limit of draws, and the gradient of what it estimates."""

import numpy as np
import pytest
import torch
from closed_forms import two_classes
from networks import lively, mlp

from diffguide.guidance import BoundPosterior, ClassifierFree, ImplicitClassifierGuidance
from diffguide.models.evaluation_counters import count_evaluations
from diffguide.models.level_classifier import LevelClassifier
from diffguide.models.parameterizations import V
from diffguide.models.preconditioned import Preconditioned
from diffguide.oracles import GaussianMixture
from diffguide.randomness import Noise
from diffguide.schedules import EDM, Cosine, Flow, Linear

SCHEDULES = {"cosine": Cosine(12.0, -10.0), "flow": Flow(12.0, -12.0), "edm": EDM(12.4, -8.7)}
x = 1.2 * torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
y = torch.tensor([0, 1, 0, 1, -1, 0])
T = torch.tensor(0.45, dtype=torch.float64)


def exact(schedule) -> GaussianMixture:
    law = two_classes()
    return GaussianMixture(
        law.weights.tolist(), law.means.tolist(), law.covariances.tolist(), law.labels.tolist(), schedule
    )


def shares() -> list[float]:
    law = two_classes()
    return [float(law.weights[law.labels == label].sum()) for label in (0, 1)]


def started(model, seeds=range(6), **settings):
    guided = ImplicitClassifierGuidance(model, BoundPosterior(**settings), 2.0)
    noise = Noise(seeds, (2,), model.schedule, dtype=torch.float64)
    return guided.start(noise, torch.tensor([1.0, 0.0], dtype=torch.float64))


def test_it_tends_to_the_exact_posterior_as_draws_grow():
    """The mean error of log p(y | x_t) falls, and so does that of the guided prediction."""
    model = exact(SCHEDULES["cosine"])
    expected, errors = ClassifierFree(model, 3.0)(x, T, y).eps, []
    for levels, copies in ((8, 1), (8, 40)):
        guided = started(model, prior=shares(), levels=levels, copies=copies)
        with torch.no_grad():
            found = guided.classifier.log_prob(x, T)
        posterior = (found - model.log_prob(x, T)).abs().mean()
        errors.append((posterior, (guided(x, T, y).eps - expected).abs().mean()))
    assert errors[1][0] < errors[0][0] / 4 and errors[1][0] < 0.2
    assert errors[1][1] < errors[0][1] / 2


@pytest.mark.parametrize("name", ["flow", "edm"])
def test_it_is_the_same_on_every_schedule_at_equal_log_snr(name):
    found = []
    for schedule in (SCHEDULES["cosine"], SCHEDULES[name]):
        t = schedule.t_of(torch.tensor(0.5, dtype=torch.float64))
        alpha, sigma = schedule.alpha_sigma(t)
        guided = started(exact(schedule), levels=2, low=-4.0)
        found.append(guided.classifier.log_prob((alpha**2 + sigma**2).sqrt() * x, t))
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-6)


def test_the_gradient_is_that_of_the_estimate():
    """Central differences of the value with the same draws."""
    guided = started(exact(SCHEDULES["cosine"]), levels=3, copies=2)
    times = torch.linspace(0.2, 0.8, 6, dtype=torch.float64)
    found = guided.gradient(x, times, y)
    steps = 1e-5 * torch.eye(2, dtype=torch.float64)
    sides = [[guided.noised_log_prob(x + sign * step, times, y) for sign in (1, -1)] for step in steps]
    expected = torch.stack([(up - down) / 2e-5 for up, down in sides], dim=1)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
    assert (found[4] == 0).all() and found[0].abs().min() > 1e-5


def test_the_value_is_the_sum_of_squared_errors():
    """One level, NumPy: z_s = r z_t + sqrt(1 - r^2) e, log-SNR of z_s in z_t the middle of [-6, 6] or of what is left."""
    model = exact(SCHEDULES["cosine"])
    guided = started(model, levels=1)
    law, e = two_classes(), guided.classifier.draws[0].numpy()
    log_snr = float(model.schedule.log_snr(T))
    signal = 1 / (1 + np.exp(-log_snr))
    left = 1 / (1 + np.exp(-model.schedule.log_snr_min)) / signal
    low = max(-6.0, np.log(left / (1 - left)))
    kept = 1 / (1 + np.exp(-(low + 6) / 2))
    own = kept * signal
    z = np.sqrt(kept) * x.numpy() + np.sqrt(1 - kept) * e
    errors = []
    for label in (0, 1):
        score = law.score(z, np.sqrt(own), np.sqrt(1 - own), np.full(6, label))
        errors.append(((e + np.sqrt(1 - kept) * score) ** 2).sum(1))
    logits = -np.stack(errors, axis=1) * (6 - low) / 2
    expected = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    np.testing.assert_allclose(guided.classifier.log_prob(x, T), expected, rtol=1e-8, atol=1e-9)


def test_a_sample_depends_on_its_own_seed_and_pure_noise_has_no_class():
    model = exact(SCHEDULES["cosine"])
    alone, together = started(model, [3]), started(model)
    torch.testing.assert_close(alone(x[3:4], T, y[3:4]).eps, together(x, T, y).eps[3:4])
    end = torch.tensor(1.0, dtype=torch.float64)
    torch.testing.assert_close(together.classifier.log_prob(x, end).exp(), torch.full((6, 2), 0.5, dtype=torch.float64))
    assert (together.gradient(x, end, y) == 0).all()


def test_networks_are_counted_and_no_law_is_named():
    model = Preconditioned(lively(mlp(2, num_classes=3)), Cosine(12.0, -10.0), V(), has_null=False)
    counted, tally = count_evaluations(model)
    guided = started(counted, levels=2, copies=2)
    guided(x.float(), T, y)
    assert (tally.evaluations, tally.potential_evaluations) == (6, 6 * 3 * 4)
    assert guided.tilt() is None and "posterior=density" in guided.explain_no_law()


def own_levels():
    return LevelClassifier(lively(mlp(2, out_features=6, num_classes=3, noise_conditioned=False)), Linear(), 4, False)


MISTAKES = {
    "levels": (lambda: ImplicitClassifierGuidance(own_levels(), BoundPosterior()), "noise levels of its own"),
    "range": (lambda: BoundPosterior(low=2.0, high=1.0), "low must be below high"),
    "no start": (
        lambda: ImplicitClassifierGuidance(exact(SCHEDULES["cosine"]), BoundPosterior())(x, T, y), "call start",
    ),
    "no noise": (
        lambda: ImplicitClassifierGuidance(exact(SCHEDULES["cosine"]), BoundPosterior()).start(None, T), "pass noise",
    ),
}  # fmt: skip


@pytest.mark.parametrize("make, message", MISTAKES.values(), ids=MISTAKES)
def test_what_does_not_fit_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()
