"""Fourier features of an image."""

import math

import pytest
import torch
from networks import dit, lively, unet

from diffguide.backbones.fourier import FourierFeatures


def test_features_are_sines_and_cosines_of_growing_frequency():
    x = torch.linspace(-1, 1, 2 * 3 * 4).reshape(2, 3, 2, 2)
    features = FourierFeatures([1, 4])
    found = features(x)
    assert features.channels(3) == found.shape[1] == 15
    expected = [x, (2 * math.pi * x).sin(), (2 * math.pi * x).cos(), (16 * math.pi * x).sin(), (16 * math.pi * x).cos()]
    torch.testing.assert_close(found, torch.cat(expected, dim=1))
    assert FourierFeatures([])(x) is x


@pytest.mark.parametrize("make", [unet, dit])
def test_networks_get_the_features(make):
    """Images that differ by a wavelength in every pixel differ only in the plain channel."""
    network, x = lively(make(fourier=[3])), torch.randn(1, 1, 8, 8)
    weight = network.conv_in.weight if hasattr(network, "conv_in") else network.patches.weight
    assert weight.shape[1] == 3
    weight.data[:, 0] = 0
    log_snr = torch.zeros(1)
    torch.testing.assert_close(network(x, log_snr), network(x + 0.25, log_snr), rtol=1e-3, atol=1e-3)
    assert (network(x, log_snr) - network(x + 0.1, log_snr)).abs().max() > 1e-2


@pytest.mark.parametrize("exponent", [-1, 13])
def test_exponents_out_of_range_are_refused(exponent):
    with pytest.raises(ValueError, match="exponents from 0 to 12"):
        unet(fourier=[exponent])
