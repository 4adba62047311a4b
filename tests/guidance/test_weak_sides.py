"""What is weak: another class, several classes, another model; and several guidances at once."""

import math

import numpy as np
import pytest
import torch
from closed_forms import ExactMixture, Mixture, two_classes
from two_class_points import COSINE, EVERYWHERE, either_time, exact, t, x

from diffguide.guidance import Autoguidance, ClassComposition, ClassifierFree, NegativeCondition, Nested
from diffguide.guidance.projections import APG
from diffguide.guidance.rules import CFGPlusPlus, Linear
from diffguide.models.evaluation_counters import EvaluationCounter
from diffguide.models.protocols import Classifier, Prediction
from diffguide.samplers import Heun
from diffguide.samplers.grids import UniformLogSNR
from diffguide.schedules import EDM, Cosine, Flow

y = torch.tensor([0, 1, 0, 1, 1, 0, -1, 1])


def blurred(schedule=COSINE) -> ExactMixture:
    """A worse model of the same classes: the same means, wider."""
    mixture = two_classes()
    wider = Mixture(mixture.weights, mixture.means, 2 * two_covariances() + 0.3 * np.eye(2), mixture.labels)
    return ExactMixture(wider, schedule)


def two_covariances() -> np.ndarray:
    mixture = two_classes()
    return np.einsum("kde,ke,kfe->kdf", mixture.eigenvectors, mixture.eigenvalues, mixture.eigenvectors)


def same(found: Prediction, expected: Prediction, tolerance=1e-12):
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def extrapolated(strong, weak, scale):
    return Prediction(*(b + scale * (a - b) for a, b in zip(strong, weak)))


UNWANTED = torch.ones(8, dtype=torch.long)


@either_time
@pytest.mark.parametrize(
    "condition, facts", [(1, {}), ("sea", {"class_names": ["land", "sea"]})], ids=["index", "name"]
)
def test_a_negative_condition_takes_the_place_of_the_weak_side(t, condition, facts):
    counter = EvaluationCounter(exact(**facts))
    strong, weak = exact()(x, t, y), exact()(x, t, UNWANTED)
    same(NegativeCondition(counter, condition, 3.0, EVERYWHERE)(x, t, y), extrapolated(strong, weak, 3.0))
    assert counter.tally.evaluations == 16
    same(NegativeCondition(exact(**facts), condition, 1.0, EVERYWHERE)(x, t, y), strong, 0)
    same(NegativeCondition(exact(**facts), condition, 0.0, EVERYWHERE)(x, t, y), weak, 0)
    same(NegativeCondition(exact(**facts), condition, 3.0, EVERYWHERE)(x, t), extrapolated(exact()(x, t), weak, 3.0))


def test_negative_evaluates_what_is_needed():
    for scale in (0.0, 1.0):
        counter = EvaluationCounter(exact())
        NegativeCondition(counter, 1, scale, EVERYWHERE)(x, t, y)
        assert counter.tally.evaluations == 8


@either_time
def test_composition_adds_the_weighted_differences(t):
    """weak + w sum_i w_i (D_i - weak): class 0 and not class 1."""
    zero, one, none = (exact()(x, t, torch.full((8,), c)) for c in (0, 1, -1))
    counter = EvaluationCounter(exact())
    found = ClassComposition(counter, [0, 1], [1.5, -0.5], 2.0, EVERYWHERE)(x, t, y)
    expected = [n + 2.0 * (1.5 * (a - n) - 0.5 * (b - n)) for a, b, n in zip(zero, one, none)]
    same(found, Prediction(*expected))
    assert counter.tally.evaluations == 24
    same(ClassComposition(exact(), [0, 1], [1.5, -0.5], 0.0, EVERYWHERE)(x, t, y), none, 1e-13)
    same(ClassComposition(exact(), [0], [1.0], 3.0, EVERYWHERE)(x, t, y), extrapolated(zero, none, 3.0))
    same(ClassComposition(exact(), [0], [1.0], 1.0, EVERYWHERE)(x, t, y), zero, 1e-13)


