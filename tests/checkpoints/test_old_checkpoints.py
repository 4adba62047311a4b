"""Checkpoints of every kind, written before the modules moved into packages, load and answer as they did."""

import json
from importlib import import_module
from pathlib import Path

import pytest
import torch

import diffguide
from diffguide.files.safetensors import read_sealed
from diffguide.models.protocols import Denoiser, Energy
from diffguide.nodes.old_names import current_name, update_saved_config

OLD = Path(__file__).parent / "old"
EXPECTED = json.loads((OLD / "expected.json").read_text())


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_an_old_checkpoint_gives_the_same_outputs(name):
    file, expected = OLD / f"{name}.safetensors", EXPECTED[name]
    model = diffguide.load(file)
    shape = read_sealed(file)[1]["shape"]
    x = torch.linspace(-1, 1, 2 * torch.Size(shape).numel()).reshape(2, *shape)
    t = None if expected["t"] is None else torch.tensor(expected["t"], dtype=torch.float64)
    if isinstance(model, Denoiser):
        answer = model(x, t, torch.tensor([1, -1]) if model.num_classes else None).x_0
    else:
        answer = model.log_density(x, None, None) if isinstance(model, Energy) else model.log_prob(x, t)
    found = answer.detach().flatten()[: len(expected["values"])]
    torch.testing.assert_close(found, torch.tensor(expected["values"]), rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("target", (OLD / "targets.txt").read_text().split())
def test_every_old_name_has_a_new_one(target):
    name = current_name(target)
    module, _, attribute = name.rpartition(".")
    found = getattr(import_module(module), attribute)
    assert f"{found.__module__}.{found.__qualname__}" == name
    assert update_saved_config({"part": [{"_target_": target}]})["part"][0]["_target_"] == name
