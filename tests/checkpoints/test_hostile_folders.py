"""Folders of diffusers from strangers: each mistake is one printable line, and nothing of the folder is run."""

import json
import os
import pickle
import random
import sys
from pathlib import Path

import diffusers
import pytest
import safetensors.torch
import torch
from diffusers_folders import save_pipeline, unet

import diffguide
from diffguide.checkpoints.store import CheckpointError

TINY = {
    "sample_size": 8,
    "block_out_channels": (8,),
    "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",),
    "add_attention": False,
    "num_class_embeds": 2,
}
MUTATIONS = int(os.environ.get("DIFFGUIDE_MUTATIONS", 300))  # more by hand
ODD = [
    None,
    True,
    -1,
    0,
    2**70,
    1e308,
    "",
    "x" * 5000,
    "../../etc",
    "${env:HOME}",
    [],
    {},
    [[1]],
    {"_target_": "os.system"},
]


@pytest.fixture
def folder(tmp_path) -> Path:
    return save_pipeline(tmp_path / "p", unet(**TINY), diffusers.DDPMScheduler())


def edit(file: Path, change) -> None:
    value = json.loads(file.read_text())
    file.write_text(json.dumps(change(value) or value))


def refuse(folder: Path, *named: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        diffguide.load(folder)
    message = str(caught.value)
    assert "\n" not in message and message.isprintable() and len(message) < 1000
    assert all(part in message for part in named), message


def test_code_in_a_folder_is_never_imported(folder):
    marker = folder / "ran"
    code = f"open({str(marker)!r}, 'w')\nclass Net: pass\n"
    for place in (folder, folder / "unet"):
        (place / "net.py").write_text(code)
    edit(
        folder / "unet" / "config.json",
        lambda c: c | {"_class_name": ["net", "Net"], "auto_map": {"AutoModel": "net.Net"}},
    )
    edit(folder / "model_index.json", lambda c: c | {"unet": ["net", "Net"]})
    refuse(folder, "not supported")
    edit(folder / "unet" / "config.json", lambda c: c | {"_class_name": "net.Net"})
    refuse(folder, "net.Net")
    assert not marker.exists() and "net" not in sys.modules


class Bomb:
    def __reduce__(self):
        return os.mkdir, (str(Path("exploded").absolute()),)


def test_a_pickle_under_the_name_of_safetensors_is_not_opened(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(pickle.dumps(Bomb()))
    refuse(folder, "safetensors")
    weights.unlink()
    torch.save(unet(**TINY).state_dict(), folder / "unet" / "diffusion_pytorch_model.bin")
    refuse(folder, "only safetensors files are read")
    assert not Path("exploded").exists()


@pytest.mark.parametrize("name", ["../../secret.safetensors", "/etc/passwd", "a/b.safetensors", "x.bin", 3, None])
def test_shards_that_climb_out_are_refused(folder, name):
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"conv_in.weight": name}}))
    refuse(folder, "no safetensors file beside it")


def test_missing_and_truncated_shards(tmp_path):
    folder = save_pipeline(tmp_path / "p", unet(**TINY), diffusers.DDPMScheduler(), max_shard_size="4KB")
    shards = sorted((folder / "unet").glob("*.safetensors"))
    assert len(shards) > 2
    whole = shards[1].read_bytes()
    shards[1].write_bytes(whole[: len(whole) // 2])
    refuse(folder, shards[1].name)
    shards[1].unlink()
    refuse(folder, shards[1].name)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.pop("conv_in.weight"), "lacks"),
        (lambda t: t.update(extra=torch.ones(2)), "extra"),
        (lambda t: t.update({"conv_in.bias": torch.ones(7)}), "shape"),
        (lambda t: t.update({"conv_in.bias": torch.full((8,), float("nan"))}), "NaN"),
        (lambda t: t.update({"conv_in.bias": torch.ones(8, dtype=torch.int32)}), "type"),
    ],
)
def test_weights_of_another_network(folder, change, named):
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = safetensors.torch.load_file(file)
    change(tensors)
    safetensors.torch.save_file(tensors, file)
    refuse(folder, named)


def test_a_network_of_terabytes_is_refused_before_it_is_allocated(folder):
    edit(folder / "unet" / "config.json", lambda c: c | {"block_out_channels": [2**19]})
    refuse(folder)
    edit(folder / "unet" / "config.json", lambda c: c | {"block_out_channels": [8], "layers_per_block": 10**5})
    refuse(folder)


def test_a_number_that_would_take_hours_is_refused_at_once(folder):
    edit(
        folder / "scheduler" / "scheduler_config.json",
        lambda c: c | {"num_train_timesteps": 2**40, "rescale_betas_zero_snr": True},
    )
    refuse(folder, "num_train_timesteps")
    edit(folder / "unet" / "config.json", lambda c: c | {"num_class_embeds": 2**40})
    edit(folder / "scheduler" / "scheduler_config.json", lambda c: c | {"num_train_timesteps": 10})
    refuse(folder, "num_class_embeds")


def test_mutations_are_read_or_refused_in_one_line(folder):
    """Any value of any JSON file replaced by an odd one, or bytes of any file changed."""
    rng = random.Random(0)
    files = [
        folder / "model_index.json",
        folder / "unet" / "config.json",
        folder / "scheduler" / "scheduler_config.json",
    ]
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    read = 0
    for _ in range(MUTATIONS):
        file = rng.choice([*files, *files, weights])
        before = file.read_bytes()
        if file == weights or rng.random() < 0.2:
            changed = bytearray(before)
            for _ in range(rng.choice([1, 4])):
                changed[rng.randrange(min(len(changed), 4000))] = rng.randrange(256)
            file.write_bytes(bytes(changed[: rng.choice([len(changed), len(changed) // 2])]))
        else:
            value = json.loads(before)
            value[rng.choice(sorted(value))] = rng.choice(ODD)
            file.write_text(json.dumps(value))
        try:
            diffguide.load(folder)
            read += 1
        except CheckpointError as error:
            assert "\n" not in str(error) and str(error).isprintable()
        finally:
            file.write_bytes(before)
    assert read > MUTATIONS // 20  # of values that do not matter
