"""compile=true: one graph for training and one for all evaluations of the average, and the same results."""

import pytest
import torch
from torch._dynamo.utils import counters

from diffguide.backbones import Backbone, UNet
from diffguide.backbones.diffusers_network import DiffusersNetwork
from diffguide.datasets import Dataset, Split
from diffguide.guidance import PAG, ClassifierFree
from diffguide.objectives import Denoising
from diffguide.runtime import compiling
from diffguide.samplers import DDIM, generate
from diffguide.schedules import Cosine
from diffguide.training import Training

OF_DIFFUSERS = {
    "DiTTransformer2DModel": {"num_attention_heads": 1, "attention_head_dim": 8, "num_layers": 1, "patch_size": 1},
    "UNet2DModel": {"block_out_channels": [8], "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 8,
                    "down_block_types": ["AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D"], "dropout": 0.1},
}  # fmt: skip


def build_network(name: str) -> Backbone:
    if name == "UNet":
        return UNet(1, None, 2, 4, channels=8, multipliers=[1], attention=[4], head_channels=8, blocks=1)
    return DiffusersNetwork(1, None, 2, 4, name, OF_DIFFUSERS[name])


def build_objective(name: str = "UNet") -> Denoising:
    torch.manual_seed(0)
    return Denoising(build_network(name), Cosine(), p_uncond=0.1)


def train(tmp_path, name: str, compiled: bool) -> tuple[dict, list]:
    """The averaged weights and the samples of a run with validation, grids in batches of several sizes, and an odd rest."""

    def split(n: int) -> Split:
        return Split(torch.randn(n, 1, 4, 4, generator=torch.Generator().manual_seed(n)), torch.arange(n) % 2)

    objective, samples = build_objective(name), []
    if compiled:
        compiling.compile_training(objective.model.backbone)

    def draw(averaged, path):
        assert not averaged.model.is_compiled  # so that guidance may differentiate it
        perturbed = [] if name == "UNet" else [PAG(averaged.model, 2.0, layers=[0])]  # by interception: not compiled
        for guided in (ClassifierFree(averaged.model, 2.0), averaged.model, *perturbed):
            samples.extend(generate(guided, DDIM(2), range(45), [i % 2 for i in range(45)], (1, 4, 4), 20))

    every = {"validation_images": 40, "sample_images": 80, "log_images": 40}
    training = Training(images=80, batch_size=20, warmup_images=0, **every)
    averaged = training.run(objective, Dataset(split(60), split(39), split(4), ["even", "odd"]), tmp_path, draw=draw)
    return averaged.state_dict(), samples


@pytest.mark.parametrize("name", ["UNet", "DiTTransformer2DModel", pytest.param("UNet2DModel", marks=pytest.mark.slow)])
def test_two_graphs_and_no_more(name, tmp_path, monkeypatch):
    """Captured by dynamo and run as they are, so that the results are the same bit for bit."""
    monkeypatch.setattr(compiling, "BACKEND", "eager")
    torch._dynamo.reset()
    counters.clear()
    weights, samples = train(tmp_path / "compiled", name, True)
    assert counters["stats"]["unique_graphs"] == 2 and not counters["graph_break"]
    expected_weights, expected_samples = train(tmp_path / "eager", name, False)
    assert list(weights) == list(expected_weights)  # a compiled run's checkpoint fits an uncompiled one
    assert all(torch.equal(weights[name], expected_weights[name]) for name in weights)
    assert all(torch.equal(*pair) for pair in zip(samples, expected_samples, strict=True))


def test_a_compiled_average_is_still_differentiable(monkeypatch):
    """Twice: calls with gradients are not compiled."""
    monkeypatch.setattr(compiling, "BACKEND", "eager")
    model, averaged = build_objective().model, build_objective().model
    network, average = model.backbone, averaged.backbone
    compiling.compile_average(model, averaged)
    assert average._compiled_call_impl is None  # as the network
    compiling.compile_training(network)
    compiling.compile_average(model, averaged)
    assert network.is_compiled and not average.is_compiled
    before = counters["stats"]["unique_graphs"]
    x = torch.randn(20, 1, 4, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(average(x, torch.zeros(20)).square().sum(), x)
    assert gradient.shape == x.shape and counters["stats"]["unique_graphs"] == before


@pytest.mark.parametrize(
    "choice, device, width, expected",
    [(True, "cpu", 1, True), (False, "cuda", 4000, False), ("auto", "cuda", 4000, True), ("auto", "cuda", 1, False),
     ("auto", "cpu", 4000, False), ("auto", "mps", 4000, False)],
)  # fmt: skip
def test_large_networks_on_gpus_are_compiled(monkeypatch, choice, device, width, expected):
    monkeypatch.setattr(compiling.importlib.util, "find_spec", lambda name: name)
    network = torch.nn.Linear(width, width, device="meta")
    assert compiling.should_compile(choice, torch.device(device), network) is expected
    monkeypatch.setattr(compiling.importlib.util, "find_spec", lambda name: None)
    assert compiling.should_compile("auto", torch.device(device), network) is False
