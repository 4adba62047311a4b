"""training/adapter=lora: a run of an adapter, resumed, sampled at several strengths, started from again, exported."""

import json
import shutil
from contextlib import chdir

import numpy
import pytest
import torch
from safetensors.torch import load_file
from short_run import RUN

from diffguide.checkpoints.store import load
from diffguide.convert import main as convert
from diffguide.evaluate import main as evaluate
from diffguide.sample import main as sample
from diffguide.train import main

pytest.importorskip("peft")
ADAPTER = [f"init_from={RUN}", "training/adapter=lora", "training.adapter.rank=2", "name=adapted"]
SHORT = [
    "training.images=64", "training.batch_size=32", "training.warmup_images=0", "training.checkpoint_images=32",
    "sampler.steps=2", "engine.precision=32-true", "training.adapter.targets=[conv_in]",
]  # fmt: skip
ADAPTED = RUN.parent.parent / "adapted/v001"
BASE = [f"checkpoint={RUN}", "weights=ema"]  # the averages, from which the adapter started
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


@pytest.fixture(scope="module")
def adapted(tiny_run, tmp_path_factory):
    """A folder with a run, a run of an adapter for it whose matrices are not small, and this adapter alone."""
    folder = tmp_path_factory.mktemp("adapted")
    shutil.copytree(tiny_run, folder / RUN)
    with chdir(folder):
        main([*ADAPTER, *SHORT, "training.learning_rate=0.1", "training.adapter.targets=[conv_in,conv_out]"])
        convert([str(ADAPTED), "matrices", "to=lora", "to.weights=objective"])
    return folder


def samples(command, at, *words):
    """Samples of a run, and their manifest."""
    done = command(sample, "n=4", "weights=objective", "sampler.steps=2", "seed=3", *words, at=at)
    assert done.code == 0, done.err
    manifest = (at / done.folder / "manifest.jsonl").read_text().splitlines()[0]
    return numpy.load(at / done.folder / "samples.npz")["arr_0"].astype(float), json.loads(manifest)


@pytest.mark.parametrize("scale", [1, 0.5])
def test_a_training_starts_from_a_network_and_an_adapter(command, adapted, scale):
    """Without a step of any size its weights are the sum; the adapter is part of the ancestry."""
    start = f"init_from={{path:{RUN},adapter:matrices,adapter_scale:{scale}}}"
    still = ["training.learning_rate=1e-12", "training.optimizer.weight_decay=0", "training.images=32"]
    done = command(main, start, f"name=joined{scale}", *SHORT[:-1], *still, at=adapted)
    assert done.code == 0, done.err
    joined = load(adapted / f"outputs/train/joined{scale}/v001")
    found, wanted, before = (
        model.model.backbone.state_dict()
        for model in (joined, load(adapted / ADAPTED, "objective", adapter_scale=scale), load(adapted / RUN))
    )
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)
    assert (found["conv_in.weight"] - before["conv_in.weight"]).abs().max() > 0.01
    ancestry = joined.config["ancestry"]
    assert ancestry["adapter"] == "matrices" and ancestry["adapter_scale"] == scale
    assert len(ancestry["adapter_sha256"]) == 64 and len(ancestry["sha256"]) == 64
    assert "adapter" not in joined.config and command(main, f"resume=outputs/train/joined{scale}/v001", at=adapted).code


def test_samples_at_every_strength_of_an_adapter(command, adapted):
    """0 is the network before, 1 the trained one, also from the file of the matrices alone."""
    before, manifest = samples(command, adapted, *BASE)
    assert not any("adapter" in key for key in manifest)
    trained, manifest = samples(command, adapted, f"checkpoint={ADAPTED}")
    assert not any("adapter" in key for key in manifest) and abs(trained - before).max() > 20
    none, manifest = samples(command, adapted, f"checkpoint={ADAPTED}", "adapter_scale=0")
    assert (none == before).all() and manifest["adapter_scale"] == 0
    alone, manifest = samples(command, adapted, *BASE, "adapter=matrices")
    assert abs(alone - trained).max() <= 1
    assert manifest["adapter"] == "matrices" and len(manifest["adapter_sha256"]) == 64
    half, _ = samples(command, adapted, f"checkpoint={ADAPTED}", "adapter_scale=0.5")
    alone, _ = samples(command, adapted, *BASE, "adapter=matrices", "adapter_scale=0.5")
    assert abs(alone - half).max() <= 1
    assert min(abs(half - trained).max(), abs(half - before).max()) > 5


def test_measurements_and_exports_take_a_strength(command, adapted):
    figures = {}
    for scale in (0, 1):
        words = [f"checkpoint={ADAPTED}", f"adapter_scale={scale}", "metric=denoising", "weights=objective", "n=32"]
        done = command(evaluate, *words, at=adapted)
        assert done.code == 0, done.err
        figures[scale] = json.loads((adapted / done.folder / "metrics.json").read_text())
    assert figures[0]["adapter_scale"] == 0 and "adapter_scale" not in figures[1]
    assert figures[0]["configuration"] != figures[1]["configuration"]
    for words in ([str(ADAPTED), "whole"], [str(RUN), "sum", "adapter=matrices", "to.weights=ema"]):
        assert (
            command(convert, "to=safetensors", "to.weights=objective", *words, "adapter_scale=0.5", at=adapted).code
            == 0
        )
    whole, total = (load_file(adapted / name / "model.safetensors") for name in ("whole", "sum"))
    assert whole.keys() == total.keys()
    for name, value in whole.items():
        torch.testing.assert_close(total[name], value, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "main, words, message",
    [
        (sample, [f"checkpoint={RUN}", "adapter_scale=0.5"], "adapter_scale=0.5 has no effect"),
        (sample, [f"checkpoint={ADAPTED}", "adapter_scale=half"], "adapter_scale must be"),
        (sample, [f"checkpoint={ADAPTED}", "adapter_scale=inf"], "adapter_scale must be a finite number"),
        (sample, [f"checkpoint={RUN}", "adapter=nowhere"], "adapter=nowhere has neither"),
        (main, ["init_from=matrices"], "it is an adapter: write init_from={path:<network>,adapter:matrices}"),
        (main, [f"init_from={{path:{RUN},adapter:nowhere}}"], "adapter=nowhere has neither"),
        (main, [f"init_from={{path:{RUN},adaptor:matrices}}"], "init_from must be a run folder"),
        (main, [f"init_from={{path:{RUN},null_class:ten}}"], "init_from must be a run folder"),
        (main, [f"init_from={{path:{RUN},null_class:10}}"], "null_class has no effect"),
        (main, [f"init_from={{path:{RUN},adapter_scale:2}}"], "adapter_scale=2 has no effect"),
        (sample, ["oracle=gmm2d", "adapter_scale=2"], "adapter_scale has no effect with an oracle"),
        (evaluate, [f"checkpoint={RUN}", "adapter=nowhere"], "adapter=nowhere has neither"),
        (convert, [str(RUN), "new", "to=lora"], "to=lora takes runs of training/adapter=lora"),
        (convert, [str(ADAPTED), "new", "to=lora", "adapter_scale=2"], "no effect with to=lora"),
        (convert, [str(ADAPTED), "new", "architecture=dit", "adapter_scale=2"], "no effect with architecture="),
    ],
)
def test_mistakes_with_adapters_in_use(command, adapted, main, words, message):
    done = command(main, *words, at=adapted)
    assert done.code == 1 and message in done.err and done.err.count("\n") == 1, done.err


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
