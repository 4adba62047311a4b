"""Contrasts that are added: LTX-2's composition against diffusers' guider."""

import math

import pytest
import torch
from diffusers.guiders.ltx2_guidance import LTX2Guidance
from networks import lively, mlp
from two_class_points import COSINE, EVERYWHERE, either_time, exact, t, x, y

from diffguide.guidance import APG, CADS, SLG, ClassifierFree, MomentumGuidance, NegativeCondition, SummedContrasts
from diffguide.models.evaluation_counters import EvaluationCounter
from diffguide.models.parameterizations import V
from diffguide.models.preconditioned import Preconditioned
from diffguide.samplers import Heun
from diffguide.samplers.grids import UniformLogSNR


def network() -> Preconditioned:
    return Preconditioned(lively(mlp()).double(), COSINE, V(), True)


@either_time
@pytest.mark.parametrize(
    "scale, stg, modality, phi", [(4.0, 1.0, 3.0, 0.7), (3.0, 0.5, 1.0, 0.0), (1.0, 0.0, 2.0, 1.0)]
)
def test_it_is_diffusers_composition(scale, stg, modality, phi, t):
    """The third weak side, the other modality switched off, is another class here."""
    model = network()
    parts = {
        "cfg": lambda d: ClassifierFree(d, scale),
        "stg": lambda d: SLG(d, [0], 1 + stg),
        "modality": lambda d: NegativeCondition(d, 1, modality),
    }
    counter = EvaluationCounter(model)
    with torch.no_grad():
        found = SummedContrasts(counter, parts, phi)(x, t, y)
        strong = model(x, t, y)
        sides = ClassifierFree(model).predict_weak(x, t, y), SLG(model, [0]).predict_weak(x, t, y)
        sides = (*sides, model(x, t, torch.ones_like(y)))
    guider = LTX2Guidance(scale, stg, modality, phi)
    expected = guider.forward(strong.x_0, *(side.x_0 for side in sides)).pred
    torch.testing.assert_close(found.x_0, expected, rtol=1e-9, atol=1e-9)
    alpha, sigma = COSINE.alpha_sigma(t, 2)
    torch.testing.assert_close(alpha * found.x_0 + sigma * found.eps, x, rtol=1e-8, atol=1e-8)
    if not t.ndim:
        assert counter.tally.evaluations == 8 * (1 + (scale != 1) + (stg != 0) + (modality != 1))


def test_all_off_is_the_denoiser_bit_for_bit():
    parts = {"cfg": lambda d: ClassifierFree(d, 1.0), "never": lambda d: NegativeCondition(d, 1, 3.0, (0.0, 1e-9))}
    found = SummedContrasts(exact(), parts, 0.7)(x, t, y)
    assert torch.equal(found.x_0, exact()(x, t, y).x_0) and torch.equal(found.eps, exact()(x, t, y).eps)


def test_one_part_is_that_contrast():
    guided = SummedContrasts(exact(), {"cfg": lambda d: ClassifierFree(d, 3.0)})
    sampler = Heun(5, UniformLogSNR())
    times = sampler.times(guided)
    found, expected = (sampler(d, x, times, y) for d in (guided, ClassifierFree(exact(), 3.0)))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert guided.needs_null and guided.uses_condition


@pytest.mark.parametrize("parts, sentence", [
    ({}, "parts is empty"), ({"momentum": MomentumGuidance}, "parts.momentum must be a contrast"),
    ({"apg": lambda d: ClassifierFree(d, 2.0, EVERYWHERE, APG(0.0, math.inf, -0.5))}, "parts.apg depends on earlier"),
])  # fmt: skip
def test_parts_that_cannot_be_added(parts, sentence):
    with pytest.raises(ValueError, match=sentence):
        SummedContrasts(exact(), parts)


def test_noise_on_the_condition_cannot_be_added():
    with pytest.raises(ValueError, match="parts.cads depends on earlier"):
        SummedContrasts(network(), {"cads": CADS})
