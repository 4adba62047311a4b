"""Flow maps: every target at the exact map of guided Gaussians, whose closed form is a power of variances."""

import pytest
import torch
from exact_jumps import SCHEDULE, ExactBackbone, Teacher, exact_pair
from networks import jump_network, lively
from torch import nn

from diffguide.backbones.further_inputs import FurtherInputs
from diffguide.backbones.mlp import MLP
from diffguide.guidance import APG, ClassifierFree
from diffguide.models.jumps import JumpModel, jump_to
from diffguide.models.parameterizations import V
from diffguide.objectives.flow_map import FlowMap
from diffguide.objectives.jump_targets import Consistency, MeanFlow, Shortcut, join_jumps
from diffguide.schedules import Cosine


def batch(n=64, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, generator=rng, dtype=torch.float64), torch.zeros(n, dtype=torch.long), rng


@pytest.mark.parametrize(
    "jump", [None, Shortcut(), Shortcut(0.2), MeanFlow()], ids=["none", "half", "fifth", "mean_flow"]
)
def test_the_loss_is_0_at_the_exact_map_of_a_guided_teacher(jump):
    x_0, y, rng = batch()
    objective = FlowMap(
        ExactBackbone(), SCHEDULE, Teacher(), ClassifierFree, (1.0, 4.0), jump, jump_share=0.7, p_uncond=0.2
    )
    loss = objective(x_0, y, rng)
    assert float(loss.per_example.abs().max()) < 1e-18


def test_a_short_step_of_the_field_has_an_error_of_its_square():
    """A DDIM step misses the flow by the square of its length, the loss by the fourth power."""
    losses = []
    for step in (0.02, 0.01):
        x_0, y, rng = batch()
        objective = FlowMap(ExactBackbone(), SCHEDULE, Teacher(), ClassifierFree, (1.0, 4.0), Consistency(step), 1.0)
        losses.append(objective(x_0, y, rng).per_example.mean().item())
    assert losses[0] < 1e-6 and losses[0] / losses[1] == pytest.approx(16, rel=0.1)


def test_another_network_has_a_loss(seed=1):
    x_0, y, rng = batch()
    torch.manual_seed(seed)
    backbone = MLP(3, num_classes=1, width=16, layers=1, further_inputs=2).double()
    losses = {}
    for name, jump in {"none": None, "half": Shortcut(), "mean": MeanFlow(), "short": Consistency()}.items():
        objective = FlowMap(backbone, SCHEDULE, Teacher(), ClassifierFree, (1.0, 4.0), jump, 1.0, p_uncond=0.1)
        loss = objective(*batch())
        assert loss.per_example.requires_grad and bool(loss.per_example.isfinite().all())
        losses[name] = loss.per_example.mean().item()
    assert len(set(losses.values())) == 4
    objective = FlowMap(backbone.float(), SCHEDULE, Teacher(), ClassifierFree, (1.0, 4.0))
    x_0, y, _ = batch()
    same = [objective(x, y, batch()[2]).per_example for x in (x_0.bfloat16(), x_0.bfloat16().float())]
    assert torch.equal(*same), "examples are noised in float32, though mixed precision brings them in bfloat16"


def test_the_field_of_the_data_is_guided_by_the_network_itself():
    """Its mean over x_0 given x_t is the guided field: at w the pair w (x_0, eps) + (1 - w) (pair without a condition)."""
    x_0, y, rng = batch()
    objective = FlowMap(ExactBackbone(), SCHEDULE, scales=(2.5, 2.5), p_uncond=0.3)
    noised, _, s = objective.draw(x_0, y, rng)
    found = objective.find_target(noised, s)
    log_snr = SCHEDULE.log_snr(noised.t)
    weak = exact_pair(noised.x_t, log_snr, log_snr, torch.ones(64, dtype=torch.float64), torch.full((64,), -1))
    for own, side, pair in zip((noised.x_0, noised.eps), weak, found):
        torch.testing.assert_close(pair, 2.5 * own - 1.5 * side, rtol=1e-9, atol=1e-9)
    unguided = FlowMap(ExactBackbone(), SCHEDULE)
    noised, _, s = unguided.draw(*batch())
    assert torch.equal(unguided.find_target(noised, s).eps, noised.eps) and torch.equal(s, noised.t)


