"""Training of EDM2's network: the loss falls, its weights keep magnitude 1, a resumed run is the same run."""

import json
import shutil

import torch
from short_run import RUN

from diffguide.backbones.edm2_layers import MPLayer
from diffguide.checkpoints.store import load
from diffguide.train import main

SMALL = [
    "backbone=edm2_unet", "backbone.channels=8", "backbone.head_channels=8", "backbone.multipliers=[1]",
    "backbone.attention=[8]", "backbone.blocks=1", "objective=edm", "schedule=edm", "sampler.steps=2",
    "training.batch_size=32", "training.images=480", "training.learning_rate=0.05", "training.warmup_images=64",
    "training.checkpoint_images=320", "training.log_images=96", "training.validation_images=480",
    "training.sample_images=480", "engine.precision=32-true",
]  # fmt: skip


def test_training_lowers_the_loss_and_resumes_exactly(command, tmp_path):
    assert command(main, *SMALL, at=tmp_path).code == 0
    run = tmp_path / RUN
    losses = [
        line["loss"] for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "loss" in line
    ]
    assert sum(losses[-3:]) / 3 < 0.85 * losses[0], losses
    shutil.copytree(run, tmp_path / "again" / RUN)
    last = sorted((run / "checkpoints").glob("0000000480*"))
    for file in last:
        (tmp_path / "again" / RUN / "checkpoints" / file.name).unlink()
    assert command(main, f"resume={RUN}", at=tmp_path / "again").code == 0
    for file in last:
        assert (tmp_path / "again" / RUN / "checkpoints" / file.name).read_bytes() == file.read_bytes()
    model = load(last[0] if "optimizer" not in last[0].name else last[1], "objective").model
    for layer in model.backbone.modules():
        if isinstance(layer, MPLayer):  # one step after the last time that they were normalised
            magnitude = layer.weight.square().mean(layer.dims).sqrt()
            assert bool(torch.isclose(magnitude, torch.ones(()), atol=0.02).all())
