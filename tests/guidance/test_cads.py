"""Noise on the embedded condition, and the one way by which a condition is seen as the network embeds it."""

import copy
import math

import numpy as np
import pytest
import torch
from closed_forms import ExactMixture, two_classes
from networks import batch, every_network, lively, mlp, same_rows

from diffguide.backbones.conditions import Embedding, concatenate_conditions, remove_condition
from diffguide.guidance import CADS, ClassifierFree
from diffguide.guidance.cads import CONDITION_DRAW
from diffguide.models.evaluation_counters import EvaluationCounter
from diffguide.models.parameterizations import V
from diffguide.models.preconditioned import Preconditioned
from diffguide.randomness import Noise
from diffguide.samplers import DDIM, Heun
from diffguide.samplers.adaptive import Dopri5
from diffguide.samplers.grids import UniformLogSNR, UniformT
from diffguide.schedules import Cosine

COSINE = Cosine(12.0, -10.0)
EVERYWHERE = (0.0, math.inf)
x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
y = torch.tensor([0, 2, -1, 1])
LEVELS = {"strength": 0.5, "clean": 0.5, "noisy": 8.0}


def model(**changed) -> Preconditioned:
    return Preconditioned(lively(mlp(**changed)), COSINE, V(), True)


def time_of(level: float) -> torch.Tensor:
    return COSINE.t_of(torch.tensor(-2 * math.log(level), dtype=torch.float64))


def noise(seeds=range(4)) -> Noise:
    return Noise(seeds, (2,), COSINE)


@every_network
def test_the_embedded_condition_is_the_condition(make, shape):
    """Every network takes `embed(y)` in the place of y, also joined with no condition and by rows."""
    network, (data, log_snr, classes) = lively(make()), batch(6, *shape)
    embedded = network.embed(classes)
    assert same_rows(network(data, log_snr, embedded), network(data, log_snr, classes)).all()
    twice = concatenate_conditions([embedded, remove_condition(embedded)])[2:]
    expected = network(
        torch.cat([data, data])[2:], log_snr.repeat(2)[2:], torch.cat([classes, torch.full((6,), -1)])[2:]
    )
    assert same_rows(network(torch.cat([data, data])[2:], log_snr.repeat(2)[2:], twice), expected).all()


@pytest.mark.parametrize("psi", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_the_condition_is_noised_by_its_formula(psi, scale):
    """In NumPy, and through the network by writing the noised row into its table of classes."""
    network, t, u = model(), time_of(0.5 * 16**0.75), 0.25  # a quarter of the way from noisy to clean
    guided = CADS(network, scale, EVERYWHERE, psi=psi, **LEVELS).start(noise(), torch.tensor([1.0, 0.0]))
    found, n = guided(x, t, y), Noise(range(4), (16,), COSINE).normal(t, CONDITION_DRAW).double().numpy()
    for row in range(4):
        other = copy.deepcopy(network)
        table = other.backbone.embedding.classes.weight.data
        if y[row] >= 0:
            c = table[y[row] + 1].double().numpy()
            noised = math.sqrt(u) * c + 0.5 * math.sqrt(1 - u) * n[row]
            rescaled = (noised - noised.mean()) / noised.std() * c.std() + c.mean()
            table[y[row] + 1] = torch.from_numpy(psi * rescaled + (1 - psi) * noised)
        rows = slice(row, row + 1)
        strong, weak = (other(x[rows], t, condition) for condition in (y[rows], None))
        for field, a, b in zip(found, strong, weak):
            np.testing.assert_allclose(field[rows], b + scale * (a - b), rtol=1e-4, atol=1e-4)


def test_what_is_below_clean_is_classifier_free_guidance():
    network = model()
    counter = EvaluationCounter(network)
    guided, t = CADS(counter, 3.0, EVERYWHERE, psi=1.0, **LEVELS), time_of(0.4)
    for found, expected in zip(guided(x, t, y), ClassifierFree(network, 3.0, EVERYWHERE)(x, t, y)):
        assert torch.equal(found, expected)
    assert counter.tally.evaluations == 8


def test_what_is_outside_the_interval_is_the_conditional():
    network = model()
    guided = CADS(network, 3.0, (0.1, 4.0), psi=1.0, **LEVELS).start(noise(), torch.tensor([1.0, 0.0]))
    for found, expected in zip(guided(x, time_of(5.0), y), network(x, time_of(5.0), y)):
        assert torch.equal(found, expected)


def test_vectors_take_noise_too():
    network = model(num_classes=0, condition_features=5)
    condition = Embedding(
        torch.randn(4, 5, generator=torch.Generator().manual_seed(1)), torch.tensor([1, 1, 0, 1]).bool()
    )
    guided = CADS(network, 2.0, EVERYWHERE, psi=1.0, **LEVELS).start(noise(), torch.tensor([1.0, 0.0]))
    found, plain = (g(x, time_of(20.0), condition).x_0 for g in (guided, ClassifierFree(network, 2.0, EVERYWHERE)))
    assert ((found - plain).abs().amax(1) > 1e-4).tolist() == condition.keep.tolist()


def test_a_sample_is_a_function_of_its_seed():
    """Not of its batch, not of what ran before; another seed is another sample, also where the sampler draws nothing."""
    guided, sampler = CADS(model(), 2.0, EVERYWHERE, psi=1.0, **LEVELS), Heun(5, UniformLogSNR())
    times = sampler.times(guided)
    first, again = (sampler(guided, x, times, y, noise()) for _ in range(2))
    assert torch.equal(first, again)
    part = sampler(guided, x[1:2], times, y[1:2], noise([1]))
    torch.testing.assert_close(part, first[1:2], rtol=1e-3, atol=1e-4)
    other = sampler(guided, x, times, y, noise(range(10, 14)))
    assert ((other - first).abs().amax(1) > 1e-4).tolist() == (y >= 0).tolist()


@pytest.mark.parametrize(
    "changed, sentence",
    [
        ({"strength": -1.0}, "strength must be"),
        ({"clean": 9.0}, "0 < clean < noisy, got 9.0 and 8.0"),
        ({"psi": 2.0}, "psi must be in"),
    ],
)
def test_numbers_out_of_range(changed, sentence):
    with pytest.raises(ValueError, match=sentence):
        CADS(model(), 2.0, EVERYWHERE, **{**LEVELS, "psi": 1.0, **changed})


def test_invalid_arguments_raise():
    with pytest.raises(ValueError, match="guidance=cads needs a model"):
        CADS(ExactMixture(two_classes(), COSINE), 2.0, EVERYWHERE, psi=1.0, **LEVELS)
    guided = CADS(model(), 2.0, EVERYWHERE, psi=1.0, **LEVELS)
    with pytest.raises(ValueError, match="guidance=cads draws noise: use"):
        guided(x, time_of(5.0), y)
    with pytest.raises(ValueError, match="guidance=cads draws noise per level"):
        guided(x, time_of(5.0).expand(4), y)
    with pytest.raises(ValueError, match="Dopri5 .* another sampler"):
        Dopri5(4, UniformT(), 0.05, 0.05, 1000, 0.002).times(guided)
    sampler = DDIM(4, UniformT(), eta=0.0)
    with pytest.raises(ValueError, match="guidance=cads draws noise: use"):
        sampler(guided, x, sampler.times(guided), y)
