"""Small networks that the tests of backbones share."""

import pytest
import torch
from torch import nn

from diffguide.backbones import MLP, DiT, UNet, UNetEncoder
from diffguide.backbones.edm import EDMUNet
from diffguide.backbones.edm2 import EDM2UNet


def unet(in_channels=1, size=8, out_features=None, num_classes=3, **changed) -> UNet:
    options = {"channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": [size // 2], "head_channels": 8}
    return UNet(in_channels, out_features, num_classes, size, **options | {"dropout": 0.1} | changed)


def dit(in_channels=1, size=8, out_features=None, num_classes=3, **changed) -> DiT:
    options = {"patch": 2, "width": 16, "depth": 2, "heads": 2, "mlp_ratio": 2.0, "dropout": 0.1}
    return DiT(in_channels, out_features, num_classes, size, **options | changed)


def edm(in_channels=1, size=8, out_features=None, num_classes=3, **changed) -> EDMUNet:
    options = {"channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": [4], "dropout": 0.1}
    return EDMUNet(in_channels, out_features, num_classes, size, **options | changed)


def ncsnpp(**changed) -> EDMUNet:
    """EDM's NCSN++: frequencies are random numbers."""
    torch.manual_seed(0)
    options = {"noise_features": "fourier", "noise_multiplier": 2, "encoder": "residual"}
    return edm(**options | {"resample_filter": [1, 3, 3, 1]} | changed)


def edm2(in_channels=1, size=8, out_features=None, num_classes=3, **changed) -> EDM2UNet:
    torch.manual_seed(0)
    options = {"channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": [4], "head_channels": 8, "dropout": 0.1}
    return EDM2UNet(in_channels, out_features, num_classes, size, **options | changed)


def mlp(in_channels=2, out_features=None, num_classes=3, fourier_features=4, **changed) -> MLP:
    options = {"width": 16, "layers": 2, "fourier_scale": 0.5}
    return MLP(in_channels, out_features, num_classes, fourier_features=fourier_features, **options | changed)


def lively(network: nn.Module) -> nn.Module:
    """In evaluation mode, with every parameter drawn: the layers that start at zero would hide what is tested."""
    rng = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2, generator=rng)
    return network.eval().requires_grad_(False)


def batch(*shape, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng), torch.linspace(-5, 5, shape[0]), torch.arange(shape[0]) % 4 - 1


def same_rows(a, b, atol=1e-6):
    return torch.isclose(a, b, rtol=0, atol=atol).flatten(1).all(1)


NETWORKS = {"unet": (unet, (1, 8, 8)), "dit": (dit, (1, 8, 8)), "mlp": (mlp, (2,))}
every_network = pytest.mark.parametrize("make, shape", NETWORKS.values(), ids=NETWORKS)
EDM = {"edm": (edm, (1, 8, 8)), "ncsn++": (ncsnpp, (1, 8, 8)), "edm2": (edm2, (1, 8, 8))}  # always with a noise input
every_backbone = pytest.mark.parametrize("make, shape", (NETWORKS | EDM).values(), ids=NETWORKS | EDM)


def encoder(out_features=3, **changed) -> UNetEncoder:
    options = {"in_channels": 1, "size": 8, "channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": [4]}
    options |= {"head_channels": 8, "dropout": 0.1, "noise_conditioned": True, "double_differentiable": True}
    return UNetEncoder(out_features=out_features, checkpointing=False, **options | changed)


def jump_network(kind):
    """A small network of two times without dropout, and the shape of its examples."""
    torch.manual_seed(0)
    if kind == "mlp":
        return MLP(3, num_classes=1, width=16, layers=1, further_inputs=2), (3,)
    if kind == "dit":
        return DiT(1, size=4, num_classes=1, width=16, depth=1, heads=2, dropout=0.0, further_inputs=2), (1, 4, 4)
    options = {"channels": 8, "blocks": 1, "attention": (2,), "head_channels": 8, "dropout": 0.0}
    return UNet(1, size=4, num_classes=1, further_inputs=2, **options), (1, 4, 4)
