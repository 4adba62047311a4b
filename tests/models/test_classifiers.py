"""Classifiers of noisy data: the networks, the objective, training by the real command."""

import json
import math

import numpy
import pytest
import torch
from closed_forms import two_classes
from networks import encoder, lively, mlp, unet

import diffguide
from diffguide.datasets import Digits
from diffguide.evaluation.classification.metric import accuracies
from diffguide.models.noisy_classifier import NoisyClassifier
from diffguide.objectives import ClassifierObjective
from diffguide.objectives.base import Loss
from diffguide.objectives.levels import UniformTime
from diffguide.schedules import EDM, Cosine
from diffguide.schedules.learned import Monotone
from diffguide.train import main as train

COSINE = Cosine(12.0, -10.0)


def test_the_encoder_has_one_vector_per_image():
    """Rows do not mix, the noise level matters, positions matter, and so does every part of the image."""
    network = lively(encoder())
    x, log_snr = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.linspace(-5, 5, 4)
    whole = network(x, log_snr)
    assert whole.shape == (4, 3)
    torch.testing.assert_close(network(x[2:3], log_snr[2:3]), whole[2:3], rtol=1e-5, atol=1e-5)
    assert (network(x, log_snr + 1) - whole).abs().max() > 1e-4
    assert (network(x.flip(-1), log_snr) - whole).abs().max() > 1e-4
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(network(x, log_snr)[:, 0].sum(), x)
    assert (gradient != 0).all()


def test_the_pooling_is_attention_from_the_mean():
    """Equal to the explicit sum of each head."""
    pooling = lively(encoder()).pooling.double()
    h = torch.randn(2, 16, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for image, found in zip(h, pooling(h)):
        pixels = image.reshape(16, 16).T
        tokens = torch.cat([pixels.mean(0, keepdim=True), pixels]) + pooling.position
        q, kv, parts = pooling.query(tokens[0]), pooling.key_value(tokens), []
        for head in (slice(0, 8), slice(8, 16)):
            k, v = kv[:, :16][:, head], kv[:, 16:][:, head]
            parts.append(torch.softmax(k @ q[head] / math.sqrt(8), 0) @ v)
        torch.testing.assert_close(found, pooling.linear(torch.cat(parts)))


def test_the_encoder_is_twice_differentiable_and_starts_uniform():
    network = lively(encoder()).double()
    x = torch.randn(1, 1, 8, 8, dtype=torch.float64).requires_grad_()
    torch.autograd.gradgradcheck(lambda x: network(x, torch.zeros(1)).square().sum(), x, atol=1e-3, rtol=1e-3)
    assert torch.equal(encoder().eval()(torch.randn(2, 1, 8, 8), torch.zeros(2)), torch.zeros(2, 3))


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"out_features": 0}, "out_features must be at least 1"),
        ({"size": 9}, "halve the image 1 times"),
        ({"attention": [3]}, "among the sides of this network, \\[8, 4\\]"),
        ({"dropout": 1.0}, "dropout must be in"),
        ({"head_channels": 5}, "head_channels must divide the 16"),
        ({"blocks": 0}, "1 block"),
    ],
)
def test_arguments_of_the_encoder_out_of_range_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        encoder(**changed)


