"""Checkpoints: what is written comes back, and a file from somebody else runs nothing."""

import json

import pytest
import safetensors
import safetensors.torch
import torch

import diffguide
from diffguide import checkpoints
from diffguide.checkpoints import CheckpointError


def rewrite(source, path, change):
    """A copy of a checkpoint with its metadata changed in place by `change`, or replaced by what it returns."""
    tensors, metadata = checkpoints.read(source)
    metadata = change(metadata) or metadata
    safetensors.torch.save_file(tensors, path, {checkpoints.KEY: json.dumps(metadata)})
    return path


def test_load_gives_the_denoiser(digits_run):
    denoiser = diffguide.load(digits_run)
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    prediction = denoiser(x, torch.tensor(0.5, dtype=torch.float64), torch.tensor([0, 5, -1]))
    alpha, sigma = denoiser.schedule.alpha_sigma(0.5)
    torch.testing.assert_close(alpha * prediction.x_0 + sigma * prediction.eps, x)
    assert denoiser.num_classes == 10 and denoiser.has_null and not denoiser.training
    assert not any(parameter.requires_grad for parameter in denoiser.parameters())


def test_average_and_last_weights_differ(digits_run):
    averaged, last = diffguide.load(digits_run), diffguide.load(digits_run, weights="objective")
    assert any(not torch.equal(a, b) for a, b in zip(averaged.parameters(), last.parameters()))


def test_a_run_folder_means_its_newest_checkpoint(digits_run):
    files = sorted((digits_run / "checkpoints").glob("*.safetensors"))
    assert len(files) == 4  # two checkpoints, each with its optimiser
    assert checkpoints.find(digits_run).name == "0000016000.safetensors"


def test_the_file_says_what_it_is(digits_run):
    with safetensors.safe_open(checkpoints.find(digits_run), framework="pt") as file:
        assert list(file.metadata()) == ["diffguide"]  # one key: several would be written in any order
        metadata = json.loads(file.metadata()["diffguide"])
    assert metadata["format"] == 1
    assert metadata["class_names"] == list("0123456789") and metadata["shape"] == [1, 8, 8]
    assert metadata["config"]["p_uncond"] == 0.1 and "${" not in json.dumps(metadata)


HOSTILE = {
    "a function": ("backbone", {"_target_": "os.system", "command": "true"}),
    "another package's class": ("backbone", {"_target_": "torch.nn.Linear", "in_features": 1, "out_features": 1}),
    "through an attribute": ("backbone", {"_target_": "diffguide.checkpoints.torch.load", "f": "x"}),
    "another role": ("backbone", {"_target_": "diffguide.datasets.digits.Digits", "channels": 1}),
    "a re-export": ("schedule", {"_target_": "diffguide.objectives.denoising.Schedule"}),
    "partial": ("schedule", {"_target_": "diffguide.schedules.Cosine", "_partial_": True}),
    "positional arguments": ("schedule", {"_target_": "diffguide.schedules.Cosine", "_args_": [12, -10]}),
    "interpolation": ("schedule", {"_target_": "diffguide.schedules.Cosine", "log_snr_max": "${oc.env:HOME}"}),
    "nested": (
        "objective",
        {"_target_": "diffguide.objectives.denoising.Denoising", "weight": {"_target_": "os.getcwd"}},
    ),
    "no target": ("backbone", {"channels": 3}),
    "no mapping": ("backbone", "os.system"),
}


@pytest.mark.parametrize("role, node", HOSTILE.values(), ids=HOSTILE)
def test_hostile_configurations_build_nothing(digits_run, tmp_path, role, node):
    def change(metadata):
        metadata["config"][role] = node

    path = rewrite(checkpoints.find(digits_run), tmp_path / "1.safetensors", change)
    with pytest.raises(CheckpointError, match=str(path)):
        diffguide.load(path)


def test_a_trusted_class_is_built(digits_run, tmp_path, monkeypatch):
    (tmp_path / "my_networks.py").write_text("from diffguide.backbones.unet import UNet\nclass Mine(UNet):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)

    def change(metadata):
        metadata["config"]["backbone"]["_target_"] = "my_networks.Mine"

    path = rewrite(checkpoints.find(digits_run), tmp_path / "1.safetensors", change)
    with pytest.raises(CheckpointError, match=r"trust=\[my_networks.Mine\]"):
        diffguide.load(path)
    assert type(diffguide.load(path, trust=["my_networks.Mine"]).backbone).__name__ == "Mine"


def test_other_format_version_is_told(digits_run, tmp_path):
    path = rewrite(checkpoints.find(digits_run), tmp_path / "1.safetensors", lambda metadata: metadata.update(format=2))
    with pytest.raises(CheckpointError, match="format 2"):
        diffguide.load(path)


def test_damaged_files_are_told(digits_run, tmp_path):
    whole = checkpoints.find(digits_run).read_bytes()
    for length in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        path = tmp_path / "1.safetensors"
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="damaged"):
            diffguide.load(path)


def test_missing_and_foreign_files_are_told(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        diffguide.load(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        diffguide.load(tmp_path)
    safetensors.torch.save_file({"x": torch.zeros(1)}, tmp_path / "1.safetensors")
    with pytest.raises(CheckpointError, match="not a checkpoint of diffguide"):
        diffguide.load(tmp_path / "1.safetensors")
    with pytest.raises(CheckpointError, match="weights must be ema"):
        diffguide.load(tmp_path / "1.safetensors", weights="best")
