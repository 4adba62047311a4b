"""The error of jumps: closed forms for an exact network with an error of known size, and the guided flow itself."""

import math

import pytest
import torch
from exact_jumps import SCHEDULE, JumpBackbone

from diffguide.backbones import MLP
from diffguide.datasets import GMM2D, Dataset, Mixture, Split
from diffguide.evaluation.flow_map import FlowMapError
from diffguide.evaluation.metric import EvalContext
from diffguide.guidance import APG, ClassifierFree
from diffguide.models.jumps import JumpModel
from diffguide.models.parameterizations import V
from diffguide.models.preconditioned import Preconditioned
from diffguide.oracles import GMM2DLaw, flow_map

VARIANCE = 0.3
CLASS = Mixture(2, None, 1, [1.0], [[0.0, 0.0]], [[[VARIANCE, 0.0], [0.0, VARIANCE]]], [0], 10, 12, 12)


class OffBackbone(JumpBackbone):
    """The exact jump of N(0, v), where guidance changes nothing; its output is off by `offset` times the scale."""

    def __init__(self, offset: float):
        super().__init__()
        self.offset = offset

    def forward(self, x, numbers, y):
        log_snr, target, scale = numbers.double().unbind(1)
        n_t, n_s = torch.exp(-log_snr / 2), torch.exp(-target / 2)
        alpha, sigma = SCHEDULE.normalisation(log_snr)
        ratio = ((VARIANCE + n_s**2) / (VARIANCE + n_t**2)).sqrt()
        eps = (ratio - 1) / (n_s - n_t) / alpha
        output = (alpha * eps - sigma * (1 / alpha - n_t * eps))[:, None] * x
        return (output + self.offset * scale[:, None]).to(x)


def context(backbone, data=CLASS, has_null=True, **facts):
    return EvalContext(JumpModel(backbone, SCHEDULE, V(), has_null, (1.0, 4.0), **facts), data)


def test_an_error_of_the_network_grows_with_the_angle_of_the_jump():
    """F + c changes x_s by c sin(phi_t - phi_s), where tan(phi) = sigma / alpha."""
    found = FlowMapError(times=2, exact=10, tolerance=1e-5).measure(context(OffBackbone(0.1)))
    angle = [math.atan(math.exp(-float(SCHEDULE.log_snr(torch.tensor(t))) / 2)) for t in (0.0, 0.5, 1.0)]
    pairs = [(2, 0), (2, 1), (1, 0)]
    assert [(row["scale"], row["time"], row["end"]) for row in found.curve] == [
        (scale, k / 2, j / 2) for scale in (1.0, 2.5, 4.0) for k, j in pairs
    ]
    expected = [0.1 * scale * math.sin(angle[k] - angle[j]) for scale in (1.0, 2.5, 4.0) for k, j in pairs]
    assert [row["error"] for row in found.curve] == pytest.approx(expected, rel=1e-3)
    assert found.figures["one_call_2.5"].value == pytest.approx(expected[3], rel=1e-3)
    squares = [(expected[3 * k] ** 2 + expected[3 * k + 1] ** 2) / 2 for k in range(3)]
    squares += [expected[3 * k + 2] ** 2 for k in range(3)]
    assert found.figures["error"].value == pytest.approx(math.sqrt(sum(squares) / 6), rel=1e-3)
    assert found.facts["scales"] == [1.0, 2.5, 4.0]


def test_the_exact_network_has_no_error_and_the_way_is_that_of_the_flow():
    found = FlowMapError(times=1, exact=2000, scales=[1.0]).measure(context(OffBackbone(0.0)))
    (row,) = found.curve
    assert row["error"] < 1e-5
    low, high = math.exp(-10.0), math.exp(8.0)  # n^2 at both ends; z is scaled from one standard deviation to the other
    spread = [math.sqrt((VARIANCE + square) / (1 + square)) for square in (low, high)]
    assert row["error"] / row["relative"] == pytest.approx(spread[1] - spread[0], rel=0.1)
    without = FlowMapError(times=1, exact=10, scales=[1.0], conditional=False)
    assert without.measure(context(OffBackbone(0.0))).facts["given_class"] is False


class GuidedFlow(JumpBackbone):
    """The exact guided flow of gmm2d at the scale that the network gets."""

    num_classes = 4

    def forward(self, x, numbers, y):
        log_snr, target, scale = numbers.double()[0]
        guided = ClassifierFree(GMM2DLaw(SCHEDULE), float(scale))
        t, s = SCHEDULE.t_of(log_snr).clamp(0, 1), SCHEDULE.t_of(target).clamp(0, 1)
        x_t = x.double()
        x_s = flow_map(guided, x_t, t, s, y, 1e-6)
        (a, b), (c, d) = SCHEDULE.alpha_sigma(t), SCHEDULE.alpha_sigma(s)
        eps = (x_s / c - x_t / a) / (d / c - b / a)
        return (a * eps - b * (x_t - b * eps) / a).to(x)


def test_the_flow_is_guided_at_the_scale_of_the_network():
    data = GMM2D(2, None, 4, 10, 12, 12, 0)
    metric = FlowMapError(times=1, exact=10, scales=[3.0], tolerance=1e-5)
    assert metric.measure(context(GuidedFlow(), data)).figures["error"].value < 1e-3
    unguided = FlowMapError(times=1, exact=10, scales=[3.0], guidance=lambda law: Fixed(law), tolerance=1e-5)
    assert unguided.measure(context(GuidedFlow(), data)).figures["error"].value > 0.05


class Fixed(ClassifierFree):
    """Guidance that stays at the scale 1."""

    scale = property(lambda self: 1.0, lambda self, value: None)


@pytest.mark.parametrize(
    "metric, found, reason",
    [
        (FlowMapError(), context(OffBackbone(0.0), jumps=False), "a network that jumps"),
        (FlowMapError(scales=[5.0]), context(OffBackbone(0.0)), "1 to 4"),
        (FlowMapError(guidance=lambda law: ClassifierFree(law, rule=APG(momentum=-0.5))), context(OffBackbone(0.0)), "no flow"),
        (FlowMapError(guidance=lambda law: law), context(OffBackbone(0.0)), "has no scale"),
        (FlowMapError(conditional=False), context(OffBackbone(0.0), has_null=False), "conditional=false"),
        (
            FlowMapError(),
            context(OffBackbone(0.0), Dataset(*[Split(torch.zeros(12, 2), torch.zeros(12).long())] * 3, class_names=("0",))),
            "known distribution",
        ),
        (FlowMapError(), EvalContext(Preconditioned(MLP(2), SCHEDULE, V(), False), CLASS), "a network of two times"),
    ],
)  # fmt: skip
def test_what_has_no_flow_map_is_refused(metric, found, reason):
    with pytest.raises(ValueError, match=reason):
        metric.check(found)


def test_a_guidance_without_a_scale_is_measured_at_1():
    found = FlowMapError(times=1, exact=10, scales=[1.0], guidance=lambda law: law)
    check = context(OffBackbone(0.0))
    found.check(check)
    assert found.measure(check).figures["error"].value < 1e-5
