"""The classifier of the noise level with exact logits: its denoiser, score and density are the closed forms."""

import math

import numpy as np
import pytest
import torch
from closed_forms import Mixture
from torch.utils._python_dispatch import TorchDispatchMode

from diffguide.backbones import MLP, Backbone
from diffguide.models.level_classifier import LevelClassifier, value_and_gradient
from diffguide.models.noisy_joint_energy import NoisyJointEnergy
from diffguide.objectives import CDM, DensityRatio
from diffguide.oracles import GaussianMixture
from diffguide.schedules import TRE, VE, Flow, Linear

WEIGHTS, LABELS = [0.5, 0.2, 0.3], [0, 1, 1]
MEANS = [[0.6, -0.4], [-0.7, 0.2], [0.1, 0.8]]
COVARIANCES = [[[0.09, 0.03], [0.03, 0.04]], [[0.02, 0.0], [0.0, 0.3]], [[0.05, -0.02], [-0.02, 0.06]]]
TRUTH = Mixture(WEIGHTS, MEANS, COVARIANCES, LABELS)
SCHEDULES = {"tre": TRE(12.0, -10.0), "flow": Flow(12.0, -12.0), "linear": Linear(12.0, None, 0.0001, 0.02, 1000)}
T = 20
PRIORS = {"uniform": None, "some": [1.0 + (3 * k) % 7 for k in range(T + 2)]}


def exact_logits(oracle, schedule, prior) -> Backbone:
    """A network whose cumulative outputs are log P(k) p_k(x | y) plus a term that cancels in the softmax."""

    class Exact(Backbone):
        num_classes, out_features, noise_conditioned = 2, T + 2, False

        def forward(self, x, log_snr, y=None):
            assert log_snr is None
            times = torch.arange(T + 1, dtype=torch.float64) / T
            density = [oracle.log_density(x, t, y) for t in times]
            density.append(-0.5 * (x.square() + math.log(2 * math.pi)).sum(1))
            logits = torch.stack(density, 1) + torch.tensor(prior or [1.0] * (T + 2)).log() + x.sum(1, keepdim=True)
            return torch.cat([logits[:, :1], logits.diff(dim=1)], 1)

    return Exact()


@torch.no_grad()
@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_exact_logits_give_the_closed_forms(name, prior):
    schedule = SCHEDULES[name]
    law = (torch.tensor(part, dtype=torch.float64) for part in (WEIGHTS, MEANS, COVARIANCES))
    oracle = GaussianMixture(*law, torch.tensor(LABELS), schedule, None)
    model = LevelClassifier(exact_logits(oracle, schedule, PRIORS[prior]), schedule, T, True, PRIORS[prior])
    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.arange(40) % 3 - 1
    for k in (1, 7, T):
        t = torch.tensor(k / T, dtype=torch.float64)
        alpha, sigma = (float(part) for part in schedule.alpha_sigma(t))
        score = TRUTH.score(x.numpy(), alpha, sigma, y.numpy())
        found = model(x, t, y)
        np.testing.assert_allclose(found.eps, -sigma * score, atol=1e-8)
        np.testing.assert_allclose(found.x_0, TRUTH.mean(x.numpy(), alpha, sigma, y.numpy()), atol=1e-8 / alpha)
        density = TRUTH.log_density(x.numpy(), alpha, sigma, y.numpy())
        np.testing.assert_allclose(model.log_density(x, t, y), density, atol=1e-8)
    rows = torch.tensor([1, 7, 20, 3] * 10)  # a level per row
    alpha, sigma = (part.numpy() for part in schedule.alpha_sigma(rows.double() / T))
    np.testing.assert_allclose(
        model(x, rows.double() / T, y).eps, -sigma[:, None] * TRUTH.score(x.numpy(), alpha, sigma, y.numpy()), atol=1e-8
    )
    alpha, sigma = (float(part) for part in schedule.alpha_sigma(0.0))
    joint = np.stack([TRUTH.log_density(x.numpy(), alpha, sigma, np.full(40, label)) for label in (0, 1)], 1)
    log_prob = joint - np.log(np.exp(joint).sum(1, keepdims=True))  # equally frequent classes
    np.testing.assert_allclose(model.log_prob(x, None), log_prob, atol=1e-8)


