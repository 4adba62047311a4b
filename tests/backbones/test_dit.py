"""The transformer equals a NumPy computation, starts as the identity, and has the published sizes."""

import numpy as np
import pytest
import torch
from networks import batch, dit, lively
from scipy.special import softmax

from diffguide.backbones import DiT


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size, patch", [(8, 1), (8, 4), (28, 2), (28, 7), (32, 4), (8, 8)])
def test_images_keep_their_shape(size, patch, channels):
    x, log_snr, y = batch(2, channels, size, size)
    assert lively(dit(channels, size, patch=patch))(x, log_snr, y).shape == x.shape


@pytest.mark.parametrize(
    "depth, width, heads, published",
    [(12, 384, 6, 33e6), (12, 768, 12, 130e6), (24, 1024, 16, 458e6), (28, 1152, 16, 675e6)],
    ids=["S", "B", "L", "XL"],
)
def test_the_sizes_of_the_paper(depth, width, heads, published):
    """Parameters of DiT-S/2 to XL/2 (arXiv 2212.09748, table 1) to 1 %; the noise embedding has other features here."""
    with torch.device("meta"):
        network = DiT(4, 8, 1000, 32, 2, width, depth, heads, 4.0, 0.0)
    assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(published, rel=0.01)


def test_blocks_start_as_the_identity():
    """adaLN-Zero, for every condition."""
    network = dit()
    h, embedding = torch.randn(2, 16, 16), torch.randn(2, 16)
    assert all(torch.equal(block(h, embedding), h) for block in network.blocks)
    assert not torch.equal(lively(network).blocks[0](h, embedding), h)


def test_weights_start_xavier_uniform():
    """Variance 2 / (inputs + outputs), to 3 % over 2e5 draws; the patches are a linear layer."""
    torch.manual_seed(0)
    network = dit(width=256, heads=2)
    for weight, fan in ((network.blocks[0].qkv.weight, 4 * 256), (network.blocks[1].mlp[0].weight, 3 * 256)):
        assert float(weight.detach().var()) == pytest.approx(2 / fan, rel=0.03)
    patches = network.patches.weight.detach()
    assert float(patches.abs().max()) <= (6 / (4 + 256)) ** 0.5 and not network.patches.bias.any()


def encoding(side: int, width: int) -> np.ndarray:
    """sin and cos of position / 10000^(k / K), column first, as in the code of the paper."""
    k = np.arange(width // 4)
    table = np.zeros((side * side, width))
    for row in range(side):
        for column in range(side):
            angles = [place / 10000 ** (k / len(k)) for place in (column, row)]
            table[row * side + column] = np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)])
    return table


def by_hand(network: DiT, x: np.ndarray, embedding: np.ndarray) -> np.ndarray:
    """The transformer given its conditioning vector, from arXiv 2212.09748, section 3.2, in NumPy."""
    weights = {name: value.numpy() for name, value in network.state_dict().items()}
    side, heads = network.patches.stride[0], network.blocks[0].heads

    def linear(name: str, h: np.ndarray) -> np.ndarray:
        return h @ weights[f"{name}.weight"].reshape(len(weights[f"{name}.bias"]), -1).T + weights[f"{name}.bias"]

    def norm(h: np.ndarray) -> np.ndarray:
        return (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-6)

    def gelu(h: np.ndarray) -> np.ndarray:
        return h / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))

    batch, channels, size, _ = x.shape
    grid = size // side
    cut = x.reshape(batch, channels, grid, side, grid, side).transpose(0, 2, 4, 1, 3, 5)
    h = linear("patches", cut.reshape(batch, grid**2, -1)) + encoding(grid, weights["patches.bias"].size)
    c = (embedding / (1 + np.exp(-embedding)))[:, None]
    for index in range(len(network.blocks)):
        name = f"blocks.{index}"
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = np.split(linear(f"{name}.modulation", c), 6, axis=-1)
        parts = np.split(linear(f"{name}.qkv", norm(h) * (1 + scale_a) + shift_a), 3, axis=-1)
        q, k, v = (part.reshape(batch, grid**2, heads, -1).transpose(0, 2, 1, 3) for part in parts)
        mixed = softmax(q @ k.transpose(0, 1, 3, 2) / np.sqrt(q.shape[-1]), axis=-1) @ v
        h = h + gate_a * linear(f"{name}.projection", mixed.transpose(0, 2, 1, 3).reshape(h.shape))
        hidden = gelu(linear(f"{name}.mlp.0", norm(h) * (1 + scale_m) + shift_m))
        h = h + gate_m * linear(f"{name}.mlp.2", hidden)
    shift, scale = np.split(linear("modulation_out", c), 2, axis=-1)
    out = linear("linear_out", norm(h) * (1 + scale) + shift).reshape(batch, grid, grid, side, side, -1)
    image = np.zeros((batch, out.shape[-1], size, size))
    for row in range(size):
        for column in range(size):
            image[:, :, row, column] = out[:, row // side, column // side, row % side, column % side]
    return image


@pytest.mark.parametrize("double_differentiable", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"patch": 4, "out_features": 5}, {"in_channels": 3, "width": 24, "heads": 6, "mlp_ratio": 1.5, "depth": 1}],
    ids=["small", "wide patches", "channels"],
)
def test_the_network_is_that_of_the_paper(options, double_differentiable):
    network = lively(dit(**options, double_differentiable=double_differentiable)).double()
    x, log_snr, y = batch(4, options.get("in_channels", 1), 8, 8)
    x, log_snr = x.double(), log_snr.double()
    expected = by_hand(network, x.numpy(), network.embedding(x, log_snr, y).numpy())
    np.testing.assert_allclose(network(x, log_snr, y), expected, rtol=1e-6, atol=1e-6)  # positions are float32


def shuffled(x, order, side=2):
    """An image with its patches in another order."""
    patches = torch.nn.functional.unfold(x, side, stride=side)[:, :, order]
    return torch.nn.functional.fold(patches, x.shape[2:], side, stride=side)


def test_the_output_depends_on_the_positions_of_patches():
    """Without positions, permuted patches give permuted outputs."""
    x, log_snr, y = batch(2, 1, 8, 8)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    network = lively(dit())
    difference = network(shuffled(x, order), log_snr, y) - shuffled(network(x, log_snr, y), order)
    assert float(difference.abs().max()) > 0.01
    network.positions.zero_()
    torch.testing.assert_close(network(shuffled(x, order), log_snr, y), shuffled(network(x, log_snr, y), order))


def test_learned_positions_are_parameters_in_place_of_sines_and_cosines():
    """With the same positions both are one network; they start as N(0, 1)."""
    x, log_snr, y = batch(2, 1, 8, 8)
    learned, fixed = lively(dit(learned_positions=True)), lively(dit())
    state = learned.state_dict()
    assert state["positions"].shape == fixed.positions.shape
    fixed.load_state_dict({name: value for name, value in state.items() if name != "positions"})
    fixed.positions.copy_(state["positions"])
    assert torch.equal(learned(x, log_snr, y), fixed(x, log_snr, y))
    torch.manual_seed(0)
    started = dict(dit(learned_positions=True).named_parameters())["positions"]
    assert started.requires_grad and 0.8 < float(started.detach().std()) < 1.2


def test_positions_are_no_parameters():
    """Fixed, and not in checkpoints."""
    network = dit()
    assert not any("positions" in name for name in network.state_dict())
    np.testing.assert_allclose(network.positions, encoding(4, 16), atol=1e-6)
