"""Networks of diffusers as backbones: their attention."""

import math

import pytest
import torch
from diffusers_folders import TOKENS, UNET, randomize
from torch.nn.functional import scaled_dot_product_attention

from diffguide.backbones.diffusers_network import DiffusersNetwork
from diffguide.backbones.perturbations import BlurredQueries
from diffguide.backbones.perturbed_calls import PerturbedCall


def closeness(one, other):
    return float((one - other).abs().max() / other.abs().max())


@pytest.mark.parametrize("name", ["UNet2DModel", "UNet2DConditionModel"])  # the second attends to a text too
def test_attention_has_second_derivatives_where_they_are_wanted(name):
    arguments = {key: value for key, value in (UNET | TOKENS.get(name, {})).items() if key != "sample_size"}
    tokens = 5 * (name in TOKENS)
    network, plain = (
        DiffusersNetwork(
            3, size=16, network=name, arguments=arguments, condition_tokens=tokens, double_differentiable=twice
        )
        for twice in (True, False)
    )
    randomize(network).requires_grad_(False).double()
    plain.load_state_dict(network.state_dict())
    x, direction = torch.randn(2, 1, 3, 16, 16, dtype=torch.float64)

    def gradient(x, network=network):
        x = x.requires_grad_()
        return torch.autograd.grad(
            network(x, torch.zeros(1)).square().sum(), x, create_graph=network.double_differentiable
        )[0]

    assert closeness(gradient(x).detach(), gradient(x, plain.double().eval())) < 1e-12
    product = torch.autograd.grad((gradient(x) * direction).sum(), x)[0]
    step = 1e-4 * direction
    differences = (gradient((x + step).detach()) - gradient((x - step).detach())) / 2e-4
    assert closeness(product, differences.detach()) < 1e-6


class MaskedAttention(torch.nn.Module):
    """Each of four pixels attends to itself and the ones before."""

    def forward(self, q):
        return scaled_dot_product_attention(q, q, q, attn_mask=torch.ones(4, 4, dtype=torch.bool).tril(), scale=0.3)


def test_a_perturbed_call_keeps_masks():
    q, rows = torch.randn(3, 1, 4, 8), torch.tensor([True, False, True])
    network = MaskedAttention()
    blurred = BlurredQueries([0], math.inf).for_rows(rows)
    with PerturbedCall(network, blurred, (2, 2)):
        found = network(q)
    weights = (0.3 * q.mean(2, keepdim=True) @ q.mT).masked_fill(torch.ones(4, 4).triu(1).bool(), -math.inf).softmax(-1)
    assert torch.equal(found[1], network(q)[1])
    assert closeness(found[rows], (weights @ q)[rows]) < 1e-6