class Blind(Backbone):
    """The optimal network for data N(0, I), where all levels have one distribution."""

    num_classes, out_features, noise_conditioned = 0, T + 2, False

    def forward(self, x, log_snr, y=None):
        return torch.zeros(len(x), T + 2, dtype=x.dtype) * x.sum(1, keepdim=True)


def test_the_loss_for_gaussian_data_is_that_of_chance():
    objective = CDM(Blind(), TRE(12.0, -10.0), T + 2, 0.5, 2.0, 0, None, False, 0.0)
    x = torch.randn(4400, 128, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        loss = objective(x, None, torch.Generator().manual_seed(2))
    ce, accuracy, mse = (loss.terms[name] for name in ("ce", "accuracy", "mse"))
    assert torch.allclose(ce, torch.full_like(ce, math.log(T + 2)))
    assert abs(float(accuracy.mean()) - 1 / (T + 2)) < 1e-9  # the levels are evenly spread over the batch
    levels = torch.arange(T + 1, dtype=torch.float64) / T
    expected = float((TRE(12.0, -10.0).alpha_sigma(levels)[0] ** 2).mean())  # eps-MSE = abar_t
    assert abs(float(mse.mean()) - expected) < 0.01
    assert torch.allclose(loss.per_example, 0.5 * ce + 2.0 * mse * (T + 1) / (T + 2))


def network(outputs: int = T + 2, **options) -> MLP:
    torch.manual_seed(0)
    made = MLP(2, outputs, 0, 16, 2, 4, 0.5, **{"noise_conditioned": False} | options).double()
    torch.nn.init.normal_(made.linear_out.weight, std=0.3)
    return made


def test_the_gradient_trains_and_follows_the_grad_mode():
    model = LevelClassifier(network(), TRE(12.0, -10.0), T, False)
    x, t = torch.randn(3, 2, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    with torch.no_grad():
        assert not model(x, t).x_0.requires_grad
        found = value_and_gradient(lambda x: x @ torch.ones(2, dtype=torch.float64, requires_grad=True), x)
        assert not any(part.requires_grad for part in found)  # and no graph is kept
    model.requires_grad_(False)
    # as DPS and the divergence of the flow need
    assert torch.autograd.gradcheck(lambda x: tuple(model(x, t)), x.requires_grad_())
    model.requires_grad_(True)
    weight = model.backbone.linear_in.weight

    def loss(value):
        return (
            torch.func.functional_call(model, {"backbone.linear_in.weight": value}, (x.detach(), t)).eps.square().sum()
        )

    assert torch.autograd.gradcheck(loss, weight.detach().clone().requires_grad_())


def test_a_time_that_is_no_level_is_refused():
    model = LevelClassifier(network(), TRE(12.0, -10.0), T, False)
    assert model.levels.tolist() == [k / T for k in range(T, -1, -1)]
    assert model.has_null  # for a network without condition
    told = LevelClassifier(MLP(2, T + 2, 3, 16, 2, 4, 0.5, False), TRE(12.0, -10.0), T, False)
    assert not told.has_null and told.conditional
    for wrong in (0.51, 0.5001):
        with pytest.raises(ValueError, match=rf"noise level k / 20 .* got {wrong}"):
            model(torch.zeros(1, 2, dtype=torch.float64), torch.tensor(wrong, dtype=torch.float64))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone": network(noise_conditioned=True)}, "backbone.noise_conditioned=false"),
        ({"backbone": network(outputs=7)}, "22 outputs, but this MLP has 7"),
        ({"backbone": network(outputs=None)}, "has an output in the shape of the data"),
        ({"backbone": network(outputs=None, noise_conditioned=True)}, "backbone=unet_levels"),  # as the default network
        ({"schedule": VE(12.0, -10.0)}, "VE ends at alpha = 1"),
        ({"schedule": TRE(12.0, -5.0)}, "TRE ends at alpha = 0.0818"),
        ({"schedule": TRE(12.0, -math.inf)}, "finite schedule.log_snr_min"),
        ({"levels": 2}, "levels must be at least 3, got 2"),
        ({"prior": [1.0, 2.0]}, "prior must have 22"),
        ({"prior": [0.0] * 22}, "prior must have 22"),
        ({"ce_weight": 0.0, "mse_weight": 0.0}, "not both 0"),
        ({"quantization_levels": 1}, "quantization_levels must be 0"),
        ({"p_uncond": 1.5}, "p_uncond"),
    ],
)
def test_impossible_arguments_are_refused(change, message):
    given = {
        "backbone": network(), "schedule": TRE(12.0, -10.0), "levels": T + 2, "ce_weight": 1.0, "mse_weight": 1.0,
        "quantization_levels": 0, "prior": None, "soft_targets": True, "p_uncond": 0.0,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        CDM(**given | change)


def test_dequantised_data_fill_the_space_between_values():
    seen = []

    class Looking(Blind):
        def forward(self, x, log_snr, y=None):
            seen.append(x.detach())
            return super().forward(x, log_snr, y)

    schedule = TRE(math.inf, -10.0)
    objective = CDM(Looking(), schedule, T + 2, 1.0, 1.0, 17, [1e9] + [1.0] * (T + 1), False, 0.0)
    loss = objective(torch.full((500, 8), 0.25, dtype=torch.float64), None, torch.Generator().manual_seed(0))
    offset = seen[0] - 0.25
    assert offset.abs().max() <= 1 / 16 and abs(float(offset.std()) - 1 / 8 / math.sqrt(12)) < 0.001
    assert float(loss.terms["mse"].sum()) == 0  # at exact data there is no noise to predict


@pytest.mark.parametrize("p_uncond", [0.0, 0.3, 1.0])
def test_training_drops_labels(p_uncond):
    """Independently in every row; the other labels that the network gets in training are unchanged."""
    told = []

    class Told(Blind):
        num_classes = 3

        def forward(self, x, log_snr, y=None):
            told.append(y)
            return super().forward(x, log_snr, y)

    objective = CDM(Told(), SCHEDULES["tre"], T + 2, 1.0, 1.0, 0, None, True, p_uncond).train()
    x, y = torch.zeros(4000, 2, dtype=torch.float64), torch.arange(4000) % 3
    objective(x, y, torch.Generator().manual_seed(0))
    (labels,) = told
    assert bool(((labels == y) | (labels == -1)).all()) and objective.model.has_null == (p_uncond > 0)
    shares = [float((labels[y == label] == -1).double().mean()) for label in range(3)]
    assert shares == pytest.approx([p_uncond] * 3, abs=0.05)  # four standard errors


@pytest.mark.parametrize(
    "made",
    [
        CDM(Blind(), SCHEDULES["tre"], T + 2, 1.0, 1.0, 17, None, False, 0.0),
        DensityRatio(Blind(), SCHEDULES["tre"], T + 2, 17, 0.0),
    ],
    ids=["cdm", "tre"],
)
def test_data_with_other_quantization_levels_are_refused(made):
    """With noise of width 1 / 8, data of 256 values or continuous data would have a wrong density."""
    made.check(torch.arange(-8, 9).reshape(1, 17) / 8)
    for wrong in (torch.arange(256) / 127.5 - 1, torch.randn(9, generator=torch.Generator().manual_seed(0))):
        with pytest.raises(ValueError, match="quantization_levels=17 .* take 17 for digits"):
            made.check(wrong[:, None])
    made.quantization_levels = 0
    made.check(torch.randn(9, 2))


class WithoutDoubles(TorchDispatchMode):
    """The meta device as one without float64, such as mps."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        assert not (isinstance(result, torch.Tensor) and result.is_meta and result.dtype == torch.float64), function
        return result


@pytest.mark.parametrize(
    "make",
    [
        lambda: LevelClassifier(MLP(2, T + 2, 0, 16, 2, 4, 0.5, False).to("meta"), SCHEDULES["tre"], T, True),
        lambda: NoisyJointEnergy(MLP(2, 3, 0, 16, 2, 4, 0.5).to("meta"), SCHEDULES["tre"]),
    ],
    ids=["levels", "joint"],
)
def test_models_run_on_a_device_without_float64(make):
    """Samples and densities, at one level for all rows."""
    model, x, t = make(), torch.zeros(3, 2, device="meta"), torch.tensor(0.5, dtype=torch.float64)
    with torch.no_grad(), WithoutDoubles():
        assert model(x, t).x_0.is_meta and model(x, t).eps.shape == (3, 2)
        assert model.log_density(x, None).shape == model.log_density(x, t).shape == (3,)
