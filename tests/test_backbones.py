"""Networks: shapes, what their output depends on, and what they refuse."""

import math

import pytest
import torch
from torch import nn

from diffguide.backbones import MLP, UNet


def unet(in_channels=1, size=8, out_features=None, num_classes=3, **changed) -> UNet:
    options = {"channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": [size // 2], "head_channels": 8}
    return UNet(in_channels, out_features, num_classes, size, **options | {"dropout": 0.1} | changed)


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


NETWORKS = {"unet": (unet, (1, 8, 8)), "mlp": (mlp, (2,))}
every_network = pytest.mark.parametrize("make, shape", NETWORKS.values(), ids=NETWORKS)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size, multipliers", [(8, [1, 2]), (28, [1, 2]), (32, [1, 2, 2])])
@pytest.mark.parametrize("blocks", [1, 2])
def test_images_keep_their_shape(size, multipliers, channels, blocks):
    x, log_snr, y = batch(2, channels, size, size)
    network = lively(unet(channels, size, multipliers=multipliers, blocks=blocks))
    assert network(x, log_snr, y).shape == x.shape


@pytest.mark.parametrize("length, fourier_features", [(1, 0), (2, 32), (64, 8)])
def test_vectors_keep_their_shape(length, fourier_features):
    x, log_snr, y = batch(5, length)
    assert lively(mlp(length, fourier_features=fourier_features))(x, log_snr, y).shape == x.shape


def test_out_features_are_the_width_of_the_output():
    assert lively(unet(out_features=7))(*batch(2, 1, 8, 8)).shape == (2, 7, 8, 8)
    assert lively(mlp(out_features=7))(*batch(2, 2)).shape == (2, 7)


@every_network
def test_a_new_network_says_zero(make, shape):
    assert not make()(*batch(3, *shape)).any()


def same_rows(a, b, atol=1e-6):
    return torch.isclose(a, b, rtol=0, atol=atol).flatten(1).all(1)


@every_network
def test_the_output_depends_on_everything(make, shape):
    x, log_snr, _ = batch(4, *shape)
    network, y = lively(make()), torch.zeros(4, dtype=torch.long)
    out = network(x, log_snr, y)
    for other in (network(x + 0.1, log_snr, y), network(x, log_snr + 0.3, y), network(x, log_snr, y + 1)):
        assert not same_rows(out, other).any()
    assert not same_rows(out, network(x, log_snr, y - 1)).any(), "no condition is none of the classes"


@every_network
def test_no_condition_is_minus_one(make, shape):
    x, log_snr, _ = batch(4, *shape)
    network = lively(make())
    assert torch.equal(network(x, log_snr, None), network(x, log_snr, torch.full((4,), -1)))


@every_network
def test_a_network_without_classes_ignores_the_condition(make, shape):
    x, log_snr, _ = batch(4, *shape)
    network = lively(make(num_classes=0))
    assert network.num_classes == 0
    assert torch.equal(network(x, log_snr, None), network(x, log_snr, torch.full((4,), -1)))


@pytest.mark.parametrize("end", [math.inf, -math.inf])
@every_network
def test_exact_ends_give_finite_output(make, shape, end):
    x, _, y = batch(4, *shape)
    assert bool(lively(make())(x, torch.full((4,), end), y).isfinite().all())


@every_network
def test_samples_do_not_know_their_batch(make, shape):
    x, log_snr, y = batch(6, *shape)
    network = lively(make())
    together = network(x, log_snr, y)
    for row in range(6):
        alone = network(x[row : row + 1], log_snr[row : row + 1], y[row : row + 1])
        assert same_rows(alone, together[row : row + 1], 1e-5 * float(together.abs().max())).all()


def test_dropout_acts_in_training_alone():
    x, log_snr, y = batch(2, 1, 8, 8)
    network = lively(unet(dropout=0.5))
    assert torch.equal(network(x, log_snr, y), network(x, log_snr, y))
    network.train()
    assert not same_rows(network(x, log_snr, y), network(x, log_snr, y)).any()


@every_network
def test_half_precision_weights_are_served(make, shape):
    assert lively(make()).to(torch.bfloat16)(*batch(2, *shape)).dtype == torch.bfloat16


def test_attention_lies_where_it_is_asked():
    """One more layer of attention per block, and one in the middle at the coarsest side."""
    names = [[name for name, _ in unet(attention=sides).named_parameters()] for sides in ([], [8], [4], [8, 4])]
    assert [sum(name.endswith("qkv.weight") for name in each) for each in names] == [0, 3, 4, 7]


@pytest.mark.parametrize(
    "make, sentence",
    [
        (lambda: unet(size=9, attention=[]), "2 multipliers halve the image 1 times, but its side is 9 pixels"),
        (lambda: unet(size=28, multipliers=[1, 1, 1, 1], attention=[]), "halve the image 3 times, but its side is 28"),
        (lambda: unet(attention=[16]), r"attention=\[16\]: the sides of this network are \[8, 4\], not 16"),
        (lambda: unet(head_channels=5), "head_channels must divide 16 channels where attention is asked, got 5"),
        (lambda: UNet(2, None, 4, None, 8, [1, 2], 1, [4], 8, 0.0), "has vectors: take backbone=mlp"),
        (lambda: unet(dropout=1.0), r"dropout must be in \[0, 1\), got 1"),
        (lambda: mlp(layers=0), "needs 1 layer, .* got layers=0"),
    ],
)
def test_bad_arguments_are_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