def test_compose_evaluates_what_is_needed():
    for scale, weights, evaluations in ((0.0, [1.0], 8), (1.0, [1.0], 8), (1.0, [0.5], 16), (2.0, [1.0], 16)):
        counter = EvaluationCounter(exact())
        ClassComposition(counter, [0], weights, scale, EVERYWHERE)(x, t, y)
        assert counter.tally.evaluations == evaluations


def test_the_scores_of_classes_compose_to_the_unconditional():
    """CFG with sum_y p(y | x_t) score(x_t | y) for the unconditional score is CFG; oracles.md 4.6 d."""
    mixture, (alpha, sigma) = two_classes(), (float(a) for a in COSINE.alpha_sigma(t))
    log_joint = [
        np.log(mixture.weights[mixture.labels == c].sum()) + mixture.log_density(x.numpy(), alpha, sigma, np.full(8, c))
        for c in (0, 1)
    ]
    posterior = np.exp(log_joint - np.logaddexp(*log_joint))
    parts = [exact()(x, t, torch.full((8,), c)) for c in (0, 1)]
    summed = [sum(p[:, None] * part[k].numpy() for p, part in zip(posterior, parts)) for k in (0, 1)]
    for found, expected in zip(summed, exact()(x, t)):
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)


@either_time
@pytest.mark.parametrize("guide_schedule", [COSINE, Cosine(12.0, -10.0), EDM(14.0, -12.0), Flow(13.0, -13.0)])
def test_the_guide_of_autoguidance_is_evaluated_at_equal_log_snr(t, guide_schedule):
    """On every schedule of the guide: evaluated at equal log-SNR, with x rescaled."""
    strong, weak = exact()(x, t, y), blurred()(x, t, y)
    for scale in (0.0, 1.0, 2.5):
        found = Autoguidance(exact(), blurred(guide_schedule), scale, EVERYWHERE)(x, t, y)
        same(found, extrapolated(strong, weak, scale), 1e-8)
    same(Autoguidance(exact(), blurred(guide_schedule), 1.0, EVERYWHERE)(x, t, y), strong, 0)


def test_autoguidance_counts_both_networks_and_needs_no_condition():
    counter = EvaluationCounter(exact())
    auto = Autoguidance(counter, blurred(), 2.0, EVERYWHERE)
    same(auto(x, t), extrapolated(exact()(x, t), blurred()(x, t), 2.0))
    assert counter.tally.evaluations == 16
    Autoguidance(counter, blurred(), 1.0, EVERYWHERE)(x, t)
    assert counter.tally.evaluations == 24


def test_autoguidance_starts_its_guide():
    """A guide with momentum has its own, of this run."""
    inner = ClassifierFree(blurred(), 2.0, EVERYWHERE, APG(0.0, math.inf, -0.5))
    auto = Autoguidance(exact(), inner, 2.0, EVERYWHERE)
    sampler = Heun(5, UniformLogSNR())
    times = sampler.times(auto)
    first, again = (sampler(auto, x, times, y.clamp(min=0)) for _ in range(2))
    assert auto.stateful and torch.equal(first, again)
    plain = Autoguidance(exact(), ClassifierFree(blurred(), 2.0, EVERYWHERE, APG(0.0, math.inf, 0.0)), 2.0, EVERYWHERE)
    assert not plain.stateful and float((sampler(plain, x, times, y.clamp(min=0)) - first).abs().max()) > 1e-6


def test_nested_from_inside_out():
    """CFG++ around autoguidance: the parts in their order, counted together."""
    counter = EvaluationCounter(exact())
    parts = {
        "auto": lambda d: Autoguidance(d, blurred(), 2.0, EVERYWHERE),
        "cfgpp": lambda d: ClassifierFree(d, 0.4, EVERYWHERE, CFGPlusPlus()),
    }
    nested, classes = Nested(counter, parts), y.clamp(min=0)
    strong, weak = (
        extrapolated(exact()(x, t, c), blurred()(x, t, c), 2.0) for c in (classes, torch.full_like(classes, -1))
    )
    same(nested(x, t, classes), Prediction(extrapolated(strong, weak, 0.4).x_0, weak.eps))
    assert counter.tally.evaluations == 32 and nested.has_null and nested.num_classes == 2 and nested.needs_null
    assert not Nested(exact(), {"auto": parts["auto"]}).needs_null


