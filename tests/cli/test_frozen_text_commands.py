"""Models with frozen text encoders by commands: the encoder never runs in the training loop, a resumed run is the same run."""

import json
from contextlib import chdir
from shutil import copytree

import pytest
from safetensors import safe_open
from safetensors.torch import load_file
from text_encoders import write_clip, write_t5

from diffguide.conditions.encoders import TextEncoder
from diffguide.sample import main as sample
from diffguide.train import main as train

SMALL = ["dataset=shapes", "dataset.train=48", "dataset.validation=12", "dataset.test=4", "backbone.multipliers=[1]",
         "backbone.attention=[16]", "backbone.blocks=1", "backbone.channels=4", "backbone.head_channels=4",
         "training.batch_size=16", "training.checkpoint_images=32", "training.sample_images=32", "sampler.steps=2"]  # fmt: skip
LENGTH = "condition.length=64"
MODEL = ["checkpoint=outputs/train/shapes/v001", "sampler.steps=2", "n=2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("frozen")
    write_clip(place / "clip", length=64)
    write_t5(place / "t5")
    return place


@pytest.fixture(scope="module")
def log(folder):
    """What encoders and training steps did, in order, in a run of 64 images."""
    from diffguide.objectives import Denoising

    events, patch = [], pytest.MonkeyPatch()
    encode, forward = TextEncoder.encode, Denoising.forward

    def note_texts(self, texts, *device):
        events.append(len(texts))
        return encode(self, texts, *device)

    def note_step(self, *given):
        events.append("step")
        return forward(self, *given)

    patch.setattr(TextEncoder, "encode", note_texts)
    patch.setattr(Denoising, "forward", note_step)
    with chdir(folder):
        train([*SMALL, "condition=clip_text", "condition.path=clip", LENGTH, "training.images=64"])
    patch.undo()
    return events


def weights(run):
    return load_file(max(file for file in (run / "checkpoints").glob("0*.safetensors") if "optimizer" not in file.name))


def test_the_encoder_does_not_run_in_the_training_loop(log):
    encoded = [place for place, event in enumerate(log) if event != "step"]
    assert log.count("step") >= 4 and log[0] == 1 and sum(event for event in log if event != "step") > 40
    assert max(encoded) < log.index("step")


def test_a_checkpoint_has_the_hash_and_the_empty_text_and_no_encoder(folder, log):
    run = folder / "outputs/train/shapes/v001"
    file = max(file for file in (run / "checkpoints").glob("0*.safetensors") if "optimizer" not in file.name)
    with safe_open(file, "pt") as opened:
        node = json.loads(opened.metadata()["diffguide"])["config"]["backbone"]["conditioning"]
        names = [name for name in opened.keys() if "conditioning" in name and name.startswith("ema.")]
    assert node["path"] == "clip" and len(node["sha256"]) == 64 and node["features"] == 8
    assert sorted(name.rpartition(".")[2] for name in names) == ["empty_mask", "empty_pooled", "empty_states"]


def test_a_resumed_run_is_the_undisturbed_run_without_the_encoder(folder, log, command):
    run, whole = (folder / f"outputs/train/shapes/{version}" for version in ("v002", "v001"))
    copytree(whole, run)
    for file in (run / "checkpoints").glob("*64.*"):
        file.unlink()
    (folder / "clip").rename(folder / "away")
    try:
        done = command(train, "resume=outputs/train/shapes/v002", at=folder)
        assert done.code == 0, done.err
        found, expected = weights(run), weights(whole)
        assert found.keys() == expected.keys() and all(found[name].equal(expected[name]) for name in found)
        assert command(sample, *MODEL, "labels=null", at=folder).code == 0
        done = command(sample, *MODEL, "prompts=[a red circle]", at=folder)
        assert done.code == 1 and "no text encoder at clip" in done.err and done.err.count("\n") == 1
    finally:
        (folder / "away").rename(folder / "clip")
    done = command(sample, *MODEL, "prompts=[a red circle]", "guidance=cfg", "guidance.negative=green", at=folder)
    assert done.code == 0, done.err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["condition.path=nothing"], "no text encoder at nothing"),
        (["condition.path=t5"], "'t5'"),
        ([], "condition.path"),
        (["condition.path=clip", "condition.length=65"], "condition.length must be at most 64"),
        (["condition.path=clip", "condition.length=3"], "condition.length=3"),
    ],
)
def test_mistakes_are_one_line(folder, command, words, expected):
    done = command(train, *SMALL, "condition=clip_text", *words, at=folder)
    assert done.code == 1 and expected in done.err and "Traceback" not in done.err
    assert done.err.strip().count("\n") == 0


def test_two_encoders_by_a_command(folder, command):
    parts = [
        "condition=several", "~condition.parts.text", "~condition.parts.class",
        "+condition.parts.clip={_target_:diffguide.conditions.frozen_text.ClipText,path:clip,length:64}",
        "+condition.parts.t5={_target_:diffguide.conditions.frozen_text.T5Text,path:t5,length:32}",
    ]  # fmt: skip
    done = command(train, *SMALL, *parts, "training.images=16", "name=two", at=folder)
    assert done.code == 0, done.err
    done = command(
        sample, "checkpoint=outputs/train/two/v001", "prompts=[a red circle]", "sampler.steps=2", "n=2", at=folder
    )
    assert done.code == 0, done.err
