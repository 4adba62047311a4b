"""The classifier that a conditional model is: with exact laws its guidance is classifier-free guidance."""

import numpy as np
import pytest
import torch
from closed_forms import Mixture, two_classes
from networks import lively, mlp

from diffguide.guidance import ClassifierFree
from diffguide.guidance.implicit_classifier import DensityPosterior, ImplicitClassifierGuidance
from diffguide.models.evaluation_counters import count_evaluations
from diffguide.models.level_classifier import LevelClassifier
from diffguide.models.noisy_joint_energy import NoisyJointEnergy
from diffguide.models.parameterizations import V
from diffguide.models.preconditioned import Preconditioned
from diffguide.oracles import GaussianMixture
from diffguide.schedules import EDM, Cosine, Flow, Linear

SCHEDULES = {"cosine": Cosine(12.0, -10.0), "flow": Flow(12.0, -12.0), "edm": EDM(12.4, -8.7)}
x = 1.5 * torch.randn(8, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
y = torch.tensor([0, 1, 0, 1, -1, 0, 0, 1])
t = torch.tensor(0.45, dtype=torch.float64)


def exact(schedule=SCHEDULES["cosine"], weights=None) -> GaussianMixture:
    law = two_classes()
    weights = law.weights if weights is None else weights
    return GaussianMixture(
        weights.tolist(), law.means.tolist(), law.covariances.tolist(), law.labels.tolist(), schedule
    )


def shares() -> list[float]:
    law = two_classes()
    return [float(law.weights[law.labels == label].sum()) for label in (0, 1)]


def assert_close(found, expected, tolerance=1e-9):
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("scale", [-0.5, 2.0])
@pytest.mark.parametrize("t", [t, torch.linspace(0.05, 0.95, 8, dtype=torch.float64)], ids=["0-d", "[B]"])
def test_scale_w_is_classifier_free_guidance_of_scale_1_plus_w(schedule, scale, t):
    """grad log p(y | x_t) = score(x_t | y) - score(x_t), by the model's own p(y) and by the same p(y) given."""
    model = exact(schedule)
    expected = ClassifierFree(model, 1 + scale)(x, t, y)
    assert_close(ImplicitClassifierGuidance(model, scale=scale)(x, t, y), expected)
    assert_close(ImplicitClassifierGuidance(model, DensityPosterior(shares()), scale)(x, t, y), expected)


def test_another_prior_is_guidance_against_another_mixture_of_the_classes():
    """With p(y) uniform the weak side is the mean of the two laws, which the null law of this model is not."""
    law, model = two_classes(), exact()
    totals = np.array(shares())[law.labels]
    even = Mixture(law.weights / totals / 2, law.means, law.covariances, law.labels)
    alpha, sigma = (float(part) for part in model.schedule.alpha_sigma(t))
    own = even.score(x.numpy(), alpha, sigma, y.numpy())
    score = own + 3 * np.where(y[:, None] < 0, 0, own - even.score(x.numpy(), alpha, sigma))
    # rows without a class keep the null law of the model
    score = np.where(y[:, None] < 0, law.score(x.numpy(), alpha, sigma), score)
    found = ImplicitClassifierGuidance(model, DensityPosterior([0.5, 0.5]), 3.0)(x, t, y)
    np.testing.assert_allclose(found.eps.numpy(), -sigma * score, rtol=1e-9, atol=1e-9)
    assert (found.eps - ClassifierFree(model, 4.0)(x, t, y).eps).abs().max() > 0.1


def test_the_law_for_particles_is_that_of_classifier_free_guidance():
    """Without a null law too: p(x_t) follows from p(x_t | y) and p(y | x_t)."""
    model, without_null = exact(), exact()
    without_null.has_null = False
    guided = ImplicitClassifierGuidance(without_null, scale=2.0)
    assert guided.explain_no_law() is None
    found, expected = (law.predict_weighted(x, t, y) for law in (guided, ClassifierFree(model, 3.0)))
    assert_close(found.guided, expected.guided)
    torch.testing.assert_close(found.spread, expected.spread, rtol=1e-9, atol=1e-9)
    term = guided.tilt().potentials[0]
    torch.testing.assert_close(term.function(x, y)[0], model.log_prob(x, torch.zeros((), dtype=torch.float64))[0, 0])


def test_a_network_that_states_its_classes_and_the_formula_agree():
    """A classifier of noise levels has equally frequent classes: one batched pass or one pass per class."""
    model = LevelClassifier(lively(mlp(2, out_features=6, num_classes=3, noise_conditioned=False)), Linear(), 4, False)
    time, points = torch.tensor(0.5, dtype=torch.float64), x.float()
    own, given = (ImplicitClassifierGuidance(model, DensityPosterior(prior), 100.0) for prior in (None, [1, 1, 1]))
    torch.testing.assert_close(own.classifier.log_prob(points, time), given.classifier.log_prob(points, time))
    assert_close(own(points, time, y), given(points, time, y), 1e-4)
    assert own.classifier.log_prob(points, time).exp().std(0).min() > 1e-4


def test_evaluations_of_the_classifier_are_counted_apart():
    counted, tally = count_evaluations(
        Preconditioned(lively(mlp(2, num_classes=3)), Cosine(12.0, -10.0), V(), has_null=False)
    )
    with pytest.raises(ValueError, match="guidance/posterior=bound"):
        ImplicitClassifierGuidance(counted)
    counted, tally = count_evaluations(exact())
    ImplicitClassifierGuidance(counted)(x, t, y)
    assert (tally.evaluations, tally.potential_evaluations) == (8, 16)


MISTAKES = {
    "no classes": (lambda: Preconditioned(mlp(2, num_classes=0), Cosine(), V(), True), None, "at least two classes, got 0"),
    "length": (exact, [1.0], "one positive number for each of 2 classes"),
    "sign": (exact, [1.0, 0.0], "one positive number for each of 2 classes"),
    "own prior": (
        lambda: NoisyJointEnergy(lively(mlp(2, out_features=3, num_classes=0)), Cosine(9.0, -9.0)), [1, 1, 1],
        "prior must be null",
    ),
}  # fmt: skip


@pytest.mark.parametrize("make, prior, message", MISTAKES.values(), ids=MISTAKES)
def test_models_that_do_not_fit_are_refused(make, prior, message):
    with pytest.raises(ValueError, match=message):
        ImplicitClassifierGuidance(make(), DensityPosterior(prior))