def test_guidance_free_training_mixes_the_network_with_the_one_without_condition():
    """||beta F(w) + (1 - beta) F(no condition, 1) - F*||^2 with beta = 1 / w uniform."""
    torch.manual_seed(3)
    backbone = MLP(3, num_classes=1, width=8, layers=1, further_inputs=2).double()
    nn.init.normal_(backbone.linear_out.weight)
    objective = FlowMap(backbone, SCHEDULE, scales=(1.0, 8.0), inverse_scales=True, p_uncond=0.1)
    found = objective(*batch(16)).per_example.detach()
    noised, _, s = objective.draw(*batch(16))
    beta = 1 / noised.scale[:, None]
    level = SCHEDULE.log_snr(noised.t)
    none = torch.full((16,), -1)
    F, weak = (
        backbone(noised.x_t, objective.model.join_inputs(level, level, scale), y).detach()
        for scale, y in ((noised.scale, noised.y), (1.0, none))
    )
    alpha, sigma = (part[:, None] for part in SCHEDULE.alpha_sigma(noised.t))
    mixed = beta * F + (1 - beta) * weak - (alpha * noised.eps - sigma * noised.x_0)
    torch.testing.assert_close(found, mixed.square().mean(1), rtol=1e-9, atol=1e-12)
    shares = 1 / objective.draw(*batch(4000))[0].scale
    assert float(shares.min()) > 0.125 and float(shares.mean()) == pytest.approx(0.5625, abs=0.02)


def test_the_field_of_improved_mean_flow_has_the_same_mean():
    """(x_0, eps) + (1 - 1/w) (v(w) - v(no condition)): with the exact network its error at w is that at w = 1."""
    objective = FlowMap(ExactBackbone(), SCHEDULE, scales=(2.5, 2.5), from_itself=True, p_uncond=0.3)
    noised, _, s = objective.draw(*batch())
    found = objective.find_target(noised, s)
    level = SCHEDULE.log_snr(noised.t)
    one, w = torch.ones(64, dtype=torch.float64), noised.scale
    guided = exact_pair(noised.x_t, level, level, w, noised.y)
    own = exact_pair(noised.x_t, level, level, one, noised.y)
    error = noised.eps - own.eps  # of the example about the exact mean
    torch.testing.assert_close(found.eps - guided.eps, error, rtol=1e-9, atol=1e-9)


def test_examples_start_where_the_network_itself_arrives():
    x_0, y, rng = batch()
    objective = FlowMap(
        ExactBackbone(), SCHEDULE, Teacher(), ClassifierFree, (1.0, 4.0), Shortcut(), 1.0, path_share=0.5, p_uncond=0.2
    )
    objective.check(x_0)
    noised, _, s = objective.draw(x_0, y, rng)
    assert float(objective(*batch()).per_example.max()) < 1e-18
    alpha, sigma = (part[:, None] for part in SCHEDULE.alpha_sigma(noised.t))
    plain = (noised.x_t == alpha * noised.x_0 + sigma * noised.eps).all(1)
    assert 16 < int(plain.sum()) < 48
    first = SCHEDULE.log_snr(torch.ones(64, dtype=torch.float64))
    (alpha, sigma), end = SCHEDULE.normalisation(first), SCHEDULE.log_snr(noised.t)
    start = alpha[:, None] * noised.x_0 + sigma[:, None] * noised.eps
    pair = exact_pair(start, first, end, noised.scale, noised.y)
    torch.testing.assert_close(jump_to(pair, SCHEDULE, noised.t)[~plain], noised.x_t[~plain], rtol=1e-8, atol=1e-8)


