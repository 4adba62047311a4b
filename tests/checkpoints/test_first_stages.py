"""Folders of autoencoders of diffusers: read as safetensors, compared with their configuration, never run."""

import json
import shutil
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers_folders import randomize
from safetensors.torch import load_file, save_file

from diffguide.checkpoints.first_stages import find_first_stage, load_autoencoder, load_first_stage
from diffguide.files.safetensors import CheckpointError
from diffguide.first_stages.sources import DiffusersKL, DiffusersTiny

KL = {"block_out_channels": [4, 8], "norm_num_groups": 2, "latent_channels": 3, "layers_per_block": 1,
      "down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}  # fmt: skip
TINY = {"encoder_block_out_channels": [4, 4], "decoder_block_out_channels": [4, 4], "num_encoder_blocks": [1, 1],
        "num_decoder_blocks": [1, 1]}  # fmt: skip
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A pipeline with an AutoencoderKL in vae/, and the folder of an AutoencoderTiny."""
    home = tmp_path_factory.mktemp("autoencoders")
    randomize(diffusers.AutoencoderKL(**KL)).save_pretrained(home / "pipeline/vae")
    randomize(diffusers.AutoencoderTiny(**TINY)).save_pretrained(home / "tiny")
    return home


@pytest.fixture
def home(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "home"))


@pytest.mark.parametrize(
    "place, kind", [("pipeline", DiffusersKL), ("pipeline/vae", DiffusersKL), ("tiny", DiffusersTiny)]
)
def test_a_folder_is_the_model_of_diffusers(saved, place, kind):
    source = kind(str(saved / place))
    assert find_first_stage(source) is None
    stage = load_first_stage(source, None)
    folder = saved / place / "vae" if place == "pipeline" else saved / place
    peer = getattr(diffusers, source.network).from_pretrained(folder)
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = peer.encode(x)
        z = found.latents if hasattr(found, "latents") else found.latent_dist.mean * peer.config.scaling_factor
        torch.testing.assert_close(stage.encode(x), z, atol=1e-5, rtol=0)
    assert not stage.training and not any(part.requires_grad for part in stage.parameters())


def test_old_names_of_attention_and_half_precision_are_read(home):
    """As StableDiffusion's were saved before 2023, and with the variant fp16 alone."""
    file = home / "pipeline/vae" / WEIGHTS
    wanted = load_autoencoder(home / "pipeline", "AutoencoderKL").state_dict()
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(file)
    for new, name in old.items():
        tensors = {key.replace(f".{new}.", f".{name}."): value for key, value in tensors.items()}
    file.unlink()
    save_file(
        {key: value.half() for key, value in tensors.items()},
        home / "pipeline/vae/diffusion_pytorch_model.fp16.safetensors",
    )
    found = load_autoencoder(home / "pipeline", "AutoencoderKL").state_dict()
    assert any("query" in key for key in tensors) and found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key].half().float()) for key in wanted)


def edit_config(home: Path, **changes) -> None:
    path = home / "pipeline/vae/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def remove_tensor(home: Path) -> None:
    file = home / "pipeline/vae" / WEIGHTS
    save_file(dict(list(load_file(file).items())[1:]), file)


def poison(home: Path) -> None:
    file = home / "pipeline/vae" / WEIGHTS
    tensors = load_file(file)
    tensors["decoder.conv_in.bias"][0] = float("nan")
    save_file(tensors, file)


def pickle_only(home: Path) -> None:
    (home / "pipeline/vae" / WEIGHTS).rename(home / "pipeline/vae/diffusion_pytorch_model.bin")


MISTAKES = [
    (lambda home: edit_config(home, _class_name="VQModel"), "AutoencoderKL"),
    (lambda home: edit_config(home, latent_channels=5), "shape"),
    (lambda home: edit_config(home, block_out_channels=[4, 2**40]), "large"),
    (lambda home: edit_config(home, layers_per_block=500), "larger network"),
    (lambda home: edit_config(home, unknown=1), "unknown"),
    (remove_tensor, "lacks"), (poison, "NaN"), (pickle_only, "safetensors"),
    (lambda home: (home / "pipeline/vae" / WEIGHTS).write_bytes(b"0" * 50), "damaged"),
    (lambda home: shutil.rmtree(home / "pipeline"), "pipeline"),
]  # fmt: skip


@pytest.mark.parametrize("change, word", MISTAKES)
def test_mistakes_and_damage_are_one_line(home, change, word):
    change(home)
    with pytest.raises(CheckpointError, match=word) as raised:
        load_autoencoder(home / "pipeline", "AutoencoderKL")
    assert len(str(raised.value).splitlines()) == 1