def test_nested_memories_belong_to_a_run():
    parts = {
        "apg": lambda d: ClassifierFree(d, 2.0, EVERYWHERE, APG(0.0, math.inf, -0.5)),
        "auto": lambda d: Autoguidance(d, blurred(), 1.5, EVERYWHERE),
    }
    nested, sampler = Nested(exact(), parts), Heun(5, UniformLogSNR())
    times = sampler.times(nested)
    assert nested.stateful
    assert torch.equal(*(sampler(nested, x, times, y.clamp(min=0)) for _ in range(2)))


@pytest.mark.parametrize("make, sentence", [
    (lambda: NegativeCondition(exact(), 2, 2.0, EVERYWHERE), "there is no class 2; indices 0 to 1"),
    (lambda: NegativeCondition(exact(class_names=["a", "b"]), "c", 2.0, EVERYWHERE), "no class 'c'; .* or names: a, b"),
    (lambda: NegativeCondition(exact(num_classes=0), 0, 2.0, EVERYWHERE), "negative needs a model with classes"),
    (lambda: ClassComposition(exact(), [0], [1.0, 2.0]), r"conditions and weights .* \[1.0, 2.0\]"),
    (lambda: ClassComposition(exact(has_null=False), [0], [1.0], 2.0, EVERYWHERE), "guidance=compose .* label dropout"),
    (lambda: Autoguidance(exact(), exact(num_classes=3), 2.0, EVERYWHERE), "the guide has 3 classes, the model 2"),
    (lambda: Autoguidance(exact(shape=[2]), exact(shape=[1, 8, 8]), 2.0, EVERYWHERE),
     r"shape \[1, 8, 8\], the model of shape \[2\]"),
    (lambda: Autoguidance(exact(), exact(Cosine(8.0, -10.0)), 2.0, EVERYWHERE),
     "0.0183156 to 148.413, .* 0.00247875 to 148.413"),
    (lambda: Autoguidance(exact(), exact(Cosine(8.0, -10.0)), 2.0, (0.001, 0.01)), "take another guide"),
    (lambda: Autoguidance(exact(), Classifier(), 2.0, EVERYWHERE), "guide must be .* got a Classif"),
    (lambda: Autoguidance(exact(), exact(levels=torch.tensor([1.0, 0.5])), 2.0, EVERYWHERE), "other than the model's"),
    (lambda: Nested(exact(), {}), "parts is empty"),
])  # fmt: skip
def test_invalid_arguments_raise(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


def test_a_guide_may_lack_levels_where_guidance_does_not_act():
    auto = Autoguidance(exact(), blurred(Cosine(8.0, -10.0)), 2.0, (0.1, 100.0))
    early = torch.tensor(0.02, dtype=torch.float64)
    same(auto(x, early, y), exact()(x, early, y), 0)


def test_the_interval_that_the_message_names_is_accepted():
    guide = exact(Cosine(8.0, -9.3))
    with pytest.raises(ValueError) as told:
        Autoguidance(exact(), guide, 2.0, EVERYWHERE)
    said = str(told.value).partition("guidance.interval=[")[2].rstrip("]").split(",")
    Autoguidance(exact(), guide, 2.0, [float(level) for level in said])


def test_a_null_condition_needs_both_models():
    assert Autoguidance(exact(), exact(), 2.0, EVERYWHERE).has_null
    for facts in ({}, {"has_null": False}), ({"has_null": False}, {}):
        assert not Autoguidance(*(exact(**part) for part in facts), 2.0, EVERYWHERE).has_null


def test_linear_is_the_default():
    assert type(ClassifierFree(exact(), 2.0, EVERYWHERE).rule) is Linear
