"""The networks of EDM and EDM2: published sizes, kept magnitudes, weights that training normalises, skipped blocks."""

import copy
import math

import pytest
import torch
from networks import batch, edm, edm2, lively, ncsnpp
from perturbed_networks import ROWS, log_snr, network, same, x, y
from torch._dynamo.utils import counters

from diffguide.backbones.conditions import Embedding
from diffguide.backbones.edm import EDMUNet
from diffguide.backbones.edm2 import EDM2UNet
from diffguide.backbones.edm2_layers import MPFourier, MPLayer, mp_concatenate, mp_silu, mp_sum, normalise
from diffguide.backbones.edm_layers import Resample
from diffguide.backbones.perturbations import SkippedBlocks
from diffguide.runtime import compiling

CIFAR = {"size": 32, "channels": 128, "multipliers": [2, 2, 2], "blocks": 4, "attention": [16]}
NCSN = {"noise_features": "fourier", "noise_multiplier": 2, "encoder": "residual", "resample_filter": [1, 3, 3, 1]}
PAPER = {
    "num_classes": 1000,
    "size": 64,
    "multipliers": [1, 2, 3, 4],
    "blocks": 3,
    "attention": [16, 8],
    "head_channels": 64,
}
PUBLISHED = {  # million parameters: arXiv 2206.00364, table 7; arXiv 2312.02696, table 2
    "DDPM++": (lambda: EDMUNet(3, **CIFAR), 56),
    "NCSN++": (lambda: EDMUNet(3, **CIFAR, **NCSN), 56),
    "DDPM++ of 64 pixels": (lambda: EDMUNet(3, **CIFAR | {"size": 64, "multipliers": [1, 2, 2, 2]}), 62),
    "EDM2-XS": (lambda: EDM2UNet(4, **PAPER, channels=128), 125),
    "EDM2-S": (lambda: EDM2UNet(4, **PAPER, channels=192), 280),
    "EDM2-XXL": (lambda: EDM2UNet(4, **PAPER, channels=448), 1523),
}


@pytest.mark.parametrize("make, millions", PUBLISHED.values(), ids=PUBLISHED)
def test_the_sizes_are_those_of_the_papers(make, millions):
    with torch.device("meta"):
        network = make()
    assert round(sum(parameter.numel() for parameter in network.parameters()) / 1e6) == millions


def root_mean_square(h):
    return float(h.square().mean().sqrt())


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_layers_keep_the_magnitude():
    """Of independent inputs of variance 1, with an error of a few standard errors of the estimate."""
    torch.manual_seed(9)
    with torch.no_grad():
        assert root_mean_square(MPLayer(256, 512)(draw(512, 256))) == pytest.approx(1, abs=0.01)
        inner = MPLayer(64, 128, 3)(draw(32, 64, 16, 16))[:, :, 1:-1, 1:-1]  # zeros beyond the border are no noise
        assert root_mean_square(inner) == pytest.approx(1, abs=0.01)
    a, b = draw(64, 8, 32, 32), draw(64, 24, 32, 32, seed=1)
    assert root_mean_square(mp_silu(a)) == pytest.approx(1, abs=0.01)
    assert root_mean_square(mp_sum(a, draw(*a.shape, seed=2), 0.3)) == pytest.approx(1, abs=0.01)
    joined = mp_concatenate(a, b, 0.25)
    assert root_mean_square(joined) == pytest.approx(1, abs=0.01)
    parts = [
        float(part.square().sum()) for part in (joined[:, :8], joined[:, 8:])
    ]  # 0.75^2 : 0.25^2, whatever their widths
    assert parts[1] / parts[0] == pytest.approx(1 / 9, rel=0.01)
    assert normalise(7 * a, 1).square().mean(1).sqrt().sub(1).abs().max() < 1e-4


def test_fourier_features_have_magnitude_1():
    """On average over the features at each level, and over levels for each feature."""
    torch.manual_seed(0)
    features = MPFourier(4096)(torch.linspace(-50, 50, 4001))
    assert features.square().mean(1).sqrt().sub(1).abs().max() < 0.05
    assert features.square().mean(0).sqrt().median() == pytest.approx(1, abs=0.01)
    assert features.dtype == torch.float32


def test_a_new_network_keeps_the_magnitude_everywhere():
    """The output of every block, for an image of standard normal numbers; averages over pixels by attention are smaller."""
    torch.manual_seed(0)
    network, seen = EDM2UNet(3, None, 4, 16, 32, [1, 2], 2, [8], 32).eval(), []
    for block in [*network.enc.values(), *network.dec.values()]:
        block.register_forward_hook(lambda _, inputs, output: seen.append(root_mean_square(output)))
    with torch.no_grad():
        network(draw(8, 3, 16, 16), torch.zeros(8), torch.arange(8) % 4)
    assert len(seen) == 1 + 5 + 9 and all(0.7 < value < 1.1 for value in seen), seen


