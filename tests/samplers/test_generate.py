"""Batches of samples: how they start, and that they do not know their batch."""

import math

import pytest
import torch
from all_samplers import every_sampler
from closed_forms import ExactMixture, two_classes
from torch import nn

from diffguide.backbones import UNet
from diffguide.models.parameterizations import V
from diffguide.models.preconditioned import Preconditioned
from diffguide.randomness import Noise
from diffguide.samplers import Euler, generate
from diffguide.samplers.grids import Karras, UniformT
from diffguide.schedules import EDM, Cosine

LOW, HIGH = -2 * math.log(0.002), -2 * math.log(80)


def test_samples_start_as_noise_of_the_first_level():
    """sigma z at times[0], which for a variance-exploding schedule is 80 z, or 5 z on a grid that begins lower."""
    for sampler, sigma in ((Euler(6, UniformT()), 80.0), (Euler(6, Karras(7.0, None, 5.0)), 5.0)):
        denoiser, noise = ExactMixture(two_classes(), EDM(LOW, HIGH)), Noise(range(9), (2,), EDM(LOW, HIGH))
        times = sampler.times(denoiser)
        found = next(generate(denoiser, sampler, range(9), None, (2,), 9))
        by_hand = sampler(denoiser, sigma * noise.normal(times[0], 0), times)
        torch.testing.assert_close(found, by_hand, rtol=1e-5, atol=1e-5)


def test_embedded_labels_give_the_samples_of_the_labels():
    torch.manual_seed(0)
    network = UNet(1, None, 3, 8, 8, [1], blocks=1, attention=[], dropout=0.0)
    denoiser = Preconditioned(network, Cosine(12.0, -10.0), V(), has_null=True).eval()
    labels = [0, 2, -1]
    with torch.no_grad():
        embedded = denoiser.embed(torch.tensor(labels))
    found, expected = (
        torch.cat(list(generate(denoiser, Euler(2, UniformT()), range(3), y, (1, 8, 8), 2))) for y in (embedded, labels)
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "labels, message",
    [([0], "1 labels and 2 seeds"), (range(3), "3 labels and 2 seeds"), ([0, 2], "from -1 .* to 1, got 2")],
)
def test_labels_must_fit_the_seeds_and_the_classes(labels, message):
    denoiser = ExactMixture(two_classes(), Cosine(12.0, -10.0))
    with pytest.raises(ValueError, match=message):
        next(generate(denoiser, Euler(2, UniformT()), range(2), labels, (2,), 2))


@every_sampler
def test_exact_samples_do_not_depend_on_their_batch(make):
    labels = [(i % 3) - 1 for i in range(7)]
    denoiser, sampler = ExactMixture(two_classes(), Cosine(12.0, -10.0)), make(6)
    alone, *others = (
        torch.cat(list(generate(denoiser, sampler, range(5, 12), labels, (2,), size))) for size in (1, 5, 7)
    )
    assert alone.shape == (7, 2) and len(alone.unique(dim=0)) == 7
    for other in others:
        torch.testing.assert_close(other, alone, rtol=0, atol=1e-12)


@every_sampler
def test_samples_of_a_network_do_not_depend_on_their_batch(make):
    torch.manual_seed(0)
    network = UNet(1, None, 3, 8, 8, [1], blocks=1, attention=[8], head_channels=8, dropout=0.1)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    denoiser = Preconditioned(network, Cosine(12.0, -10.0), V(), has_null=True).eval()
    labels = [(i % 4) - 1 for i in range(5)]
    alone, *others = (torch.cat(list(generate(denoiser, make(4), range(5), labels, (1, 8, 8), n))) for n in (1, 3, 64))
    assert alone.dtype == torch.float32
    for other in others:
        torch.testing.assert_close(other, alone, rtol=1e-5, atol=1e-5)
