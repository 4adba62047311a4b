"""Guidances within guidances: rows that come as several conditions at once, memories, gradients, what cannot be."""

import math

import pytest
import torch
from closed_forms import two_classes
from exact_models import oracle
from networks import lively, mlp
from potential_laws import Towards

from diffguide.guidance import (
    CADS,
    Autoguidance,
    ClassComposition,
    ClassifierFree,
    ClassifierGuidance,
    NegativeCondition,
    Nested,
    Unguided,
)
from diffguide.guidance.feedback import Feedback
from diffguide.guidance.flow_rules import SMC, VAGS, AdaMaG
from diffguide.guidance.norms import NormLimit, PosteriorMeanCap, RectifiedRatio
from diffguide.guidance.potentials import MPGD, PotentialGuidance
from diffguide.guidance.projections import APG, TCFG
from diffguide.guidance.ramps import LinearRamp
from diffguide.guidance.rules import CFGPlusPlus, CFGZero, Linear, Mambo, Rescale, Threshold
from diffguide.models.evaluation_counters import EvaluationCounter
from diffguide.models.parameterizations import V
from diffguide.models.preconditioned import Preconditioned
from diffguide.models.protocols import SamplingError
from diffguide.randomness import Noise
from diffguide.samplers import DDIM, Heun
from diffguide.samplers.grids import UniformLogSNR, UniformT
from diffguide.schedules import Cosine

EVERYWHERE, INF = (0.0, math.inf), math.inf
COSINE = Cosine(12.0, -10.0)
LAW = oracle(two_classes(), COSINE)
t = torch.tensor(0.45, dtype=torch.float64)
TIMES = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)
x = 1.5 * torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
y = torch.tensor([0, 1, -1, 0, 1, 0])
MOMENTUM = APG(0.0, INF, -0.5)


def close(found, expected, tolerance=1e-10):
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def network(seed=0, **changed) -> Preconditioned:
    model = Preconditioned(lively(mlp(**changed)).double(), COSINE, V(), True)
    for parameter in model.backbone.parameters():
        parameter.data *= 1 + 0.1 * seed
    return model


def test_momentum_inside_a_guidance_that_begins_and_ends():
    """Outside its interval the outer one asks for B rows, inside for 2 B: momentum begins anew there, and nothing crashes."""
    inner = ClassifierFree(LAW, 3.0, EVERYWHERE, MOMENTUM)
    levels = COSINE.noise_level(torch.tensor([0.75, 0.35], dtype=torch.float64))
    outer = ClassifierFree(inner, 0.5, (float(levels[1]), float(levels[0])), CFGPlusPlus())
    run = outer.start(None, TIMES)
    for level in (0.9, 0.8, 0.6, 0.5, 0.3, 0.2):
        time = torch.tensor(level, dtype=torch.float64)
        found = run(x, time, y)
        if level in (0.9, 0.6, 0.3):  # the first of its rows: as without a past
            close(found, outer.start(None, TIMES)(x, time, y))
        else:
            assert float((found.x_0 - outer.start(None, TIMES)(x, time, y).x_0).abs().max()) > 1e-6
    sampler = Heun(8, UniformLogSNR())
    assert sampler(outer, x, sampler.times(outer), y).isfinite().all()


def test_runs_of_one_guidance_are_independent():
    """Begun from the same object and walked in turn: each is as it is alone, and has the first steps of its own grid."""
    guided = ClassifierFree(LAW, 3.0, EVERYWHERE, MOMENTUM)
    levels = torch.tensor([0.8, 0.6, 0.5], dtype=torch.float64)
    one, other = (guided.start(None, TIMES) for _ in range(2))
    alone = ClassifierFree(LAW, 3.0, EVERYWHERE, MOMENTUM).start(None, TIMES)
    for time in levels:
        close(one(x, time, y), alone(x, time, y), 0)
        other(x - 1, time - 0.05, y)
    zero = ClassifierFree(LAW, 3.0, EVERYWHERE, CFGZero(1))
    early, late = zero.start(None, torch.tensor([1.0, 0.9, 0.0])), zero.start(None, torch.tensor([1.0, 0.2, 0.0]))
    close(early(x, t, y), zero(x, t, y), 0)
    assert float((late(x, t, y).x_0 - zero(x, t, y).x_0).abs().max()) > 1e-3


