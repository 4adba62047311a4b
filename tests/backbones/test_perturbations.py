"""Networks perturbed in some layers and rows: identity attention, blurred queries, skipped blocks."""

import copy
import math

import numpy as np
import pytest
import torch
from networks import dit, edm, edm2, mlp, unet
from perturbed_networks import ATTENTION, ROWS, log_snr, network, replaced, same, without_branches, x, y

from diffguide.backbones.perturbations import BlurredQueries, IdentityAttention, SkippedBlocks, blur_matrix

LAYERS = {
    "unet": (unet, [0]),
    "unet up": (unet, [2, 3]),
    "dit": (dit, [1]),
    "dit all": (dit, [0, 1]),
    "edm": (edm, [0, 2]),
    "edm2": (edm2, [1]),
}
every_layer = pytest.mark.parametrize("make, layers", LAYERS.values(), ids=LAYERS)


@every_layer
@pytest.mark.parametrize("kind, options, formula", ATTENTION.values(), ids=ATTENTION)
def test_attention_is_perturbed_in_its_rows(monkeypatch, make, layers, kind, options, formula):
    backbone = network(make)
    plain = backbone(x, log_snr, y)
    found = backbone(x, log_snr, y, kind(layers, *options).for_rows(ROWS))
    replaced(monkeypatch, layers, formula)
    expected = backbone(x, log_snr, y)
    same(found[~ROWS, None], plain[~ROWS, None])
    same(found[ROWS, None], expected[ROWS, None])
    assert float((expected - plain).abs().amax((1, 2, 3)).min()) > 1e-4  # the perturbation has an effect


BLOCKS = {
    "unet": (unet, [1]),
    "unet narrower": (unet, [6]),
    "unet, where it halves and doubles": (unet, [0, 1, 7]),
    "dit": (dit, [1]),
    "mlp": (mlp, [0]),
}


@pytest.mark.parametrize("make, layers", BLOCKS.values(), ids=BLOCKS)
def test_blocks_are_skipped_in_their_rows(make, layers):
    backbone = network(make)
    data = x if make is not mlp else x[:, 0, 0, :2]
    plain, expected = backbone(data, log_snr, y), without_branches(backbone, layers)(data, log_snr, y)
    found = backbone(data, log_snr, y, SkippedBlocks(layers).for_rows(ROWS))
    same(found[~ROWS, None], plain[~ROWS, None])
    same(found[ROWS, None], expected[ROWS, None])
    assert float((expected - plain).abs().flatten(1).amax(1).min()) > 1e-4


def test_identity_attention_is_the_value_projection():
    """x + W (V norm(x)): one layer in NumPy, from its weights."""
    layer = network().middle[0][1]
    h = torch.randn(5, 16, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    grouped = h.numpy().reshape(5, layer.norm.num_groups, -1)
    normal = (grouped - grouped.mean(2, keepdims=True)) / np.sqrt(grouped.var(2, keepdims=True) + layer.norm.eps)
    scale, shift = (part.numpy()[:, None] for part in (layer.norm.weight, layer.norm.bias))
    normal = normal.reshape(5, 16, 16) * scale + shift
    value, offset = layer.qkv.weight[32:, :, 0, 0].numpy(), layer.qkv.bias[32:, None].numpy()
    out = (
        layer.projection.weight[:, :, 0, 0].numpy() @ (value @ normal + offset) + layer.projection.bias[:, None].numpy()
    )
    found = layer(h, IdentityAttention([layer.index]).for_rows(torch.ones(5, dtype=torch.bool)))
    torch.testing.assert_close(found, h + torch.from_numpy(out).reshape(h.shape), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("side, blur", [(4, 0.4), (5, 0.9), (8, 1.3), (7, 2.0), (8, 40.0), (2, 1.0), (1, 3.0)])
def test_the_blur_is_that_of_the_paper(side, blur):
    """As the code of the authors in diffusers, whose threshold is below every blur here."""
    q = torch.randn(2, side**2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    size = math.ceil(6 * blur) + 1 - math.ceil(6 * blur) % 2
    from diffusers.hooks.smoothed_energy_guidance_utils import _gaussian_blur_2d  # two seconds, for this alone

    expected, weights = _gaussian_blur_2d(q.clone(), size, blur, -1.0), blur_matrix(side, blur, q)
    found = torch.einsum("ij,kl,bjld->bikd", weights, weights, q.unflatten(1, (side, side))).flatten(1, 2)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)  # their kernel is computed in float32
    torch.testing.assert_close(weights.sum(1), torch.ones(side).double(), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("make", [unet, dit])
def test_a_blur_of_0_is_the_network(make):
    backbone = network(make)
    everywhere = torch.ones(5, dtype=torch.bool)
    found = backbone(x, log_snr, y, BlurredQueries(range(len(backbone.attention_layers)), 0.0).for_rows(everywhere))
    assert torch.equal(found, backbone(x, log_snr, y))


@pytest.mark.parametrize("make", [unet, dit, mlp, edm, edm2])
def test_a_network_perturbed_in_no_row_is_unchanged(make):
    """Bit for bit, by all three kinds. Copies and checkpointing perturb the same layers."""
    backbone, data = network(make), x if make is not mlp else x[:, 0, 0, :2]
    for perturbation in (IdentityAttention([0]), BlurredQueries([0], 1.0), SkippedBlocks([0])):
        found = backbone(data, log_snr, y, perturbation.for_rows(torch.zeros(5, dtype=torch.bool)))
        assert torch.equal(found, backbone(data, log_snr, y))
    again, changed = copy.deepcopy(backbone).requires_grad_(), SkippedBlocks([1]).for_rows(ROWS)
    again.checkpointing = True
    same([again(data, log_snr, y, changed).detach()], [backbone(data, log_snr, y, changed)])


@pytest.mark.slow
@pytest.mark.parametrize(
    "make, perturbation",
    [
        (lambda: unet(multipliers=[1], attention=[8]), IdentityAttention([1])),
        (dit, BlurredQueries([1], 0.8)),
        (dit, SkippedBlocks([1])),
    ],
    ids=["identity", "blur", "skip"],
)
def test_compiled_is_eager(make, perturbation):
    """In one graph, without recompilation for other rows."""
    backbone = network(make)
    compiled = torch.compile(backbone, backend="aot_eager", fullgraph=True)
    for rows in (ROWS, ~ROWS):
        changed = perturbation.for_rows(rows)
        with torch.compiler.set_stance("default" if rows is ROWS else "fail_on_recompile"):
            same([compiled(x, log_snr, y, changed)], [backbone(x, log_snr, y, changed)], 1e-10)
