"""The conditioning probe: models that use their class pass, others raise."""

import pytest
import torch
from networks import lively, mlp
from torch import nn

from diffguide.evaluation.probe import check_conditioning, label_effect
from diffguide.models.parameterizations import V
from diffguide.models.preconditioned import Preconditioned
from diffguide.oracles import GaussianMixture
from diffguide.sample import main
from diffguide.schedules import EDM, Cosine

COSINE = Cosine(12.0, -10.0)


def test_a_network_that_uses_its_class_passes(schedule=COSINE):
    assert label_effect(Preconditioned(lively(mlp()), schedule, V(), True), (2,)) > 0.01
    check_conditioning(Preconditioned(lively(mlp()), EDM(12.4, -8.7), V(), True), (2,))
    check_conditioning(Preconditioned(lively(mlp(num_classes=0)), schedule, V(), True), (2,))  # it has no classes


def test_a_network_that_ignores_its_class_raises():
    network = lively(mlp())
    nn.init.zeros_(network.embedding.classes.weight)
    with pytest.raises(ValueError, match="3 classes and ignores"):
        check_conditioning(Preconditioned(network, COSINE, V(), True), (2,))


def test_the_effect_is_the_relative_difference_of_the_predictions():
    """Two Gaussians of equal variance s^2 with means +-m: eps differs by sigma 2 alpha m / (alpha^2 s^2 + sigma^2)."""
    model, found = GaussianMixture([1, 1], [[0.4], [-0.4]], 0.25, [0, 1], COSINE), []
    rng = torch.Generator().manual_seed(0)
    for level in (3.0, 1.0, 0.3):
        alpha, sigma = 1 / (1 + level**2) ** 0.5, level / (1 + level**2) ** 0.5
        x, means = torch.randn(2, 1, generator=rng).double(), torch.tensor([[0.4], [-0.4]])
        eps = sigma * (x - alpha * means) / (alpha**2 * 0.25 + sigma**2)
        difference = sigma * alpha * 0.8 / (alpha**2 * 0.25 + sigma**2)
        found.append(difference / float(eps.square().mean().sqrt()))
    assert label_effect(model, (1,)) == pytest.approx(max(found), rel=1e-5)


def test_sampling_with_guidance_checks_the_model_first(tiny_run, at, command):
    """A checkpoint with equal class embeddings is an error with guidance that needs them, and is sampled without guidance."""
    from small_checkpoint import change

    file = next((at / "outputs/train/digits/v001/checkpoints").glob("[0-9]*[0-9].safetensors"))
    source = next((tiny_run / "checkpoints").glob(file.name))

    def deafen(tensors, metadata):
        for name, value in tensors.items():
            if name.endswith("embedding.classes.weight"):
                value.copy_(value[:1].expand_as(value))

    for other in file.parent.glob("*.safetensors"):
        other.unlink()
    change(source, file, deafen)
    common = ["checkpoint=outputs/train/digits/v001", "n=2", "sampler.steps=2"]
    for guidance in (["guidance=cfg"], ["guidance=negative", "guidance.condition=3"]):
        done = command(main, *common, *guidance, at=at)
        assert done.code == 1 and "has 10 classes and ignores them" in done.err and len(done.err.splitlines()) == 1
    assert command(main, *common, at=at).code == 0