@pytest.mark.parametrize("rule", [MOMENTUM, SMC(), Feedback()])
def test_a_memory_under_a_potential_keeps_no_graph(rule):
    """What a level hands on is a constant: its graph would grow with every step."""
    inner = ClassifierFree(LAW, 3.0, EVERYWHERE, rule)
    run = PotentialGuidance(inner, Towards(0.3, 1.0), 1.0, EVERYWHERE).start(None, TIMES)
    for level in (0.8, 0.6):
        run(x, torch.tensor(level, dtype=torch.float64), y)
    assert run.denoiser.memory.now and not any(value.requires_grad for value in run.denoiser.memory.now)


RULES = {
    "linear": Linear(), "rescale": Rescale(0.7), "apg": APG(0.2, 0.4, 0.0), "apg-unlimited": APG(0.0, INF, 0.0),
    "cfg_zero": CFGZero(0), "tcfg": TCFG(), "mambo_g": Mambo(2.0), "threshold": Threshold(0.9), "cfgpp": CFGPlusPlus(),
    "smc_cfg": SMC(), "adamag": AdaMaG(), "vags": VAGS(), "pmc_cfg": PosteriorMeanCap(), "norm_limit": NormLimit(),
    "recfg": RectifiedRatio(), "fbg": Feedback(0.9),
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_gradients_pass_through_every_rule(rule):
    """By finite differences, in rows without a class too, where both sides are one; so a potential may stand around it."""
    guided, classes = ClassifierFree(LAW, 0.6, EVERYWHERE, rule), torch.tensor([0, -1, 1])
    for field in (0, 1):
        assert torch.autograd.gradcheck(
            lambda x: guided(x, t, classes)[field], x[:3].clone().requires_grad_(), rtol=1e-4, atol=1e-6
        )
    outer = PotentialGuidance(guided, Towards(0.3, 1.0), 1.0, EVERYWHERE)
    assert outer(x[:3], t, classes).x_0.isfinite().all()


def test_a_ramp_of_cfgpp_multiplies_lambda():
    """Where none of it acts it is the unconditional model; between, lambda r."""
    ramp = LinearRamp(8.0, 0.5)
    guided = ClassifierFree(LAW, 0.6, EVERYWHERE, CFGPlusPlus(), ramp)
    for level, r in ((9.0, 0.0), (2.0, 0.5), (0.4, 1.0)):
        time = COSINE.t_of(torch.tensor(-2 * math.log(level), dtype=torch.float64))
        strong, weak = LAW(x, time, y), LAW(x, time)
        expected = weak.x_0 + 0.6 * r * (strong.x_0 - weak.x_0), weak.eps
        close(guided(x, time, y), expected, 1e-8)
        close(guided(x, time.expand(6), y), expected, 1e-8)


def noised(denoiser, scale=2.0) -> CADS:
    return CADS(denoiser, scale, EVERYWHERE, strength=0.5, clean=0.1, noisy=8.0, psi=1.0)


def begun(guided, seeds=range(6)):
    return guided.start(Noise(seeds, (2,), COSINE, dtype=torch.float64), TIMES)


@pytest.mark.parametrize(
    "outer",
    [
        lambda d: ClassifierFree(d, 1.5, EVERYWHERE),
        lambda d: NegativeCondition(d, 1, 1.5, EVERYWHERE),
        lambda d: ClassComposition(d, [0, 2], [1.0, -0.5], 1.5, EVERYWHERE),
    ],
    ids=["cfg", "negative", "compose"],
)
def test_noise_on_the_condition_inside_a_contrast(outer):
    """The outer one's conditions come as one batch: each sample has its noise in all of them."""
    inner = noised(network())
    run = begun(outer(inner))
    found = run(x, t, y)
    part = begun(outer(inner), seeds=[3])(x[3:4], t, y[3:4])
    for field, alone in zip(found, part):
        torch.testing.assert_close(field[3:4], alone, rtol=1e-9, atol=1e-9)


def test_noise_on_the_condition_around_a_negative_one():
    """The unwanted class is embedded too, without noise."""
    model = network()
    inner = NegativeCondition(model, 1, 1.5, EVERYWHERE)
    found = begun(noised(inner, 1.0))(x, t, y)
    vectors = begun(noised(model, 1.0)).add_noise(t, y)
    strong, weak = model(x, t, vectors), model(x, t, torch.ones(6, dtype=torch.long))
    close(found, [b + 1.5 * (a - b) for a, b in zip(strong, weak)])


@pytest.mark.parametrize(
    "make, sentence",
    [
        (lambda: noised(ClassComposition(network(), [0], [1.0], 2.0, EVERYWHERE)), "needs a model with classes"),
        (lambda: noised(Autoguidance(network(), network(1), 2.0, EVERYWHERE)), "list cads before"),
        (lambda: ClassifierFree(ClassComposition(network(), [0], [1.0])), "needs a model with classes"),
        (
            lambda: NegativeCondition(ClassComposition(network(), [0], [1.0], 2.0, EVERYWHERE), 0, 2.0, EVERYWHERE),
            "needs a model with classes",
        ),
    ],
)
def test_what_would_be_ignored_is_refused(make, sentence):
    """A condition that the inner guidance does not read, or reads by another table, is no contrast."""
    with pytest.raises(ValueError, match=sentence):
        make()


def test_autoguidance_needs_a_null_condition_of_both_models():
    """A guide that never dropped its label cannot be asked without one."""
    guide = Preconditioned(lively(mlp()).double(), COSINE, V(), has_null=False)
    auto = Autoguidance(network(), guide, 2.0, EVERYWHERE)
    assert not auto.has_null and Autoguidance(network(), network(1), 2.0, EVERYWHERE).has_null
    with pytest.raises(ValueError, match="train with guidance=cfg"):
        ClassifierFree(auto, 2.0, EVERYWHERE)


def test_nested_forwards_the_needs_of_its_parts():
    """So that a network which ignores its condition is found out; guidance without conditions is not asked."""
    free, plain = (
        (lambda d: ClassifierFree(d, 2.0, EVERYWHERE)),
        (lambda d: MPGD(d, Towards(0.0, 1.0), 0.1, EVERYWHERE)),
    )
    both = Nested(LAW, {"pull": plain, "free": free, "push": plain})
    assert both.uses_condition and both.needs_null and not Nested(LAW, {"pull": plain}).uses_condition
    assert NegativeCondition(LAW, 1, 2.0, EVERYWHERE).uses_condition and not Unguided.uses_condition
    assert not Nested.needs_null and not ClassifierGuidance.uses_condition


def test_a_compiled_network_is_not_differentiated():
    """Its gradient of a gradient would fail deep inside, or be wrong: a sentence, also through wrappers and a guide."""
    model, compiled = network(), network(1)
    compiled.backbone.compile(backend="eager")
    wrapped = [
        compiled,
        EvaluationCounter(compiled),
        ClassifierFree(compiled, 2.0, EVERYWHERE),
        Autoguidance(model, compiled, 2.0, EVERYWHERE),
    ]
    for denoiser in wrapped:
        with pytest.raises(SamplingError, match="compile=false"):
            PotentialGuidance(denoiser, Towards(0.0, 1.0), 1.0, EVERYWHERE)(x, t, y)
        assert MPGD(denoiser, Towards(0.0, 1.0), 0.1, EVERYWHERE)(x, t, y).x_0.isfinite().all()
    assert not network().is_compiled and PotentialGuidance(model, Towards(0.0, 1.0), 1.0, EVERYWHERE)(x, t, y)


def test_first_steps_of_cfg_zero_inside_a_contrast():
    """Still in the first steps whatever the number of rows, and for a guide by its own clock."""
    inner = ClassifierFree(LAW, 2.0, EVERYWHERE, CFGZero(1))
    outer = ClassifierFree(inner, 1.5, EVERYWHERE)
    sampler, seen = DDIM(4, UniformT(), eta=0.0), []
    sampler(outer, x, sampler.times(outer), y, on_step=lambda k, at: seen.append(at))
    assert torch.equal(seen[0], x) and not torch.equal(seen[1], x)
