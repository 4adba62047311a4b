"""Shapes of networks, what their output depends on, and rejected arguments."""

import math

import pytest
import torch
from networks import batch, dit, edm, edm2, every_backbone, lively, mlp, same_rows, unet

from diffguide.backbones import DiT, UNet


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
    assert lively(dit(out_features=7))(*batch(2, 1, 8, 8)).shape == (2, 7, 8, 8)
    assert lively(mlp(out_features=7))(*batch(2, 2)).shape == (2, 7)


@every_backbone
def test_the_output_of_a_new_network_is_zero(make, shape):
    assert not make()(*batch(3, *shape)).any()


@every_backbone
def test_the_output_depends_on_everything(make, shape):
    x, log_snr, _ = batch(4, *shape)
    network, y = lively(make()), torch.zeros(4, dtype=torch.long)
    out = network(x, log_snr, y)
    for other in (network(x + 0.1, log_snr, y), network(x, log_snr + 0.3, y), network(x, log_snr, y + 1)):
        assert not same_rows(out, other).any()
    assert not same_rows(out, network(x, log_snr, y - 1)).any(), "no condition is none of the classes"


@every_backbone
def test_no_condition_is_minus_one(make, shape):
    x, log_snr, _ = batch(4, *shape)
    network = lively(make())
    assert torch.equal(network(x, log_snr, None), network(x, log_snr, torch.full((4,), -1)))


@every_backbone
def test_a_network_without_classes_ignores_the_condition(make, shape):
    x, log_snr, _ = batch(4, *shape)
    network = lively(make(num_classes=0))
    assert network.num_classes == 0
    assert torch.equal(network(x, log_snr, None), network(x, log_snr, torch.full((4,), -1)))


@pytest.mark.parametrize("end", [math.inf, -math.inf])
@every_backbone
def test_exact_ends_give_finite_output(make, shape, end):
    x, _, y = batch(4, *shape)
    assert bool(lively(make())(x, torch.full((4,), end), y).isfinite().all())


@every_backbone
def test_the_output_of_a_row_does_not_depend_on_its_batch(make, shape):
    x, log_snr, y = batch(6, *shape)
    network = lively(make())
    together = network(x, log_snr, y)
    for row in range(6):
        alone = network(x[row : row + 1], log_snr[row : row + 1], y[row : row + 1])
        assert same_rows(alone, together[row : row + 1], 1e-5 * float(together.abs().max())).all()


@pytest.mark.parametrize("make", [unet, dit, edm, edm2])
def test_dropout_is_active_in_training_only(make):
    x, log_snr, y = batch(2, 1, 8, 8)
    network = lively(make(dropout=0.5))
    assert torch.equal(network(x, log_snr, y), network(x, log_snr, y))
    network.train()
    assert not same_rows(network(x, log_snr, y), network(x, log_snr, y)).any()


def test_the_widths_of_the_paper():
    """ADM's sizes for ImageNet 64 and 128, 296 M and 422 M parameters (arXiv 2105.05233, section 4), to 1 %."""
    with torch.device("meta"):
        small = UNet(3, None, 1000, 64, 192, [1, 2, 3, 4], 3, [32, 16, 8], 64, 0.1)
        large = UNet(3, None, 1000, 128, 256, [1, 1, 2, 3, 4], 2, [32, 16, 8], 64, 0.0)
    for network, published in ((small, 296e6), (large, 422e6)):
        assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(published, rel=0.01)


def test_attention_follows_the_blocks_at_its_sides():
    """One more layer of attention per block, and one in the middle at the coarsest side."""
    names = [[name for name, _ in unet(attention=sides).named_parameters()] for sides in ([], [8], [4], [8, 4])]
    assert [sum(name.endswith("qkv.weight") for name in each) for each in names] == [0, 3, 4, 7]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: unet(size=9, attention=[]), "side is 9 pixels; use a size of 8 or 10 "),
        (lambda: unet(size=28, multipliers=[1, 1, 1, 1], attention=[]), "use a size of 24 or 32 pixels"),
        (lambda: unet(attention=[16]), r"attention=\[16\] .* backbone.attention=\[8\]; backbone=unet_28"),
        (lambda: unet(head_channels=5), "head_channels must divide .* got 5; use backbone.head_channels=1"),
        (lambda: UNet(2, None, 4, None, 8, [1, 2], 1, [4], 8, 0.0), "needs images.* use backbone=mlp"),
        (lambda: unet(dropout=1.0), "dropout must be in .* got 1"),
        (lambda: mlp(layers=0), "needs 1 layer, .* got layers=0"),
        (lambda: DiT(2, None, 4, None, 2, 16, 1, 2, 4.0, 0.0), "needs images.* use backbone=mlp"),
        (lambda: dit(patch=3), "patch must divide .* got 3; use a size of 6 or 9 pixels"),
        (lambda: dit(patch=0), "patch must divide .* got 0"),
        (lambda: dit(width=18), "width must be .* heads=2, got 18"),
        (lambda: dit(heads=3), "width must be .* heads=3, got 16"),
        (lambda: dit(heads=0), "width must be .* heads=0, got 16"),
        (lambda: dit(depth=0), "1 block .* got depth=0, mlp_ratio=2.0"),
        (lambda: dit(mlp_ratio=0.0), "1 block .* got depth=2, mlp_ratio=0.0"),
        (lambda: dit(dropout=1.0), "dropout must be in .* got 1"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
