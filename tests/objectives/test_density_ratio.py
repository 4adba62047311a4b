"""Density ratios of neighbouring noise levels: losses in closed form, whose pair is whose, and the chasm of NCE."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from diffguide.backbones import MLP, Backbone
from diffguide.evaluate import main as evaluate
from diffguide.objectives import CDM, DensityRatio
from diffguide.sample import main as sample
from diffguide.schedules import TRE, VE
from diffguide.train import main as train

SCHEDULE = TRE(12.0, -10.0)


def variances(mean: float, std: float, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of N(mean, std^2) at every level, the last of them N(0, 1)."""
    alpha, sigma = (
        part.numpy() for part in SCHEDULE.alpha_sigma(torch.arange(levels - 1).double() / max(levels - 2, 1))
    )
    return np.append(alpha * mean, 0.0), np.append(alpha**2 * std**2 + sigma**2, 1.0)


class Exact(Backbone):
    """log p_k(x) of one Gaussian number x at every level, times `scale` and plus `shift`; neighbours' differences."""

    noise_conditioned = False

    def __init__(self, mean: float, std: float, levels: int):
        super().__init__()
        self.out_features = levels
        self.mean, self.variance = (torch.from_numpy(part) for part in variances(mean, std, levels))
        self.scale = nn.Parameter(torch.ones(levels, dtype=torch.float64))
        self.shift = nn.Parameter(torch.zeros(levels, dtype=torch.float64))

    def forward(self, x, log_snr, y=None):
        density = -0.5 * ((x - self.mean) ** 2 / self.variance + self.variance.log())
        return torch.cat([density[:, :1], density.diff(dim=1)], 1) * self.scale + self.shift


@pytest.mark.parametrize("levels", [2, 6])
def test_exact_ratios_have_the_least_loss(levels):
    """log 2 less the Jensen-Shannon divergence of each pair, by quadrature; and nothing pulls at its scale or offset."""
    made = DensityRatio(Exact(0.5, 0.3, levels), SCHEDULE, levels, 0, 0.0)
    n = 40000 * (levels - 1)
    x_0 = 0.5 + 0.3 * torch.randn(n, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    loss = made(x_0, None, torch.Generator().manual_seed(1)).per_example
    means, variance = variances(0.5, 0.3, levels)
    x = np.linspace(-9, 9, 100001)[:, None]
    density = np.exp(-0.5 * (x - means) ** 2 / variance) / np.sqrt(2 * np.pi * variance)
    middle = (density[:, 1:] + density[:, :-1]) / 2
    parts = [q * np.log(np.maximum(q, 1e-300) / np.maximum(middle, 1e-300)) for q in (density[:, 1:], density[:, :-1])]
    divergence = sum(parts).sum(0) / 2 * (x[1, 0] - x[0, 0])
    error = 3.5 * float(loss.detach().std()) / math.sqrt(n)
    assert abs(float(loss.detach().mean()) - (math.log(2) - divergence).mean()) < error < 0.01
    slopes = torch.autograd.grad(loss.mean(), [made.model.backbone.scale, made.model.backbone.shift])
    for slope in slopes:
        assert slope.abs().max() < 4 * 0.5 / math.sqrt(n)  # of one example at most about 1/2
    made.model.backbone.scale.data *= 1.3
    assert made(x_0, None, torch.Generator().manual_seed(1)).per_example.mean() > loss.mean() + 0.001


class Seen(Backbone):
    """One weight per output, so that gradients tell the outputs apart; keeps what it was asked."""

    noise_conditioned, num_classes = False, 3

    def __init__(self, levels: int):
        super().__init__()
        self.out_features = levels
        self.weight = nn.Parameter(torch.linspace(0.1, 0.7, levels, dtype=torch.float64))

    def forward(self, x, log_snr, y=None):
        self.asked = x.detach(), y
        return self.weight * (1 + x.sum(1, keepdim=True))


def test_the_classifier_of_a_pair_is_trained_on_its_two_levels_only():
    levels, n = 6, 10
    made = DensityRatio(Seen(levels), SCHEDULE, levels, 0, 0.5)
    x_0 = torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.arange(n) % 3
    loss = made(x_0, y, torch.Generator().manual_seed(1)).per_example
    x, labels = made.model.backbone.asked
    assert torch.equal(labels[:n], labels[n:])  # dropped for both or for none
    assert set(labels.tolist()) == {-1, 0, 1, 2} and bool(((labels[:n] == y) | (labels[:n] == -1)).all())
    pairs = []
    for i in range(n):
        (slope,) = torch.autograd.grad(loss[i], made.model.backbone.weight, retain_graph=True)
        (output,) = slope.nonzero()[:, 0].tolist()  # output k + 1 is f[k + 1] - f[k]
        pairs.append(output - 1)
    assert sorted(pairs) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]  # every pair as often
    eps = []
    for k, points in ((torch.tensor(pairs), x[:n]), (torch.tensor(pairs) + 1, x[n:])):
        alpha, sigma = SCHEDULE.alpha_sigma(k.clamp(max=levels - 2).double() / (levels - 2), 2)
        last = (k == levels - 1)[:, None]
        alpha, sigma = torch.where(last, 0.0, alpha), torch.where(last, 1.0, sigma)
        eps.append((points - alpha * x_0) / sigma)
    torch.testing.assert_close(eps[0], eps[1], rtol=1e-9, atol=1e-9)  # both ends have the same x_0 and eps
    logits = made.model.logits(x, labels)
    rows, k = torch.arange(n), torch.tensor(pairs)
    near, far = (logits[rows + part * n, k] - logits[rows + part * n, k + 1] for part in (0, 1))
    expected = ((1 + (-near).exp()).log() + (1 + far.exp()).log()) / 2
    torch.testing.assert_close(loss, expected)


