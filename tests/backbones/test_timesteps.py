"""Timesteps of foreign networks, against their definitions."""

import math

import pytest
import torch

from diffguide.backbones.timesteps import DiscreteTimesteps, FlowTimesteps, LogNoiseTimesteps, TimestepFeatures
from diffguide.schedules import Flow, Linear, ScaledLinear, SquaredCosine, ZeroTerminalSNR

SCHEDULES = [Linear(), ScaledLinear(), SquaredCosine(), ZeroTerminalSNR(ScaledLinear())]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_timesteps_are_exact_at_the_trained_levels(schedule, dtype):
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    timesteps = DiscreteTimesteps(schedule)(schedule.log_snr(t).to(dtype))
    assert torch.equal(timesteps, torch.arange(1000.0))


def test_between_two_levels_log_abar_is_linear():
    abar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    between = (0.75 * abar[499].log() + 0.25 * abar[500].log()).exp()
    timestep = DiscreteTimesteps(Linear())(torch.log(between / (1 - between))[None])
    assert torch.allclose(timestep.double(), torch.tensor([499.25], dtype=torch.float64), atol=1e-4)


def test_levels_beyond_the_trained_ones_have_the_timesteps_of_the_ends():
    assert DiscreteTimesteps(Linear())(torch.tensor([30.0, -30.0])).tolist() == [0, 999]


def test_a_network_with_a_table_gets_the_nearest_level():
    log_snr = Linear().log_snr(torch.tensor([0.5004, 0.5006], dtype=torch.float64))
    timesteps = DiscreteTimesteps(Linear(), whole=True)(log_snr)
    assert timesteps.dtype == torch.long and timesteps.tolist() == [499, 500]


def test_flow_and_log_noise_timesteps():
    schedule, t = Flow(), torch.tensor([0.25, 0.5, 0.9], dtype=torch.float64)
    alpha, sigma = schedule.alpha_sigma(t)
    log_snr = schedule.log_snr(t)
    assert torch.allclose(FlowTimesteps()(log_snr).double(), 1000 * sigma, rtol=1e-6)
    assert torch.allclose(FlowTimesteps(1.0, from_noise=True)(log_snr).double(), alpha, rtol=1e-6)
    assert torch.allclose(LogNoiseTimesteps()(log_snr).double(), (sigma / alpha).log() / 4, rtol=1e-6)


@pytest.mark.parametrize("width", [8, 9])
def test_features_are_cosines_then_sines(width):
    log_snr = Linear().log_snr(torch.tensor([0.001, 0.3, 1.0], dtype=torch.float64))
    features = TimestepFeatures(DiscreteTimesteps(Linear()), width)(log_snr)
    for row, k in zip(features.double(), (0, 299, 999)):
        angles = [k * math.exp(-math.log(10000) * i / 4) for i in range(4)]
        wanted = [*map(math.cos, angles), *map(math.sin, angles)] + [0.0] * (width - 8)
        assert torch.allclose(row, torch.tensor(wanted, dtype=torch.float64), atol=1e-4)
