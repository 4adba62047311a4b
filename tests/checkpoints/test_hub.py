"""Names of models on the hub, with the download of huggingface_hub replaced by a copy of a folder."""

import shutil
import sys
from pathlib import Path

import diffusers
import huggingface_hub
import pytest
import torch
from diffusers_folders import save_pipeline, unet
from huggingface_hub.utils import filter_repo_objects
from stable_diffusion import FIRST, stable_diffusion

import diffguide
from diffguide.checkpoints.store import CheckpointError
from diffguide.conditions import ClipText


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """A folder owner/model is a repository; what is fetched of it lies in `cache`. The working folder is empty."""
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")

    def snapshot(name: str, allow_patterns: list[str]) -> str:
        remote, cache = tmp_path / "hub" / name, tmp_path / "cache"
        if not remote.is_dir():
            raise OSError("404\nnot found")
        files = [str(file.relative_to(remote)) for file in remote.rglob("*") if file.is_file()]
        for file in filter_repo_objects(files, allow_patterns=allow_patterns):
            (cache / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(remote / file, cache / file)
        return str(cache)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    return tmp_path / "hub"


def test_a_pipeline_is_fetched_without_its_other_parts_and_its_code(hub, tmp_path):
    network = unet()
    folder = save_pipeline(hub / "owner/model", network, diffusers.DDPMScheduler())
    (folder / "vae").mkdir()
    for file in ("vae/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.bin", "pipeline.py"):
        (folder / file).write_text("x")
    model = diffguide.load("owner/model")
    assert all(
        torch.equal(value, network.state_dict()[name]) for name, value in model.backbone.network.state_dict().items()
    )
    fetched = {str(file.relative_to(tmp_path / "cache")) for file in (tmp_path / "cache").rglob("*") if file.is_file()}
    assert fetched == {
        "model_index.json",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    }


def test_text_encoder_and_autoencoder_of_stable_diffusion_are_fetched(hub, tmp_path):
    stable_diffusion(hub / "owner/sd", **FIRST)
    (hub / "owner/sd/text_encoder/pytorch_model.bin").write_text("x")
    model = diffguide.load("owner/sd")
    place = tmp_path / "cache"
    fetched = {str(file.relative_to(place)) for file in place.rglob("*") if file.is_file()}
    assert {"text_encoder/model.safetensors", "vae/diffusion_pytorch_model.safetensors"} < fetched
    assert not any(name.endswith(".bin") for name in fetched)
    text = ClipText("owner/sd", length=64, padding=True)
    assert torch.equal(text.read(["an egg"]).states, model.conditioning.read(["an egg"]).states)


def test_a_network_beside_its_scheduler_is_fetched(hub):
    unet().save_pretrained(hub / "owner/network")
    diffusers.DDPMScheduler().save_pretrained(hub / "owner/network")
    assert diffguide.load("owner/network").shape == [3, 16, 16]


def test_a_run_is_fetched(hub, short_run):
    shutil.copytree(short_run, hub / "owner/run")
    assert diffguide.load("owner/run").num_classes == diffguide.load(short_run).num_classes


@pytest.mark.parametrize("name", ["owner/nothing", "here/model"])
def test_an_unknown_name_is_one_line(name, hub):
    Path("here").mkdir()  # a path of the user, who is not sent to the hub
    with pytest.raises(CheckpointError, match="hub: 404$" if name.startswith("owner") else "^no checkpoint at"):
        diffguide.load(name)


def test_a_missing_library_is_named(hub, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match="pip install"):
        diffguide.load("owner/model")
