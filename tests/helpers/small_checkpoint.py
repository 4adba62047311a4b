"""A real checkpoint of a few kilobytes, made in a second, and ways of changing it as an attacker or a bad disk would."""

import copy
import json
from pathlib import Path
from typing import NamedTuple

import torch

from diffguide.checkpoints import store as checkpoints
from diffguide.checkpoints.allowlist import construct
from diffguide.files import safetensors as archives

CONFIG = {
    "name": "small",
    "dataset": {
        "_target_": "diffguide.datasets.gmm2d.GMM2D", "channels": 2, "size": None, "num_classes": 4, "train": 50,
        "validation": 5, "test": 5, "seed": 0,
    },
    "backbone": {
        "_target_": "diffguide.backbones.mlp.MLP", "in_channels": 2, "out_features": None, "num_classes": 4, "width": 8,
        "layers": 1, "fourier_features": 2, "fourier_scale": 0.5,
        "noise_conditioned": True, "condition_features": 0,
    },
    "schedule": {"_target_": "diffguide.schedules.curves.Cosine", "log_snr_max": 12.0, "log_snr_min": -10.0},
    "objective": {
        "_target_": "diffguide.objectives.denoising.Denoising",
        "parameterization": {"_target_": "diffguide.models.parameterizations.V"},
        "weight": {"_target_": "diffguide.objectives.weights.Uniform"},
        "levels": {"_target_": "diffguide.objectives.levels.UniformTime", "stratified": True},
        "p_uncond": 0.1,
    },
    "training": {"optimizer": {"_target_": "torch.optim.AdamW", "_partial_": True}},
}  # fmt: skip
FACTS = {"images": 7, "class_names": list("0123"), "shape": [2]}


class Small(NamedTuple):
    """What a training run of this configuration has in its hands."""

    objective: torch.nn.Module
    ema: torch.nn.Module
    optimizer: torch.optim.Optimizer


def small(config: dict = CONFIG) -> Small:
    """After one step of AdamW."""
    torch.manual_seed(0)
    backbone, schedule = construct(config["backbone"], "backbone", ()), construct(config["schedule"], "schedule", ())
    objective = construct(config["objective"], "objective", (), backbone, schedule)
    ema = copy.deepcopy(objective)
    optimizer = torch.optim.AdamW(objective.parameters())
    objective(torch.randn(8, 2), torch.zeros(8).long(), torch.Generator().manual_seed(0)).per_example.mean().backward()
    optimizer.step()
    return Small(objective, ema, optimizer)


def save(folder: Path, config: dict = CONFIG, **facts) -> Path:
    """Its file."""
    sums = {"loss": torch.tensor(3.0), "count": torch.tensor(4.0)}
    training = checkpoints.TrainingState(FACTS | facts, sums, {"scale": 2.0})
    return checkpoints.save(folder, *small(config), config, training)


def change(source: Path, path: Path, edit) -> Path:
    """A copy, sealed anew, of which `edit` changed tensors and metadata in place."""
    tensors, metadata = archives.read_sealed(source)
    edit(tensors, metadata)
    archives.write_sealed(path, tensors, metadata)
    return path


def change_header(source: Path, path: Path, edit) -> Path:
    """A copy whose JSON header is what `edit` makes of it; the rest stays."""
    whole = source.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = edit(json.loads(whole[8 : 8 + length]))
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    header += b" " * (-len(header) % 8)
    path.write_bytes(len(header).to_bytes(8, "little") + header + whole[8 + length :])
    return path


def put(key: str, value):
    """An edit that puts a value at config.backbone.width or the like."""

    def edit(tensors, metadata) -> None:
        *parents, last = key.split(".")
        for parent in parents:
            metadata = metadata[parent]
        metadata[last] = value

    return edit


def drop(key: str):
    """An edit that removes a key."""

    def edit(tensors, metadata) -> None:
        *parents, last = key.split(".")
        for parent in parents:
            metadata = metadata[parent]
        del metadata[last]

    return edit