def test_the_classifier_is_the_same_under_every_normalisation():
    """At equal log-SNR, x_t rescaled to another schedule gives the same probabilities."""
    network = lively(mlp(out_features=3, num_classes=0)).double()
    x_0, eps = torch.randn(2, 5, 2, dtype=torch.float64)
    log_snr, answers = torch.tensor([6.0, 2.0, 0.0, -3.0, -8.0], dtype=torch.float64), []
    for schedule in (COSINE, EDM(12.4, -8.7)):
        alpha, sigma = schedule.scales(log_snr, 2)
        answers.append(NoisyClassifier(network, schedule).log_prob(alpha * x_0 + sigma * eps, schedule.t_of(log_snr)))
    torch.testing.assert_close(*answers, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(answers[0].exp().sum(1), torch.ones(5, dtype=torch.float64))


@pytest.mark.parametrize(
    "network, message",
    [
        (unet(), "UNet has an output in the shape"),
        (mlp(num_classes=0), "MLP has an output in the shape"),
        (mlp(out_features=3), "MLP takes a condition"),
    ],
)
def test_networks_without_class_outputs_or_with_a_condition_are_refused(network, message):
    with pytest.raises(ValueError, match=message):
        NoisyClassifier(network, COSINE)


def test_a_learned_schedule_is_refused():
    schedule = Monotone(log_snr_max=10.0, log_snr_min=-8.0, width=16, learned_ends=False)
    with pytest.raises(ValueError, match="needs a fixed schedule"):
        ClassifierObjective(mlp(out_features=3, num_classes=0), schedule, UniformTime(True))


def test_the_loss_is_the_cross_entropy_at_the_drawn_levels():
    """Its mean at the optimum is the conditional entropy of y given x_t, here of a mixture with the exact classifier."""
    mixture, rng = two_classes(), numpy.random.default_rng(0)
    x_0, y = (torch.from_numpy(part) for part in mixture.sample(512, rng))
    objective = ClassifierObjective(mlp(out_features=2, num_classes=0), COSINE, UniformTime(True))
    log_density = lambda x, a, s, c: mixture.log_density(x, a, s, numpy.full(len(x), c))  # noqa: E731

    def exact(x_t, log_snr):
        alpha, sigma = (part.numpy() for part in COSINE.scales(log_snr))
        joint = numpy.stack([log_density(x_t.numpy(), alpha, sigma, c) for c in (0, 1)], 1) + numpy.log([0.7, 0.3])
        return torch.from_numpy(joint).log_softmax(1)

    objective.model.log_prob_at = exact
    loss = objective(x_0, y, torch.Generator().manual_seed(0))
    assert torch.equal(loss.per_example, loss.terms["ce"])
    assert math.exp(-loss.per_example.mean()) > 0.6 and loss.per_example.mean() < 0.61  # nats; -sum p log p = .61
    clean = loss.log_snr > 4
    assert loss.terms["accuracy"][clean].mean() > 0.95 and loss.terms["accuracy"][loss.log_snr < -6].mean() < 0.9


def test_figures_are_means_over_bands_of_noise():
    objective = ClassifierObjective(mlp(out_features=2, num_classes=0), COSINE, UniformTime(True))
    levels = torch.tensor([0.05, 0.09, 0.2, 5.0, 20.0], dtype=torch.float64)
    right = torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0])
    found = objective.figures(Loss(right, {"accuracy": right}, -2 * levels.log()))
    assert found == pytest.approx(
        {"accuracy": 0.6, "accuracy_0_0.1": 0.5, "accuracy_0.1_0.3": 1.0, "accuracy_3_10": 0.0, "accuracy_10_inf": 1.0}
    )


@pytest.fixture(scope="module")
def classifier_run(tmp_path_factory):
    """A classifier of noisy digits, by the real command: the recipe at half its width and depth."""
    from contextlib import chdir

    with chdir(home := tmp_path_factory.mktemp("home")):
        train(
            [
                "experiment=digits_classifier",
                "backbone.channels=16",
                "backbone.head_channels=16",
                "backbone.blocks=1",
                "training.images=19200",
                "training.validation_images=9600",
                "training.checkpoint_images=19200",
                "training.sample_images=19200",
            ]
        )
    return home / "outputs/train/digits_classifier/v001"


def test_digits_are_classified(classifier_run):
    """Well at low noise, by chance at pure noise; the report has every band."""
    data, model = Digits(1, 8, 10), diffguide.load(classifier_run)
    clean, middle, lost = accuracies(model, data.test.x, data.test.y, (0.05, 1.0, 100.0), 0)
    assert clean > 0.8 and 0.3 < middle < clean and lost < 0.25
    lines = [json.loads(line) for line in (classifier_run / "metrics.jsonl").read_text().splitlines()]
    held_out = [line for line in lines if "validation_loss" in line]
    assert len(held_out) == 2 and held_out[-1]["accuracy_0_0.1"] > 0.8 > held_out[-1]["accuracy_10_inf"]
    assert {"ce", "accuracy", "loss"} <= set(lines[0])
    picture = classifier_run / "samples" / "0000019200.png"
    assert picture.read_bytes()[:4] == b"\x89PNG"
