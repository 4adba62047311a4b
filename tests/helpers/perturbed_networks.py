"""Networks whose attention matters, and their perturbed versions computed without `Perturbation`."""

import copy
import math

import numpy as np
import torch
from networks import batch, lively, unet
from scipy.ndimage import correlate1d
from scipy.special import softmax
from torch import nn

from diffguide.backbones import dit as dit_file
from diffguide.backbones import edm2 as edm2_file
from diffguide.backbones import edm_blocks as edm_file
from diffguide.backbones import unet_blocks as unet_file
from diffguide.backbones.perturbations import BlurredQueries, IdentityAttention
from diffguide.models.parameterizations import V
from diffguide.models.preconditioned import Preconditioned
from diffguide.schedules import Cosine

COSINE = Cosine(12.0, -10.0)
ROWS = torch.tensor([True, False, True, True, False])
x, _, y = (part.double() if part.is_floating_point() else part for part in batch(5, 1, 8, 8))  # y: -1 0 1 2 -1
log_snr = torch.linspace(-5, 5, 5).double()
t = torch.tensor(0.45, dtype=torch.float64)


def attentive(network: nn.Module) -> nn.Module:
    """With every parameter drawn, queries and keys so large that the attention maps are far from equal everywhere."""
    for module in lively(network).modules():
        if getattr(module, "qkv", None) is not None:
            module.qkv.weight[: 2 * len(module.qkv.weight) // 3] *= 8
    return network


def network(make=unet, **changed) -> nn.Module:
    return attentive(make(**changed)).double()


def denoiser(backbone: nn.Module) -> Preconditioned:
    return Preconditioned(backbone, COSINE, V(), True)


def same(found, expected, tolerance=1e-12):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def blurred(q: np.ndarray, blur: float) -> np.ndarray:
    """The queries [B, heads, N, d] of a square grid, by SciPy; the kernel as wide as the grid allows."""
    side = math.isqrt(q.shape[2])
    if blur == math.inf:
        return np.broadcast_to(q.mean(2, keepdims=True), q.shape)
    q, half = q.reshape(*q.shape[:2], side, side, -1), min(math.ceil(6 * blur) // 2, side // 2)
    kernel = np.exp(-(np.arange(-half, half + 1) ** 2) / (2 * blur**2)) if blur else np.ones(1)
    for axis in (2, 3):
        q = correlate1d(q, kernel / kernel.sum(), axis, mode="mirror")
    return q.reshape(*q.shape[:2], side**2, -1)


def replaced(monkeypatch, layers, formula) -> None:
    """The attention of both networks computed by `formula` at its calls number `layers`, as in a network without rows."""
    calls = iter(range(10**6))

    def attention(q, k, v, double_differentiable):
        if next(calls) in layers:
            return torch.from_numpy(formula(*(part.numpy() for part in (q, k, v))).copy())
        return torch.nn.functional.scaled_dot_product_attention(q, k, v)

    for file in (unet_file, dit_file, edm_file, edm2_file):
        monkeypatch.setattr(file, "attention", attention)


def map_of(q, k):
    return softmax(q @ k.swapaxes(2, 3) / math.sqrt(q.shape[3]), axis=3)


def without_branches(backbone: nn.Module, layers) -> nn.Module:
    """The network with blocks whose branches add nothing, by weights of zero."""
    changed = copy.deepcopy(backbone)
    blocks = [*changed.down, *changed.middle, *changed.up] if hasattr(changed, "middle") else None
    for index in layers:
        if blocks is None:
            last = [changed.layers[index].linear] if hasattr(changed, "layers") else [changed.blocks[index].modulation]
        else:
            last = [blocks[index][0].conv_out, *(attention.projection for attention in blocks[index][1:])]
        for layer in last:
            nn.init.zeros_(layer.weight), nn.init.zeros_(layer.bias)
    return changed


ATTENTION = {
    "pag": (IdentityAttention, (), lambda q, k, v: v),
    "seg": (BlurredQueries, (0.4,), lambda q, k, v: map_of(blurred(q, 0.4), k) @ v),
    "seg wide": (BlurredQueries, (0.8,), lambda q, k, v: map_of(blurred(q, 0.8), k) @ v),
    "seg beyond the grid": (BlurredQueries, (7.0,), lambda q, k, v: map_of(blurred(q, 7.0), k) @ v),
    "seg inf": (BlurredQueries, (math.inf,), lambda q, k, v: map_of(blurred(q, math.inf), k) @ v),
}
