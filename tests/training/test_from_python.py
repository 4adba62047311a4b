"""Training from Python: without the command line, a configuration, or files unless there is a folder."""

import json

import pytest
import torch

from diffguide.backbones import MLP
from diffguide.datasets import Dataset, Split
from diffguide.models.parameterizations import V
from diffguide.objectives import Denoising
from diffguide.objectives.levels import UniformTime
from diffguide.objectives.weights import Uniform
from diffguide.schedules import Cosine
from diffguide.training import Training

AMOUNTS = {"images": 6400, "batch_size": 64, "warmup_images": 64, "ema_images": 300, "validation_images": 6400}


def points(n: int) -> Split:
    """Two classes at -0.7 and 0.7."""
    y = torch.arange(n) % 2
    return Split((1.4 * y - 0.7)[:, None] + 0.05 * torch.randn(n, 1, generator=torch.Generator().manual_seed(n)), y)


def objective() -> Denoising:
    torch.manual_seed(0)
    backbone = MLP(1, 1, num_classes=2, width=32, layers=2, fourier_features=0, fourier_scale=1.0)
    return Denoising(backbone, Cosine(9.0, -9.0), V(), Uniform(), UniformTime(True), 0.0)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return Dataset(points(500), points(100), points(100), ["low", "high"])


def test_the_averaged_denoiser_has_the_classes_of_the_data(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    denoiser = Training(**AMOUNTS).run(objective(), data).model
    y = torch.tensor([0, 1])
    guess = denoiser(torch.zeros(2, 1), torch.tensor(0.9, dtype=torch.float64), y).x_0
    assert guess.flatten().tolist() == pytest.approx([-0.7, 0.7], abs=0.15)
    assert not any(tmp_path.iterdir())  # no folder was given


def test_the_same_seed_trains_the_same_weights(data, tmp_path):
    """A folder gets metrics.jsonl; without a configuration there are no checkpoints."""
    few, weights = AMOUNTS | {"images": 640}, []
    for folder in (None, tmp_path / "run"):
        weights.append(Training(**few).run(objective(), data, folder, seed=3).state_dict())
    assert all(torch.equal(weights[1][name], value) for name, value in weights[0].items())
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["images"] == 640 and any("validation_loss" in line for line in lines)
    assert not any((tmp_path / "run/checkpoints").iterdir())
    other = Training(**few).run(objective(), data, seed=4).state_dict()
    assert not all(torch.equal(other[name], value) for name, value in weights[0].items())
