"""Options that published networks need; that they compute the published layers is tested in tests/conversion."""

import math

import pytest
import torch

from diffguide.backbones import DiT, UNet, UNetEncoder
from diffguide.backbones.perturbations import SkippedBlocks
from diffguide.backbones.timesteps import DiscreteTimesteps, TimestepFeatures
from diffguide.schedules import Linear

SIZES = {"size": 8, "channels": 16, "head_channels": 8, "blocks": 1, "dropout": 0.0}
LOG_SNR = torch.tensor([3.0, -2.0])


def randomised(network):
    rng = torch.Generator().manual_seed(0)
    for value in network.parameters():
        value.data.normal_(0, 0.2, generator=rng)
    return network.eval().requires_grad_(False)


def x(channels: int = 3) -> torch.Tensor:
    return torch.randn(2, channels, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("make", [UNet, DiT])
def test_a_learned_variance_doubles_the_channels(make):
    sizes = SIZES if make is UNet else {"size": 8, "width": 16, "depth": 1, "heads": 2}
    plain, learned = (randomised(make(3, learned_variance=chosen, **sizes)) for chosen in (False, True))
    assert plain(x(), LOG_SNR).shape == (2, 3, 8, 8) and not plain.learned_variance
    assert learned(x(), LOG_SNR).shape == (2, 6, 8, 8) and learned.learned_variance


@pytest.mark.parametrize("make", [UNet, UNetEncoder, DiT])
def test_the_embedding_takes_the_features_of_a_timestep(make):
    """MLP([cos, sin] of tau w_i): the weights of the first layer are one for each feature."""
    features = TimestepFeatures(DiscreteTimesteps(Linear(), 1000), width=6, max_period=100.0)
    sizes = {"size": 8, "width": 16, "depth": 1, "heads": 2} if make is DiT else SIZES
    arguments = (3, 4) if make is UNetEncoder else (3,)
    network = randomised(make(*arguments, noise_features=features, **sizes))
    t = torch.tensor([0.3, 0.9], dtype=torch.float64)
    found = network.embedding(x(), Linear().log_snr(t).float(), None)
    angles = torch.tensor([299.0, 899.0])[:, None] * torch.tensor([1.0, 100 ** (-1 / 3), 100 ** (-2 / 3)])
    first, _, last = network.embedding.noise
    hidden = torch.cat([angles.cos(), angles.sin()], 1) @ first.weight.T + first.bias
    wanted = (hidden * torch.sigmoid(hidden)) @ last.weight.T + last.bias
    assert torch.allclose(found, wanted, atol=1e-5)
    assert not [name for name in network.state_dict() if "frequencies" in name or "features" in name]


def test_in_half_precision_the_timestep_is_not_rounded():
    features = TimestepFeatures(DiscreteTimesteps(Linear(), 1000), width=16)
    network = randomised(UNet(3, noise_features=features, **SIZES))
    exact = network.embedding(x(), LOG_SNR, None)
    network.to(torch.bfloat16)
    assert (network.embedding(x(), LOG_SNR, None).float() - exact).abs().max() < 0.05 * exact.abs().max()


def test_the_middle_may_have_attention_that_no_level_has():
    assert UNet(3, attention=(), **SIZES).attention_layers == []
    assert UNet(3, attention=(), middle_attention=True, **SIZES).attention_layers == [4]
    assert UNet(3, attention=(4,), middle_attention=True, **SIZES).attention_layers == UNet(3, **SIZES).attention_layers
    assert (
        not hasattr(UNetEncoder(3, 4, **SIZES), "middle") and len(UNetEncoder(3, 4, middle=True, **SIZES).middle) == 2
    )


def test_blocks_of_a_network_without_residual_resampling_can_be_skipped():
    """Convolutions that change the side are no blocks: the numbers of the others have no gaps."""
    network = randomised(UNet(3, residual_resampling=False, **SIZES))
    assert network.residual_blocks == [8, 4, 4, 4, 4, 4, 8, 8]
    plain = network(x(), LOG_SNR)
    for index in range(8):
        assert not torch.equal(
            network(x(), LOG_SNR, None, SkippedBlocks([index]).for_rows(torch.ones(2, dtype=torch.bool))), plain
        )


def test_convolutions_halve_and_double_the_side():
    network = UNet(3, residual_resampling=False, **SIZES)
    down, up = network.down[1].layers, network.up[2].layers
    h = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    wanted = torch.nn.functional.conv2d(h, down[0].weight, down[0].bias, stride=2, padding=1)
    assert torch.equal(network.down[1](h, None), wanted)
    h = torch.randn(1, 32, 4, 4, generator=torch.Generator().manual_seed(0))
    larger = h.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.equal(network.up[2](h, None), torch.nn.functional.conv2d(larger, up[1].weight, up[1].bias, padding=1))


def test_widths_may_be_fractions_of_the_channels():
    """The conditioning vector is 4 times `channels`, not 4 times the first width."""
    network = UNet(3, multipliers=(0.5, 1), **SIZES)
    assert network.conv_in.out_channels == 8 and network.embedding.features == 64
    assert network(x(), LOG_SNR).shape == (2, 3, 8, 8)


@pytest.mark.parametrize("options, message", [
    ({"groups": 5}, "groups must divide the 16 channels of a layer, got 5"),
    ({"groups": 0}, "groups must divide the 16 channels"),
    ({"heads": 3}, "heads must divide the 32 channels at the sides with attention, got 3"),
    ({"heads": 0}, "heads must divide the 32 channels"),
    ({"multipliers": (0.1, 1)}, "4 channels at every side"),
])  # fmt: skip
def test_values_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        UNet(3, **SIZES | options)


def test_the_scaled_index_is_asked_of_a_network_with_other_steps():
    t = torch.tensor([0.25, 1.0], dtype=torch.float64)
    schedule = Linear(steps=4000, beta_start=2.5e-5, beta_end=0.005)
    assert DiscreteTimesteps(schedule, 4000, scale=0.25)(schedule.log_snr(t)).tolist() == [999 / 4, 3999 / 4]
    with pytest.raises(ValueError, match="scale"):
        DiscreteTimesteps(scale=math.inf)
