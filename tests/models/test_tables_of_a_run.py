"""In a run, a network's coefficients and a guidance's scales are computed once per time, and the samples keep every bit."""

import math
import pickle

import pytest
import torch
from all_samplers import SAMPLERS
from all_schedules import SCHEDULES, counted
from networks import lively, mlp, unet

from diffguide.guidance import (
    APG,
    CADS,
    Autoguidance,
    CFGPlusPlus,
    CFGZero,
    ClassifierFree,
    CosineRamp,
    Linear,
    Mambo,
    Rescale,
    Threshold,
)
from diffguide.guidance.potentials import PotentialGuidance
from diffguide.models.parameterizations import EDM, X0, Eps, Flow, Score, V
from diffguide.models.preconditioned import Preconditioned
from diffguide.models.protocols import DenoiserWrapper, Prediction, StackedPrediction
from diffguide.randomness import Noise
from diffguide.samplers import DDIM, Heun, generate
from diffguide.schedules import Cosine

GRID = torch.linspace(1, 0, 6, dtype=torch.float64)
BETWEEN = torch.tensor(0.4321, dtype=torch.float64)
LABELS = [0, 1, -1]
PARAMETERIZATIONS = [X0(), Eps(), Score(), V(), Flow(), EDM(0.7)]


class Untabulated(DenoiserWrapper):
    """The denoiser without tables: a run calls it as everybody may."""

    def start(self, noise, times):
        return self

    def __call__(self, x_t, t, y=None):
        return self.denoiser(x_t, t, y)


def network(schedule=None, parameterization=None, backbone=None) -> Preconditioned:
    torch.manual_seed(0)
    backbone = lively(backbone or mlp())
    return Preconditioned(backbone, schedule or Cosine(), parameterization or V(), has_null=True).eval()


def draw(denoiser, sampler, dtype=torch.float32, shape=(2,), seeds=3):
    return torch.cat(list(generate(denoiser, sampler, range(seeds), LABELS[:seeds], shape, 2, dtype=dtype)))


def points(n=3, dtype=torch.float32):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(1), dtype=dtype)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("name", ["cosine", "flow", "linear", "edm", "sub_vp", "resolution_shift", "monotone"])
def test_a_started_network_predicts_the_same_bits(name, parameterization):
    model = network(SCHEDULES[name], parameterization)
    run = model.start(None, GRID)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        x, y = points(dtype=dtype), torch.tensor(LABELS)
        model, run = ((part.double() if dtype == torch.float64 else part) for part in (model, run))
        for t in [*GRID, BETWEEN, GRID[:3]]:
            plain, found = model(x, t, y), run(x, t, y)
            assert torch.equal(plain.x_0, found.x_0) and torch.equal(plain.eps, found.eps)
            assert isinstance(found, StackedPrediction) == (t.ndim == 0 and t is not BETWEEN)


@pytest.mark.parametrize("make", SAMPLERS.values(), ids=SAMPLERS)
def test_every_sampler_keeps_every_bit(make):
    guided = ClassifierFree(network(), 2.5, (0.2, 4.0))
    plain = ClassifierFree(Untabulated(network()), 2.5, (0.2, 4.0))
    plain.start = lambda noise, times: plain
    assert torch.equal(draw(guided, make(5)), draw(plain, make(5)))


RULES = {
    "linear": {"rule": Linear()},
    "cfgpp": {"rule": CFGPlusPlus(), "scale": 0.7},
    "mambo": {"rule": Mambo()},
    "rescale": {"rule": Rescale()},
    "threshold": {"rule": Threshold()},
    "apg": {"rule": APG()},
    "cfg_zero": {"rule": CFGZero()},
    "ramp": {"rule": Linear(), "ramp": CosineRamp(20.0, 0.5)},
    "off": {"scale": 1.0},
    "weak": {"scale": 0.0},
}


@pytest.mark.parametrize("options", RULES.values(), ids=RULES)
def test_every_rule_keeps_every_bit(options):
    """Against the same guidance outside a run, one call at a time: it has no table, and neither has its network."""
    options = {"scale": 2.2, "interval": (0.1, 20.0)} | options
    guided = ClassifierFree(network(), **options)
    run, plain = guided.start(None, GRID), ClassifierFree(Untabulated(network()), **options).start(None, GRID)
    plain.table = plain.full = None
    x, y = points(), torch.tensor(LABELS)
    for t in [*GRID[:-1], BETWEEN]:
        found, wanted = run(x, t, y), plain(x, t, y)
        assert torch.equal(found.x_0, wanted.x_0) and torch.equal(found.eps, wanted.eps)