def layers_of(network):
    return [layer for layer in network.modules() if isinstance(layer, MPLayer)]


def large(**changed):
    """A network whose weights are 3 times too large, in training."""
    network = lively(edm2(dropout=0.0, **changed)).requires_grad_()
    with torch.no_grad():
        for layer in layers_of(network):
            layer.weight.mul_(3 / layer.weight.square().mean().sqrt())
    return network.train()


def test_training_normalises_the_weights_and_evaluation_does_not():
    network = large()
    before = copy.deepcopy(network.state_dict())
    with torch.no_grad():
        output = network.eval()(*batch(4, 1, 8, 8))
        assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
        trained = network.train()(*batch(4, 1, 8, 8))
    torch.testing.assert_close(trained, output, rtol=1e-3, atol=1e-3)  # to the 1e-4 in the denominator
    for layer in layers_of(network):
        magnitudes = layer.weight.square().mean(layer.dims).sqrt()
        assert float((magnitudes - 1).detach().abs().max()) < 2e-4
    gains = [name for name, value in network.state_dict().items() if value.ndim == 0]
    assert len(gains) == 11 and all(torch.equal(before[name], network.state_dict()[name]) for name in gains)


def test_the_gradient_is_that_of_the_normalised_weights():
    """It is orthogonal to the weights of each output, since their magnitude has no effect, also after a second call."""
    network = large()
    output = network(*batch(4, 1, 8, 8))
    network(*batch(4, 1, 8, 8, seed=1))
    output.square().sum().backward()
    for layer in layers_of(network):
        product = (layer.weight * layer.weight.grad).flatten(1).sum(1).abs()
        assert float((product / (layer.weight.norm() * layer.weight.grad.norm() + 1e-12)).detach().max()) < 1e-3


def test_checkpointing_changes_nothing_in_training():
    gradients = []
    for checkpointing in (False, True):
        network = large(checkpointing=checkpointing)
        loss = network(*batch(4, 1, 8, 8)).square().mean()
        gradients.append(torch.autograd.grad(loss, list(network.parameters())))
    assert all(torch.equal(*pair) for pair in zip(*gradients))


def test_compiled_training_normalises_the_weights(monkeypatch):
    """In one graph without breaks; torch.compile around the network falls back to eager calls with the same result."""
    monkeypatch.setattr(compiling, "BACKEND", "eager")
    torch._dynamo.reset()
    counters.clear()
    inputs, results = batch(4, 1, 8, 8), []
    for kind in ("eager", "compiled"):
        network = large(multipliers=[1], attention=[8])
        if kind == "compiled":
            compiling.compile_training(network)
        loss = network(*inputs).square().mean()
        results.append([loss, *torch.autograd.grad(loss, list(network.parameters())), *network.state_dict().values()])
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]
    assert all(torch.equal(*pair) for pair in zip(*results))
    with pytest.raises(Exception, match=r"by its method compile\(\)"):
        torch.compile(large(), backend="eager", fullgraph=True)(*inputs)


@pytest.mark.parametrize("make", [ncsnpp, edm2])
def test_half_precision_keeps_the_frequencies(make):
    """At ln(sigma) / 4 = 1 a frequency of 100 in 8 bits would be off by half a radian."""
    network, level = lively(make()), torch.linspace(-12, 8, 50)
    features = network.embedding.noise if make is ncsnpp else network.embedding.fourier
    before = features(level)
    network.to(torch.bfloat16)
    assert torch.equal(features(level), before)