def test_two_jumps_are_one():
    x_t = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    t, m, s = (torch.full((5,), value, dtype=torch.float64) for value in (0.9, 0.6, 0.1))
    y, scale = torch.zeros(5, dtype=torch.long), torch.full((5,), 2.0, dtype=torch.float64)
    model = JumpModel(ExactBackbone(), SCHEDULE, V(), True, (1.0, 4.0))
    first = model.predict_jump(x_t, t, m, y, scale)
    x_m = jump_to(first, SCHEDULE, m)
    second = model.predict_jump(x_m, m, s, y, scale)
    one = join_jumps(first, second, SCHEDULE, t, m, s)
    torch.testing.assert_close(jump_to(one, SCHEDULE, s), jump_to(second, SCHEDULE, s), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(jump_to(one, SCHEDULE, t), x_t, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(one.eps, model.predict_jump(x_t, t, s, y, scale).eps, rtol=1e-10, atol=1e-10)


def test_the_model_is_a_denoiser_at_its_scale():
    x_t = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    t, y = torch.tensor(0.4, dtype=torch.float64), torch.tensor([0, 0, -1, 0])
    model = JumpModel(ExactBackbone(), SCHEDULE, V(), True, (1.0, 4.0))
    assert model.scale == 1
    guided = ClassifierFree(Teacher(), 3.0)(x_t, t, y)
    for run in (model.at_scale(3.0), model.at_scale(3.0).start(None, torch.tensor([0.4, 0.0], dtype=torch.float64))):
        found = run(x_t, t, y)
        torch.testing.assert_close(found.x_0, guided.x_0, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found.eps, guided.eps, rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="1 to 4"):
        model.at_scale(4.5)


def test_a_network_starts_as_the_one_without_further_inputs():
    torch.manual_seed(0)
    plain = lively(MLP(3, width=16, layers=1))
    further = MLP(3, width=16, layers=1, further_inputs=2)
    missing = further.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert missing and all(name.startswith("embedding.further.") for name in missing)
    x, level = torch.randn(4, 3), torch.linspace(-5, 5, 4)
    numbers = torch.stack([level, level + 1, torch.full_like(level, 3.0)], 1)
    assert torch.equal(further(x, numbers), plain(x, level))
    with pytest.raises(ValueError, match=r"\[B, 3\]"):
        further(x, level)
    with torch.no_grad():
        further.embedding.further.output.weight.normal_()
    assert not torch.allclose(further(x, numbers), further(x, numbers * torch.tensor([1.0, 1.0, 2.0])))


def test_features_are_those_of_every_number():
    module = FurtherInputs(8, 2)
    nn.init.eye_(module.output.weight)
    frequencies, numbers = torch.tensor([0.5, 1.0, 2.0, 4.0]), torch.tensor([[0.3, -30.0, 2.0]])
    values = torch.tensor([0.3, -20.0, 2.0])[:, None] * frequencies
    features = torch.cat([values.flatten().cos(), values.flatten().sin()])
    hidden = module.hidden.weight @ features + module.hidden.bias
    torch.testing.assert_close(module(numbers, frequencies)[0], hidden * torch.sigmoid(hidden))


@pytest.mark.parametrize(
    "build, reason",
    [
        (lambda: JumpModel(MLP(3), SCHEDULE, V(), True), "further_inputs=2"),
        (lambda: FlowMap(ExactBackbone(), SCHEDULE, scales=(3.0, 1.0)), "lowest and the highest"),
        (lambda: FlowMap(ExactBackbone(), SCHEDULE, scales=(1.0, 3.0)).check(torch.zeros(1, 3)), "p_uncond above 0"),
        (
            lambda: FlowMap(ExactBackbone(), SCHEDULE, jump=Shortcut(), path_share=0.5).check(torch.zeros(1, 3)),
            "teacher",
        ),
        (lambda: FlowMap(ExactBackbone(), Cosine(12.0, -12.0), Teacher(), ClassifierFree), "knows the noise levels"),
        (
            lambda: FlowMap(
                ExactBackbone(), SCHEDULE, Teacher(), lambda d: ClassifierFree(d, rule=APG(momentum=-0.5)), (2.0, 2.0)
            ),
            "cannot be distilled",
        ),
        (lambda: FlowMap(ExactBackbone(), SCHEDULE, Teacher(), None, (1.0, 2.0)), "two equal numbers"),
        (lambda: MLP(3, noise_conditioned=False, further_inputs=2), "noise_conditioned"),
    ],
)
def test_what_does_not_fit_is_refused(build, reason):
    with pytest.raises(ValueError, match=reason):
        build()


@pytest.mark.parametrize("kind", ["mlp", "dit", "unet"])
def test_the_forward_derivative_is_the_limit_of_short_steps(kind):
    """Of every network with its attention: torch's fused attention has no forward derivative on the CPU."""
    backbone, shape = jump_network(kind)
    model = JumpModel(lively(backbone).double(), SCHEDULE, V(), True, (1.0, 3.0))
    x_0 = torch.randn(6, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    objective = FlowMap(model.backbone, SCHEDULE, scales=(1.0, 3.0), jump=MeanFlow(), jump_share=1.0, p_uncond=0.1)
    noised, _, s = objective.draw(x_0, torch.zeros(6, dtype=torch.long), torch.Generator().manual_seed(1))
    field = objective.field(noised, model)
    own = model.predict_jump(noised.x_t, noised.t, s, noised.y, noised.scale)
    exact = MeanFlow()(noised, s, field, model)

    def extrapolate(step):
        """The network's pair and, as if the step were the whole jump, what a short step of the field changes in it."""
        n_t, n_m, n_s = (SCHEDULE.noise_level(time) for time in (noised.t, noised.t + step * (s - noised.t), s))
        share = ((n_t - n_m) / (n_t - n_s)).reshape(-1, *[1] * len(shape))
        return [a + (b - a) / share for a, b in zip(own, Consistency(step)(noised, s, field, model))]

    for found, near, nearer in zip(exact, extrapolate(2e-4), extrapolate(1e-4)):
        torch.testing.assert_close(found, 2 * nearer - near, rtol=1e-4, atol=1e-4)  # without the error of first order