def test_cads_autoguidance_and_gradients_keep_every_bit():
    model, guide = network(), network(SCHEDULES["flow"], Eps())
    for wrap in (
        lambda m, g: CADS(m, 2.0),
        lambda m, g: Autoguidance(m, g, 2.0),
        lambda m, g: Autoguidance(m, m, 2.0),
        lambda m, g: PotentialGuidance(m, scale=0.3, interval=(0.1, 9.0)),
    ):
        plain = wrap(Untabulated(model), Untabulated(guide))
        assert torch.equal(draw(wrap(model, guide), DDIM(4)), draw(plain, DDIM(4)))


def test_images_keep_every_bit():
    model = network(backbone=unet())
    guided, plain = ClassifierFree(model, 2.0), ClassifierFree(Untabulated(model), 2.0)
    assert torch.equal(draw(guided, Heun(3), shape=(1, 8, 8)), draw(plain, Heun(3), shape=(1, 8, 8)))


def test_a_run_evaluates_the_schedule_once_per_time_of_the_grid():
    """36 calls of Heun's 18 steps with guidance: 19 evaluations, none in the next batch over the same grid."""
    schedule, calls = counted(Cosine())
    ramps = []
    guided = ClassifierFree(network(schedule), 2.0, (0.0, math.inf), ramp=CosineRamp(20.0, 0.5))
    guided.ramp.__dict__["progress"] = lambda level, progress=guided.ramp.progress: ramps.append(1) or progress(level)
    sampler, single = Heun(18), lambda: sum(shape == () for shape in calls)
    times = sampler.times(guided)
    noise = Noise(range(3), (2,), schedule)
    x = sampler.begin(guided, times, noise)
    calls.clear()
    for batch in (1, 2):
        sampler(guided, x, times, torch.tensor(LABELS), noise)
        assert single() == 19 and len(ramps) == batch * 19


def test_coefficients_follow_a_changed_parameterization_schedule_or_label():
    model, x = network(parameterization=EDM(0.5)), points()
    y = torch.tensor([0, 1, 0])

    def check():
        run = ClassifierFree(model, 2.0).start(None, GRID)
        for t in GRID[1:3]:
            wanted = ClassifierFree(model, 2.0)(x, t, y)
            assert torch.equal(run(x, t, y).x_0, wanted.x_0)
        return run

    first = check()
    model.parameterization.sigma_data = 0.9
    check()
    model.parameterization = V()
    check()
    model.schedule.end = 0.9
    check()
    model.schedule = SCHEDULES["flow"]
    last = check()
    y[0] = 2
    assert torch.equal(last(x, GRID[1], y).x_0, ClassifierFree(model, 2.0)(x, GRID[1], y).x_0)
    assert first.denoiser is not last.denoiser and model.schedule is SCHEDULES["flow"]


def test_a_run_shares_the_network_and_leaves_the_model_as_it_was():
    model = network()
    before = {name: id(value) for name, value in model.named_parameters()}
    run = model.start(None, GRID)
    assert {name: id(value) for name, value in run.named_parameters()} == before and model.table is None
    assert run.schedule is not model.schedule and list(run.state_dict()) == list(model.state_dict())


def test_shapes_of_batches_do_not_add_up():
    run = network().start(None, GRID)
    for n in range(1, 9):
        run(points(n), GRID[1])
    assert len(run.table) <= 4


def test_a_gradient_goes_through_a_started_network():
    model, y = network(), torch.tensor(LABELS)
    run = model.start(None, GRID)
    found, wanted = (
        torch.func.vjp(lambda x, m=m: m(x, GRID[2], y).x_0, points())[1](points())[0] for m in (run, model)
    )
    assert torch.equal(found, wanted)
    whole = torch.func.vjp(lambda x: run(x, GRID[2], y), points())
    assert torch.equal(whole[1](whole[0])[0], torch.func.vjp(lambda x: model(x, GRID[2], y), points())[1](whole[0])[0])
    x = points().requires_grad_()
    grads = [torch.autograd.grad(m(x, GRID[2], y).eps.square().sum(), x)[0] for m in (run, model)]
    torch.testing.assert_close(*grads)
    with torch.inference_mode():
        fresh = model.start(None, GRID)
        fresh(points().clone(), GRID[1], y)
    fresh(x, GRID[1], y).x_0.sum().backward()


def test_a_stacked_prediction_is_a_prediction():
    stack = torch.arange(12.0).reshape(2, 3, 2)
    one = StackedPrediction(stack)
    x_0, eps = one
    assert isinstance(one, Prediction) and torch.equal(x_0, stack[0]) and torch.equal(eps, stack[1])
    assert torch.equal(one[1], one.eps) and len(one) == 2 and one.dtype == torch.float32
    plain, again = Prediction(*one), pickle.loads(pickle.dumps(one))
    assert torch.equal(plain.x_0, one.x_0) and torch.equal(again.eps, one.eps)
    assert torch.equal(one._replace(eps=x_0).eps, x_0) and repr(one) == repr(plain)