@pytest.mark.parametrize("taps", [[1, 1], [1, 3, 3, 1]])
def test_resampling_is_the_filter(taps):
    """Against the matrices of both axes, and against diffusers."""
    from diffusers.models.downsampling import downsample_2d  # two seconds, for this alone
    from diffusers.models.upsampling import upsample_2d

    image, n, m = draw(2, 3, 8, 8).double(), 8, len(taps) // 2 - 1
    down, up = torch.zeros(n // 2, n).double(), torch.zeros(2 * n, n).double()
    for row in range(n // 2):
        for index, tap in enumerate(taps):
            if 0 <= 2 * row + index - m < n:
                down[row, 2 * row + index - m] = tap / sum(taps)
    for column in range(n):
        for index, tap in enumerate(taps):
            if 0 <= 2 * column + index - m < 2 * n:
                up[2 * column + index - m, column] = 2 * tap / sum(taps)
    for direction, matrix, theirs in (("down", down, downsample_2d), ("up", up, upsample_2d)):
        found = Resample(direction, taps).double()(image)
        torch.testing.assert_close(found, theirs(image, torch.tensor(taps, dtype=torch.float64)), rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(found, matrix @ image @ matrix.T, rtol=1e-7, atol=1e-7)
    bordered = Resample("down", taps, padded=False).double()(torch.nn.functional.pad(image, (m,) * 4))
    torch.testing.assert_close(bordered, down @ image @ down.T, rtol=1e-7, atol=1e-7)


BLOCKS = {"edm": (edm, [1, 4]), "edm where it halves and doubles": (ncsnpp, [1, 2, 7]), "edm2": (edm2, [1, 2, 3, 7, 8])}


@pytest.mark.parametrize("make, layers", BLOCKS.values(), ids=BLOCKS)
def test_blocks_are_skipped_in_their_rows(make, layers):
    """A skipped block is its skip connection alone, without the factor that keeps the variance of a sum."""
    backbone = network(make)
    plain = backbone(x, log_snr, y)
    found = backbone(x, log_snr, y, SkippedBlocks(layers).for_rows(ROWS))
    blocks = [block for block in [*backbone.enc.values(), *backbone.dec.values()] if hasattr(block, "resample")]
    assert len(blocks) == len(backbone.residual_blocks) == 10

    def skip_of(block, inputs, output):
        if make is not edm2:
            return block.skip(block.resample(inputs[0]))
        h = block.conv_skip(block.resample(inputs[0]))
        return h / (1e-4 + h.square().mean(1, keepdim=True).sqrt()) if block.is_encoder else h

    for index in layers:
        blocks[index].register_forward_hook(skip_of)
    expected = backbone(x, log_snr, y)
    same(found[~ROWS, None], plain[~ROWS, None])
    same(found[ROWS, None], expected[ROWS, None])
    assert float((expected - plain).abs().flatten(1).amax(1).min()) > 1e-4


@pytest.mark.parametrize("make", [edm, ncsnpp, edm2])
def test_labels_embedded_before_are_the_labels(make):
    backbone = network(make)
    same([backbone(x, log_snr, backbone.embed(y))], [backbone(x, log_snr, y)])
    with pytest.raises(ValueError, match="class indices"):
        backbone(x, log_snr, Embedding(torch.randn(5, 8)))
    with pytest.raises(ValueError, match="log_snr .* is required"):
        backbone(x, None, y)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: EDMUNet(2, None, 4, None), "needs images.* use backbone=mlp"),
        (lambda: edm(num_classes=-1), "num_classes must be at least 0, got -1"),
        (lambda: edm(channels=9), "channels x noise_multiplier must be even, got 9"),
        (lambda: edm(noise_features="sines"), "noise_features must be one of positional, fourier, got 'sines'"),
        (lambda: edm(encoder="none"), "encoder must be one of standard, skip, residual, got 'none'"),
        (lambda: edm(decoder="residual"), "decoder must be one of standard, skip, got 'residual'"),
        (lambda: edm(resample_filter=[1, 2, 1]), "resample_filter must be an even number of taps"),
        (lambda: edm(embedding_multiplier=0), "embedding_multiplier must be a whole number"),
        (lambda: edm(attention=[16]), r"attention=\[16\] must be among"),
        (lambda: edm2(head_channels=32), "16 channels .* got 32; use backbone.head_channels=16"),
        (lambda: edm2(head_channels=5), "head_channels must give a whole number of heads"),
        (lambda: edm2(skip_balance=1.5), r"skip_balance must be in \[0, 1\], got 1.5"),
        (lambda: edm2(clip=0.0), r"clip must be in \(0, inf\], got 0.0"),
        (lambda: edm2(noise_multiplier=0), "noise_multiplier must be a whole number"),
        (lambda: edm2(size=9), "side is 9 pixels; use a size of 8 or 10"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_clip_bounds_the_blocks():
    network = lively(edm2(clip=0.5))
    free = network(*batch(4, 1, 8, 8))
    largest = []
    for block in network.dec.values():
        block.register_forward_hook(lambda _, inputs, output: largest.append(float(output.abs().max())))
    assert torch.equal(network(*batch(4, 1, 8, 8)), free) and max(largest) == 0.5
    assert not torch.equal(free, lively(edm2(clip=math.inf))(*batch(4, 1, 8, 8)))


@pytest.mark.parametrize("make, tolerance", [(edm, 1e-12), (edm2, 0.3)], ids=["edm", "edm2"])
def test_classes_can_be_copied_to_a_network_with_other_classes(make, tolerance):
    """EDM: the same outputs. EDM2: to the normalisation over all classes, with weights of magnitude 1 in each."""
    old, new = network(make, num_classes=40), network(make, num_classes=5)
    (name, axis), *rest = old.class_tables().items()
    assert not rest and old.class_row(-1) is None
    state = old.state_dict()
    state[name] = torch.stack([state[name].select(axis, old.class_row(place)) for place in (7, 3, 30, 12, 39)], axis)
    new.load_state_dict(state)
    out = new(x, log_snr, torch.tensor([0, 1, 2, 3, -1]))
    expected = old(x, log_snr, torch.tensor([7, 3, 30, 12, -1]))
    torch.testing.assert_close(out, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))
    assert torch.equal(out[-1], expected[-1])
