"""Denoisers under other schedules, forms of t and y, wrappers and counters."""

import math

import pytest
import torch
from closed_forms import ExactMixture, two_classes
from torch import nn

from diffguide.backbones import MLP
from diffguide.guidance import ClassifierFree
from diffguide.models.evaluation_counters import EvaluationCounter
from diffguide.models.parameterizations import EDM, X0, Eps, Flow, V
from diffguide.models.preconditioned import Preconditioned
from diffguide.models.protocols import Denoiser, DenoiserWrapper
from diffguide.schedules import EDM as EDMSchedule
from diffguide.schedules import Cosine
from diffguide.schedules import Flow as FlowSchedule

PARAMETERIZATIONS = {"x0": X0(), "eps": Eps(), "v": V(), "flow": Flow(), "edm": EDM(0.5)}
every_parameterization = pytest.mark.parametrize("parameterization", PARAMETERIZATIONS.values(), ids=PARAMETERIZATIONS)
t = torch.tensor(0.4, dtype=torch.float64)
x, y = torch.randn(6, 3, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 3, -1, 0])


@pytest.fixture
def backbone():
    """A random network whose output depends on everything: the zero-initialised last layer is drawn too."""
    torch.manual_seed(0)
    network = MLP(3, None, num_classes=4, width=16, layers=2, fourier_features=4, fourier_scale=0.5).eval()
    nn.init.normal_(network.linear_out.weight, std=0.3)
    return network.requires_grad_(False)


@pytest.mark.parametrize("log_snr", [-6.0, -1.0, 0.5, 6.0])
@pytest.mark.parametrize("other", [EDMSchedule(12.4, -8.8), FlowSchedule(12.0, -12.0)], ids=["edm", "flow"])
@every_parameterization
def test_a_network_is_valid_under_another_schedule(backbone, parameterization, other, log_snr):
    """At equal log-SNR and rescaled x_t, x_0 and eps are the same, since the network gets the log-SNR, not t."""
    schedule = Cosine(12.0, -10.0)
    here = Preconditioned(backbone, schedule, parameterization, has_null=True)
    there = Preconditioned(backbone, other, parameterization, has_null=True)
    t, t_there = (s.t_of(torch.tensor(log_snr)) for s in (schedule, other))
    scale = other.alpha_sigma(t_there)[0] / schedule.alpha_sigma(t)[0]
    for found, expected in zip(there(scale * x, t_there, y), here(x, t, y)):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@every_parameterization
def test_prediction_agrees_with_x_t(backbone, parameterization):
    denoiser = Preconditioned(backbone.double(), Cosine(12.0, -10.0), parameterization, has_null=True)
    t = torch.tensor([0.05, 0.2, 0.4, 0.6, 0.8, 0.95], dtype=torch.float64)
    alpha, sigma = denoiser.schedule.alpha_sigma(t, 2)
    prediction = denoiser(x.double(), t, y)
    torch.testing.assert_close(alpha * prediction.x_0 + sigma * prediction.eps, x.double(), rtol=1e-11, atol=1e-11)


def test_eps_is_refused_at_zero_terminal_snr(backbone):
    with pytest.raises(ValueError, match="eps .* zero terminal SNR.*finite log_snr_min"):
        Preconditioned(backbone, FlowSchedule(12.0, -math.inf), Eps(), has_null=True)


@pytest.mark.parametrize("name", ["x0", "v", "flow", "edm"])
def test_predictions_at_pure_noise_are_finite(backbone, name):
    denoiser = Preconditioned(backbone, FlowSchedule(12.0, -math.inf), PARAMETERIZATIONS[name], has_null=True)
    for t in (torch.tensor(1.0, dtype=torch.float64), torch.ones(6, dtype=torch.float64)):
        assert all(bool(field.isfinite().all()) for field in denoiser(x, t, y))