class Quadratic(Backbone):
    """Log-ratios a + b |x|^2, a family that holds those of all centred round Gaussians."""

    noise_conditioned = False

    def __init__(self, levels: int):
        super().__init__()
        self.out_features = levels
        self.weight = nn.Parameter(torch.zeros(2, levels, dtype=torch.float64))

    def forward(self, x, log_snr, y=None):
        square = 20 * x.square().sum(1, keepdim=True)
        return torch.cat([torch.ones_like(square), square], 1) @ self.weight


def test_the_density_chasm():
    """N(0, 0.05^2 I) in six dimensions: one classifier of data and noise is always right and knows no density."""
    dimensions, std, rng = 6, 0.05, torch.Generator().manual_seed(0)
    data, fresh = (std * torch.randn(n, dimensions, generator=rng, dtype=torch.float64) for n in (4000, 2000))
    alpha, sigma = (float(part) for part in SCHEDULE.alpha_sigma(0.0))
    variance = alpha**2 * std**2 + sigma**2
    exact = -0.5 * (fresh.square() / variance + math.log(2 * math.pi * variance)).sum(1)
    found = {}
    for name, levels in {"nce": 2, "tre": 12, "cdm": 12}.items():
        network = Quadratic(levels)
        made = (
            CDM(network, SCHEDULE, levels, 1.0, 0.0, 0, None, False, 0.0)
            if name == "cdm"
            else DensityRatio(network, SCHEDULE, levels, 0, 0.0)
        )
        optimiser = torch.optim.LBFGS(made.parameters(), max_iter=100, history_size=20, line_search_fn="strong_wolfe")

        def closure():
            optimiser.zero_grad()
            loss = made(data, None, torch.Generator().manual_seed(1)).per_example.mean()
            loss.backward()
            return loss

        optimiser.step(closure)
        with torch.no_grad():
            found[name] = float((made.model.log_density(fresh, None) - exact).abs().mean())
            if name == "nce":
                assert made.figures(made(data, None, torch.Generator().manual_seed(1))) == {"accuracy": 1.0}
    assert found["nce"] > 10 and found["tre"] < 1 and found["cdm"] < 2, found  # nats


def test_quantized_data_get_uniform_noise_of_one_step():
    made = DensityRatio(Seen(2), SCHEDULE, 2, 17, 0.0)
    made(torch.full((500, 8), 0.25, dtype=torch.float64), None, torch.Generator().manual_seed(0))
    alpha = float(SCHEDULE.alpha_sigma(0.0)[0])
    offset = made.model.backbone.asked[0][:500] - alpha * 0.25
    assert 0.03 < float(offset.std()) < 0.04 and offset.abs().max() < 1 / 16 + 0.02  # 1/8 wide, and a little noise


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"levels": 1}, "levels must be"),
        ({"quantization_levels": 1}, "quantization_levels must be 0"),
        ({"p_uncond": -0.1}, "p_uncond"),
        ({"backbone": MLP(2, 3, 0, 8, 1, 0, 1.0, noise_conditioned=False)}, "6 noise levels needs .* this MLP has 3"),
        ({"backbone": MLP(2, 6, 0, 8, 1, 0, 1.0)}, "set backbone.noise_conditioned=false"),
        ({"schedule": VE(12.0, -10.0)}, r"ends in N\(0, I\)"),
    ],
)
def test_impossible_arguments_are_refused(change, message):
    given = {"backbone": Seen(6), "schedule": SCHEDULE, "levels": 6, "quantization_levels": 0, "p_uncond": 0.0}
    with pytest.raises(ValueError, match=message):
        DensityRatio(**given | change)


SHORT = ["training.images=6400", "training.checkpoint_images=6400", "training.validation_images=6400"]


def test_noise_contrastive_estimation_by_commands(command, tmp_path):
    """It trains without pictures, states a density of vectors, and has no level to sample from."""
    trained = command(
        train, "experiment=gmm2d", "objective=nce", "backbone=mlp_levels", "backbone.width=32", *SHORT, at=tmp_path
    )
    assert trained.code == 0, trained.err
    assert not list((tmp_path / trained.folder / "samples").iterdir())
    done = command(evaluate, f"checkpoint={trained.folder}", "metric=log_density", at=tmp_path)
    assert done.code == 0, done.err
    figure = json.loads((tmp_path / done.folder / "metrics.json").read_text())["figures"]["nll_exact_given_class"]
    assert figure["unit"] == "nats/dim" and -1 < figure["value"] < 1.5  # of N(0, I) it would be 1.6
    refused = command(sample, f"checkpoint={trained.folder}", at=tmp_path)
    assert refused.code == 1 and "take sampler=sgld" in refused.err


def test_telescoping_ratios_of_images_by_commands(command, tmp_path):
    small = ["backbone.channels=8", "backbone.head_channels=8", "backbone.head=8", "backbone.blocks=1"]
    trained = command(
        train,
        "objective=tre",
        "backbone=unet_levels",
        "objective.quantization_levels=${dataset.quantization_levels}",
        "sampler.steps=4",
        *small,
        "training.images=256",
        "training.checkpoint_images=256",
        at=tmp_path,
    )
    assert trained.code == 0, trained.err
    options = ["labels=[3]", "guidance=cfg", "sampler=ddim", "sampler.steps=10", "n=2"]
    done = command(sample, f"checkpoint={trained.folder}", *options, at=tmp_path)
    assert done.code == 0 and (tmp_path / done.folder / "grid.png").exists(), done.err
