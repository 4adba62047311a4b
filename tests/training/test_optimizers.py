"""Muon for matrices and AdamW for the rest, against the equations in float64, and across a saved state."""

import copy

import numpy
import pytest
import torch
from torch import nn

from diffguide.training.optimizers import Muon

RATE, DECAY, MOMENTUM, FIRST, SECOND = 0.01, 0.1, 0.9, 0.8, 0.95


def orthogonalize(matrix: numpy.ndarray) -> numpy.ndarray:
    """Five quintic Newton-Schulz steps of Jordan et al.: s -> 3.4445 s - 4.775 s^3 + 2.0315 s^5 on each singular value."""
    left, values, right = numpy.linalg.svd(matrix, full_matrices=False)
    values = values / numpy.linalg.norm(values)
    for _ in range(5):
        values = 3.4445 * values - 4.775 * values**3 + 2.0315 * values**5
    return left @ numpy.diag(values) @ right


def make_network() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(5, 3)


def step_with(optimizer: torch.optim.Optimizer, layer: nn.Linear, steps: range) -> list[list[numpy.ndarray]]:
    """Steps with gradients of fixed random numbers; returns the gradients of each step."""
    found = []
    for step in steps:
        rng = torch.Generator().manual_seed(step)
        for value in layer.parameters():
            value.grad = torch.randn(value.shape, generator=rng)
        optimizer.step()
        found.append([value.grad.double().numpy().copy() for value in layer.parameters()])
    return found


def make_optimizer(layer: nn.Linear) -> Muon:
    return Muon(layer.parameters(), lr=RATE, momentum=MOMENTUM, betas=(FIRST, SECOND), weight_decay=DECAY)


def test_matrices_follow_muon_and_vectors_adamw():
    layer = make_network()
    weight, bias = (value.detach().double().numpy().copy() for value in layer.parameters())
    momentum, first, second = 0.0, 0.0, 0.0
    for step, (matrix, vector) in enumerate(step_with(make_optimizer(layer), layer, range(3)), start=1):
        momentum = MOMENTUM * momentum + (1 - MOMENTUM) * matrix  # its scale does not matter
        update = orthogonalize((1 - MOMENTUM) * matrix + MOMENTUM * momentum)
        weight = (1 - RATE * DECAY) * weight - RATE * 0.2 * 5**0.5 * update
        first, second = FIRST * first + (1 - FIRST) * vector, SECOND * second + (1 - SECOND) * vector**2
        scaled = first / (1 - FIRST**step) / (numpy.sqrt(second / (1 - SECOND**step)) + 1e-8)
        bias = (1 - RATE * DECAY) * bias - RATE * scaled
    assert layer.bias.detach().double().numpy() == pytest.approx(bias, abs=1e-6)
    # torch orthogonalizes in bfloat16
    assert layer.weight.detach().double().numpy() == pytest.approx(weight, abs=0.02 * 3 * RATE)


def test_a_loaded_state_continues_exactly():
    whole, parted = make_network(), make_network()
    step_with(make_optimizer(whole), whole, range(4))
    before = make_optimizer(parted)
    step_with(before, parted, range(2))
    saved = copy.deepcopy(before.state_dict())
    after = make_optimizer(parted)
    after.load_state_dict(saved)
    step_with(after, parted, range(2, 4))
    assert torch.equal(whole.weight, parted.weight) and torch.equal(whole.bias, parted.bias)


def test_the_rates_of_the_groups_are_those_of_the_steps():
    layer = make_network()
    optimizer, before = make_optimizer(layer), copy.deepcopy(layer.state_dict())
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    step_with(optimizer, layer, range(1))
    assert len(optimizer.param_groups) == 2
    assert all(torch.equal(before[name], value) for name, value in layer.state_dict().items())


def test_a_network_without_matrices_has_adamw_alone():
    layer = nn.LayerNorm(4)
    optimizer = Muon(layer.parameters(), lr=RATE)
    (layer(torch.randn(2, 4)).square().mean()).backward()
    assert float(optimizer.step(lambda: 0.5)) == 0.5 and len(optimizer.param_groups) == 1
    assert not torch.equal(layer.weight, torch.ones(4))


def test_arguments_out_of_range_are_errors():
    with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\)"):
        Muon(make_network().parameters(), momentum=1.0)
    with pytest.raises(ValueError, match="empty parameter list"):
        Muon([])