@every_parameterization
def test_one_time_is_that_time_in_every_row(backbone, parameterization):
    denoiser = Preconditioned(backbone, Cosine(12.0, -10.0), parameterization, has_null=True)
    for single, filled in zip(denoiser(x, t, y), denoiser(x, t.expand(6), y)):
        torch.testing.assert_close(single, filled, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("time", [t, t.expand(6)], ids=["0-d", "[B]"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_prediction_has_the_dtype_of_x(backbone, time, dtype):
    """Although time and coefficients are float64."""
    denoiser = Preconditioned(backbone.to(dtype), Cosine(12.0, -10.0), V(), has_null=True)
    assert [field.dtype for field in denoiser(x.to(dtype), time, y)] == [dtype, dtype]


def test_no_condition_is_minus_one_everywhere(backbone):
    denoiser = Preconditioned(backbone, Cosine(12.0, -10.0), V(), has_null=True)
    none, minus_one, classes = denoiser(x, t), denoiser(x, t, torch.full((6,), -1)), denoiser(x, t, y.clamp(min=0))
    assert torch.equal(none.x_0, minus_one.x_0) and torch.equal(none.eps, minus_one.eps)
    assert not torch.allclose(none.x_0, classes.x_0)


def test_the_info_of_a_network_is_that_of_its_backbone(backbone):
    schedule = Cosine(12.0, -10.0)
    denoiser = Preconditioned(backbone, schedule, V(), has_null=False)
    facts = (denoiser.schedule, denoiser.levels, denoiser.num_classes, denoiser.has_null)
    assert facts == (schedule, None, 4, False)


def test_a_network_without_classes_has_the_null_condition():
    network = MLP(3, None, num_classes=0, width=8, layers=1, fourier_features=0, fourier_scale=1.0)
    assert Preconditioned(network, Cosine(12.0, -10.0), V(), has_null=False).has_null


class Remembering(Denoiser):
    """Returns a new object from `start`, as a stateful method does."""

    schedule, levels, num_classes, has_null = Cosine(12.0, -10.0), torch.tensor([1.0, 0.5]), 0, True
    conditional = True

    def __init__(self):
        self.started_with = None

    def start(self, noise, times):
        fresh = Remembering()
        fresh.started_with = noise, times
        return fresh


WRAPPERS = [DenoiserWrapper, EvaluationCounter, lambda inner: ClassifierFree(inner, 2.0, (0.0, math.inf))]
every_wrapper = pytest.mark.parametrize("wrap", WRAPPERS, ids=["wrapper", "counter", "cfg"])


@every_wrapper
def test_wrappers_forward_info(wrap):
    inner, outer = Remembering(), wrap(Remembering())
    assert outer.info == inner.info and all(
        getattr(outer, name) is value for name, value in inner.info._asdict().items()
    )


@every_wrapper
def test_start_returns_a_copy_and_starts_the_wrapped_denoiser(wrap):
    inner = Remembering()
    outer, times = wrap(inner), torch.tensor([1.0, 0.0])
    started = outer.start("noise", times)
    assert started is not outer and type(started) is type(outer)
    assert started.denoiser.started_with == ("noise", times)
    assert outer.denoiser is inner and inner.started_with is None
    assert DenoiserWrapper(outer).start("noise", times).denoiser.denoiser.started_with == ("noise", times)


def test_start_of_a_denoiser_without_state_returns_the_same_object():
    denoiser = ExactMixture(two_classes(), Cosine(12.0, -10.0))
    assert denoiser.start(None, torch.tensor([1.0, 0.0])) is denoiser


@pytest.mark.parametrize("scale, per_row", [(1.0, 1), (0.0, 1), (2.5, 2)])
def test_the_counter_counts_rows(scale, per_row):
    counter = EvaluationCounter(ExactMixture(two_classes(), Cosine(12.0, -10.0)))
    guided = ClassifierFree(counter, scale, (0.0, math.inf)).start(None, torch.tensor([1.0, 0.0]))
    guided(torch.zeros(5, 2), t, torch.tensor([0, 1, 1, -1, 0]))
    assert counter.tally.evaluations == 5 * per_row, "copies made by start count together"
    counter(torch.zeros(3, 2), t)
    assert counter.tally.evaluations == 5 * per_row + 3


def test_counting_does_not_change_predictions():
    denoiser = ExactMixture(two_classes(), Cosine(12.0, -10.0))
    prediction, counted = denoiser(x[:, :2], t), EvaluationCounter(denoiser)(x[:, :2], t)
    assert torch.equal(prediction.x_0, counted.x_0) and torch.equal(prediction.eps, counted.eps)
