"""The joint energy with exact logits: its gradient, densities and classes are the closed forms."""

import numpy as np
import pytest
import torch
from joint_energies import TRUTH, exact
from networks import lively, mlp, unet

from diffguide.backbones import ConvNet
from diffguide.models.joint_energy import JointEnergy
from diffguide.models.level_classifier import langevin_step
from diffguide.models.protocols import Denoiser, Energy

X = torch.randn(40, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.arange(40) % 3 - 1  # -1 = the sum over classes


def test_its_gradient_is_the_score():
    """By a step of Langevin dynamics without noise."""
    for y in (Y, None):
        moved = langevin_step(lambda x: exact().log_density(x, None, y), X, 0.5, 0.0, torch.zeros_like(X))
        score = TRUTH.score(X.numpy(), 1.0, 0.0, None if y is None else y.numpy())
        np.testing.assert_allclose(moved, X.numpy() + 0.5 * score, atol=1e-9)


def test_a_langevin_step_is_the_equation_and_keeps_no_graph():
    precision = torch.tensor([[2.0, 0.3], [0.3, 0.5]], dtype=torch.float64).requires_grad_()
    z = torch.randn(40, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    moved = langevin_step(lambda x: -0.5 * ((x @ precision) * x).sum(1), X, 0.1, 0.3, z)
    assert not moved.requires_grad and precision.grad is None
    torch.testing.assert_close(moved, X - 0.1 * X @ precision.detach() + 0.3 * z)


def test_its_differences_are_log_density_ratios():
    """log p(x) - log p(x'), and log p(x | y) - log p(x' | y); log p(x, y) - log p(x) is the posterior."""
    model, y = exact(), torch.zeros(40, dtype=torch.long)
    for labels in (None, y, y + 1):
        found = model.log_density(X, None, labels).numpy()
        truth = TRUTH.log_density(X.numpy(), 1.0, 0.0, None if labels is None else labels.numpy())
        np.testing.assert_allclose(found - found[0], truth - truth[0], atol=1e-9)
    joint = np.stack([TRUTH.log_density(X.numpy(), 1.0, 0.0, np.full(40, c)) + np.log(0.5) for c in (0, 1)], 1)
    posterior = joint - np.logaddexp(*joint.T)[:, None]
    np.testing.assert_allclose(model.log_prob(X, None), posterior, atol=1e-9)
    ours = torch.stack([model.log_density(X, None, y + c) - model.log_density(X) for c in (0, 1)], 1)
    np.testing.assert_allclose(ours, posterior, atol=1e-9)


def test_it_has_no_noise_levels_and_is_no_denoiser():
    model = exact()
    assert model.schedule is None and model.levels is None and not model.normalized and model.has_null
    assert isinstance(model, Energy) and not isinstance(model, Denoiser) and model.num_classes == 2
    assert torch.equal(model.log_density(X, torch.tensor(0.3), Y), model.log_density(X, None, Y))


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        (mlp(out_features=3, num_classes=0), "set backbone.noise_conditioned=false"),
        (mlp(out_features=3, num_classes=3, noise_conditioned=False), "this MLP takes a condition"),
        (unet(num_classes=0, noise_conditioned=False), "shape of the data; use backbone=convnet"),
    ],
)
def test_networks_of_other_models_are_refused(backbone, message):
    with pytest.raises(ValueError, match=message):
        JointEnergy(backbone)


def convnet(**changed) -> ConvNet:
    options = {"in_channels": 1, "out_features": 3, "size": 8, "channels": 4, "multipliers": [1, 2, 4], "width": 16}
    return ConvNet(**options | {"noise_conditioned": False} | changed)


def test_the_convnet_has_one_vector_per_image_and_is_smooth():
    network = lively(convnet()).double()
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert network(x, None).shape == (4, 3)
    torch.testing.assert_close(network(x[2:3], None), network(x, None)[2:3])
    x = x[:1].requires_grad_()
    (slope,) = torch.autograd.grad(network(x, None)[:, 0].sum(), x)
    assert (slope != 0).all()  # the output depends on every pixel
    assert torch.autograd.gradgradcheck(lambda x: network(x, None).square().sum(), x)
    with pytest.raises(ValueError, match="log_snr must be None"):
        network(x, torch.zeros(1))


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"out_features": 0}, "out_features must be at least 1"),
        ({"size": 6}, "halve the image 2 times"),
        ({"multipliers": []}, "one multiplier"),
        ({"channels": 0}, "at least 1"),
        ({"width": 0}, "at least 1"),
        ({"noise_conditioned": True}, "noise_conditioned must be false"),
    ],
)
def test_arguments_of_the_convnet_out_of_range_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        convnet(**changed)
