"""training/adapter=lora: a run of an adapter, resumed, sampled, started from again, exported."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from short_run import RUN

from diffguide.checkpoints.store import load
from diffguide.train import main

pytest.importorskip("peft")
ADAPTER = [f"init_from={RUN}", "training/adapter=lora", "training.adapter.rank=2", "name=adapted"]
SHORT = [
    "training.images=64", "training.batch_size=32", "training.warmup_images=0", "training.checkpoint_images=32",
    "sampler.steps=2", "engine.precision=32-true", "training.adapter.targets=[conv_in]",
]  # fmt: skip
ADAPTED = RUN.parent.parent / "adapted/v001"
LAST = "checkpoints/0000000064.safetensors"


def test_an_adapter_is_trained_resumed_merged_and_adapted_again(command, at):
    done = command(main, *ADAPTER, *SHORT, at=at)
    assert done.code == 0 and "the adapter trains" in done.err
    assert "rows of classes stay as they are (training.adapter.trains_classes=true" in done.err
    held, ancestor = load_file(at / ADAPTED / LAST), load_file(next((at / RUN).glob("checkpoints/*64.safetensors")))
    prefix, adapter = "objective.model.backbone.", [name for name in held if ".lora_" in name]
    assert len(adapter) == 4 * sum(name.endswith("base_layer.weight") for name in held if name.startswith(prefix))
    for name, value in ancestor.items():
        if name.startswith("ema.model.backbone."):
            rest = f"network.{name.removeprefix('ema.model.backbone.')}"
            layer, _, kind = rest.rpartition(".")
            mine = held.get(prefix + rest, held.get(f"{prefix}{layer}.base_layer.{kind}"))
            assert torch.equal(mine, value), name

    shutil.copytree(at / ADAPTED, at / "again" / ADAPTED)
    for file in (at / "again" / ADAPTED / "checkpoints").glob("0000000064*"):
        file.unlink()
    assert command(main, f"resume={ADAPTED}", at=at / "again").code == 0
    assert (at / "again" / ADAPTED / LAST).read_bytes() == (at / ADAPTED / LAST).read_bytes()

    loaded = load(at / ADAPTED / LAST)
    assert type(loaded.model.backbone).__name__ == "UNet" and loaded.config["adapter"]["rank"] == 2
    assert not any("lora" in name for name in loaded.model.state_dict())
    second = [f"init_from={ADAPTED}", *ADAPTER[1:3], "name=second", *SHORT, "training.images=32"]
    assert command(main, *second, at=at).code == 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["training/adapter=lora"], "training/adapter needs a trained network"),
        ([f"resume={RUN}", "training/adapter=lora"], "training/adapter cannot be set for a run that is resumed"),
        ([*ADAPTER, "training.adapter.targets=[none]"], "training.adapter: targets=['none'] are the ends of no name"),
        ([*ADAPTER, "training.adapter.rank=two"], "training.adapter.rank"),
    ],
)
def test_mistakes_are_one_line(command, at, arguments, message):
    done = command(main, *arguments, at=at)
    assert done.code == 1 and message in done.err and len(done.err.strip().splitlines()) == 1
