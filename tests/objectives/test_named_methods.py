"""What the methods of few steps add to flow maps: the exact map is a fixed point, and formulas are those of the papers."""

import math

import numpy
import pytest
import torch
from exact_jumps import SCHEDULE, ExactBackbone, Teacher, exact_pair
from torch import nn

from diffguide.backbones.mlp import MLP
from diffguide.guidance import ClassifierFree, Distilled
from diffguide.models.jumps import JumpModel
from diffguide.models.parameterizations import EDM, V
from diffguide.models.protocols import Prediction
from diffguide.objectives.distances import Adaptive, PseudoHuber
from diffguide.objectives.flow_fields import Noised, TeacherField
from diffguide.objectives.flow_map import FlowMap
from diffguide.objectives.jump_targets import MeanFlow, Progressive, Shortcut
from diffguide.objectives.levels import LogNormal
from diffguide.objectives.planned_targets import DiscretizedConsistency, NormalizedMeanFlow, TighteningConsistency
from diffguide.randomness import Share
from diffguide.schedules import VE, Cosine

GUIDED = Teacher(), ClassifierFree, (1.0, 4.0)


def draw(n=64, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, generator=rng, dtype=torch.float64), torch.zeros(n, dtype=torch.long), rng


class Shifted(ExactBackbone):
    """The exact network plus a parameter, 0, so that there is a gradient."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(3, dtype=torch.float64))

    def forward(self, x, numbers, y):
        return super().forward(x, numbers, y) + self.shift


def counted(target, images):
    target.count(images)
    return target


def fixed_point(jump, distance=None, teacher=GUIDED, **facts):
    """(The largest loss, the largest gradient) at the exact map."""
    network = Shifted()
    objective = FlowMap(
        network, SCHEDULE, *teacher, jump, distance=distance, **{"jump_share": 1.0, "p_uncond": 0.2} | facts
    )
    loss = objective(*draw()).per_example
    loss.mean().backward()
    return float(loss.detach().abs().max()), float(network.shift.grad.abs().max())


@pytest.mark.parametrize(
    "jump, distance",
    [
        (MeanFlow(own_field=True), Adaptive()),
        (MeanFlow(own_field=True), PseudoHuber()),
        (counted(NormalizedMeanFlow(0.2, 10), 10), None),
        (Shortcut(), Adaptive(0.5)),
    ],
)
def test_loss_and_gradient_are_0_at_the_exact_map(jump, distance):
    loss, gradient = fixed_point(jump, distance)
    assert loss < 1e-9 and gradient < 1e-7


def test_a_teacher_that_jumps_exactly_is_a_fixed_point_of_progressive_distillation():
    teacher = JumpModel(ExactBackbone(), SCHEDULE, V(), True, (1.0, 4.0))
    loss, gradient = fixed_point(Progressive(4), teacher=(teacher, Distilled, (1.0, 4.0)))
    assert loss < 1e-18 and gradient < 1e-9
    few, more = (fixed_point(Progressive(steps))[0] for steps in (200, 400))
    assert few / more == pytest.approx(
        4, rel=0.3
    )  # DDIM steps of a denoiser miss the flow, half as long ones half as much


@pytest.mark.parametrize(
    "build",
    [
        lambda stage: counted(DiscretizedConsistency(40, 1280, 1), stage),
        lambda stage: counted(TighteningConsistency(2.0, 0.0, 1.0, 1), 4 + stage),
    ],
    ids=["ict", "ect"],
)
def test_short_steps_of_the_field_err_by_the_square_of_their_length(build):
    losses = [fixed_point(build(stage), end_share=1.0)[0] for stage in (1, 2)]
    assert losses[0] / losses[1] == pytest.approx(16, rel=0.4)


def times(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_levels_of_ict_are_those_of_the_paper():
    """sigma_i of EDM, N(k) doubled from 10 to 1280, probabilities from erf."""
    schedule = VE(log_snr_max=-2 * math.log(0.002), log_snr_min=-2 * math.log(80.0))
    target = DiscretizedConsistency(10, 1280, 100)
    for images, steps in ((0, 10), (99, 10), (100, 20), (750, 1280), (10**6, 1280)):
        target.images.fill_(images)
        assert int(target.steps()) == steps
    target.images.fill_(100)
    grid = (0.002 ** (1 / 7) + numpy.arange(21) / 20 * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7
    t, _ = LogNormal(-1.1, 2.0)(schedule, 20000, torch.Generator().manual_seed(0))
    placed = target.place(t, schedule)
    levels = schedule.noise_level(placed).numpy()
    index = numpy.abs(levels[:, None] - grid).argmin(1)
    numpy.testing.assert_allclose(levels, grid[index], rtol=1e-9)
    below = schedule.noise_level(target.find_middle(placed, 0 * placed, schedule)).numpy()
    numpy.testing.assert_allclose(below, grid[index - 1], rtol=1e-9)
    erf = numpy.array([math.erf((math.log(level) + 1.1) / (2 * math.sqrt(2))) for level in grid])
    share = numpy.diff(erf) / (erf[-1] - erf[0])
    numpy.testing.assert_allclose(numpy.bincount(index, minlength=21)[1:] / 20000, share, atol=0.012)


def test_the_mapping_of_ect_is_that_of_the_paper():
    schedule, target = VE(), TighteningConsistency(2.0, 8.0, 1.0, 100)
    t = torch.linspace(0.05, 1, 9, dtype=torch.float64)
    n_t = schedule.noise_level(t).numpy()
    for stage in (0, 3):
        target.images.fill_(100 * stage + 50)
        expected = n_t * (1 - (1 + 8 / (1 + numpy.exp(n_t))) / 2 ** (stage + 1))
        low = float(schedule.noise_level_range[0])
        found = schedule.noise_level(target.find_middle(t, 0 * t, schedule)).numpy()
        numpy.testing.assert_allclose(found, numpy.maximum(expected, low), rtol=1e-6)


def test_the_pseudo_huber_loss_of_a_jump_is_that_of_its_ends():
    """(sqrt(||f(x_t) - f(x_m)||^2 + c^2) - c) / (n_t - n_m) in NumPy, f by the network, the pair (x_0, eps) of the example."""
    torch.manual_seed(0)
    schedule = VE(log_snr_max=8.0, log_snr_min=-4.0)
    backbone = MLP(3, num_classes=1, width=8, layers=1, further_inputs=2).double()
    nn.init.normal_(backbone.linear_out.weight)
    target = DiscretizedConsistency(10, 10, 1)
    objective = FlowMap(
        backbone,
        schedule,
        jump=target,
        jump_share=1.0,
        end_share=1.0,
        parameterization=EDM(0.5),
        distance=PseudoHuber(0.03),
    )
    found = objective(*draw(8)).per_example.detach().numpy()
    noised, _, s = objective.draw(*draw(8))
    m = target.find_middle(noised.t, s, schedule)
    n_t, n_m, n_s = (schedule.noise_level(time).numpy()[:, None] for time in (noised.t, m, s))
    ends = []
    for time, level in ((noised.t, n_t), (m, n_m)):
        x = noised.x_0 + torch.from_numpy(level) * noised.eps
        pair = objective.model.predict_jump(x, time, s, noised.y, noised.scale)
        ends.append((pair.x_0 + torch.from_numpy(n_s) * pair.eps).detach().numpy())
    c = 0.03 * math.sqrt(3)
    squares = ((ends[0] - ends[1]) ** 2).sum(1)
    numpy.testing.assert_allclose(found, (numpy.sqrt(squares + c**2) - c) / (n_t - n_m)[:, 0], rtol=1e-7, atol=1e-10)


def test_adaptive_losses_have_the_gradient_of_the_paper():
    squares = times(0.0, 0.3, 2.0).requires_grad_()
    loss = Adaptive(0.7, 0.1)(squares, squares, squares, 3)
    loss.sum().backward()
    numpy.testing.assert_allclose(squares.grad.numpy(), (squares.detach().numpy() + 0.1) ** -0.7)
    numpy.testing.assert_allclose(loss.detach().numpy(), squares.detach().numpy() * squares.grad.numpy())


@pytest.mark.parametrize("warm", [0.0, 0.5, 1.0])
def test_tangents_are_those_of_trig_flow(warm):
    """sCM, algorithm 1: g = -cos^2 (d F - dx/dt) - r cos sin (x + d dF/dt), F* = F + g / (||g|| + 0.1), by differences.

    Here x of TrigFlow is x_t d / sqrt(n^2 + d^2), its time atan(n / d), its F is -F of EDM.
    """
    torch.manual_seed(1)
    d, schedule = 0.5, VE(log_snr_max=24.0, log_snr_min=-4.0)  # the paper's jumps end at 0
    backbone = MLP(3, num_classes=1, width=8, layers=1, further_inputs=2).double()
    nn.init.normal_(backbone.linear_out.weight)
    model = JumpModel(backbone, schedule, EDM(d), False)
    x_0, eps = (torch.randn(5, 3, dtype=torch.float64) for _ in range(2))
    angle = times(0.3, 0.7, 1.0, 1.3, 1.5)
    target = counted(NormalizedMeanFlow(0.1 / d, 100), round(100 * warm))
    s = torch.zeros(5, dtype=torch.float64)
    y, scale = torch.zeros(5, dtype=torch.long), torch.ones(5, dtype=torch.float64)

    def network(place):
        """d F and x of TrigFlow on the path of the example."""
        n = d * place.tan()
        x = (x_0 + n[:, None] * eps) * place.cos()[:, None]
        t = schedule.t_of(-2 * n.log())
        pair = model.predict_jump(x_0 + n[:, None] * eps, t, s, y, scale)
        return (-(place.sin()[:, None] * pair.x_0 - place.cos()[:, None] * d * pair.eps)).detach(), x, t, n

    F, x, t, n = network(angle)
    h = 1e-5
    rate = (network(angle + h)[0] - network(angle - h)[0]) / (2 * h)
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    g = -(cos**2) * (F - (cos * d * eps - sin * x_0)) - warm * cos * sin * (x + rate)
    expected = F / d + g / (g.norm(dim=1, keepdim=True) + 0.1)
    batch = Noised(x_0, eps, x_0 + n[:, None] * eps, t, y, scale)
    found = target(batch, s, Prediction(x_0, eps), model)
    torch.testing.assert_close(-(sin * found.x_0 / d - cos * found.eps), expected, rtol=1e-4, atol=1e-4)


def test_the_derivative_is_along_the_own_field():
    """Improved MeanFlow: V = u + (t - r) du/dt with v(x, t, t) of the network, by differences along it."""
    torch.manual_seed(2)
    schedule = Cosine(6.0, -4.0)
    backbone = MLP(3, num_classes=1, width=8, layers=1, further_inputs=2).double()
    nn.init.normal_(backbone.linear_out.weight)
    model = JumpModel(backbone, schedule, V(), False)
    x_0, y, rng = draw(5)
    t, s = times(0.2, 0.4, 0.6, 0.8, 0.9), times(0.1, 0.0, 0.5, 0.2, 0.0)
    alpha, sigma = (part[:, None] for part in schedule.alpha_sigma(t))
    eps = torch.randn(5, 3, generator=rng, dtype=torch.float64)
    batch = Noised(x_0, eps, alpha * x_0 + sigma * eps, t, y, torch.ones(5, dtype=torch.float64))
    with torch.no_grad():
        v, h, ends = model.predict_jump(batch.x_t, t, t, y, batch.scale), 1e-5, []
        for place in (t - h, t + h):
            a, b = (part[:, None] for part in schedule.alpha_sigma(place))
            ends.append(model.predict_jump(a * v.x_0 + b * v.eps, place, s, y, batch.scale).eps)
        n = [schedule.noise_level(place)[:, None] for place in (t - h, t + h, t, s)]
        expected = eps - (n[2] - n[3]) * (ends[1] - ends[0]) / (n[1] - n[0])
    found = MeanFlow(own_field=True)(batch, s, Prediction(x_0, eps), model)
    torch.testing.assert_close(found.eps, expected, rtol=1e-5, atol=1e-6)


def test_the_target_of_progressive_distillation_is_that_of_the_paper():
    """x = (z_s - (sigma_s / sigma_t) z_t) / (alpha_s - (sigma_s / sigma_t) alpha_t) after two DDIM steps of the teacher."""
    objective = FlowMap(ExactBackbone(), SCHEDULE, *GUIDED, Progressive(4), 1.0)
    noised, _, s = objective.draw(*draw(32))
    assert set(noised.t.tolist()) == {0.25, 0.5, 0.75, 1.0} and torch.equal(s, noised.t - 0.25)
    found = objective.find_target(noised, s).x_0.numpy()
    z, place = noised.x_t, noised.t
    for _ in range(2):
        level = SCHEDULE.log_snr(place)
        pair = exact_pair(z, level, level, noised.scale, noised.y)
        place = place - 0.125
        alpha, sigma = (part[:, None] for part in SCHEDULE.alpha_sigma(place))
        z = alpha * pair.x_0 + sigma * pair.eps
    (a_t, s_t), (a_s, s_s) = ([part.numpy()[:, None] for part in SCHEDULE.alpha_sigma(u)] for u in (noised.t, s))
    expected = (z.numpy() - s_s / s_t * noised.x_t.numpy()) / (a_s - s_s / s_t * a_t)
    numpy.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-9)


def test_every_step_counts_the_images_of_the_whole_batch():
    target = DiscretizedConsistency(double_images=100)
    objective = FlowMap(ExactBackbone(), SCHEDULE, jump=target)
    x_0, y, rng = draw(8)
    objective(x_0, y, Share(rng, 8, 32))
    objective.finish_step(lambda tensor: tensor)
    assert int(target.images) == 32 and "jump.images" in objective.state_dict()
    objective(*draw(8))
    objective.finish_step(lambda tensor: tensor)
    assert int(target.images) == 40


@pytest.mark.parametrize(
    "build, reason",
    [
        (lambda: FlowMap(ExactBackbone(), SCHEDULE, jump=Progressive()).check(torch.zeros(1, 3)), "the round before"),
        (lambda: FlowMap(ExactBackbone(), SCHEDULE, scales=(0.0, 2.0), inverse_scales=True), "scales above 0"),
        (
            lambda: TeacherField(JumpModel(ExactBackbone(), SCHEDULE, V(), True, (1.0, 3.0)), Distilled).check(
                JumpModel(ExactBackbone(), SCHEDULE, V(), True), (1.0, 4.0)
            ),
            "1 to 3",
        ),
        (lambda: DiscretizedConsistency(10, 5), "last"),
        (lambda: TighteningConsistency(q=1.0), "q"),
        (lambda: PseudoHuber(0.0), "constant"),
    ],
)
def test_what_a_method_cannot_do_is_refused(build, reason):
    with pytest.raises(ValueError, match=reason):
        build()
