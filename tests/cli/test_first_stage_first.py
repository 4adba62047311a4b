"""One command trains an autoencoder and then a model in its latents; each half goes on where it stopped."""

import os
import shutil
import signal
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from diffguide.checkpoints.first_stages import COPY
from diffguide.checkpoints.store import load
from diffguide.train import main
from diffguide.training.state import TrainingRun

SMALL = ["dataset.path=pictures", "dataset.size=16", "engine.precision=32-true", "compile=false"]
LENGTH = ["training.images=64", "training.checkpoint_images=32", "training.batch_size=32"]
FIRST = [
    word.replace("=", ":") for word in (*LENGTH, "backbone.channels=4", "backbone.blocks=1", "backbone.head_channels=4")
]
LATENT = [
    "experiment=latent_own_images", *SMALL, *LENGTH, "backbone.channels=8", "backbone.head_channels=8", "backbone.attention=[]",
    "backbone.blocks=1", "sampler.steps=2", f"first_stage.overrides={{{','.join(FIRST)}}}",
]  # fmt: skip
RUN, STAGE = Path("outputs/train/latent_own_images/v001"), Path("outputs/train/own_images_autoencoder/v001")


def write_pictures(folder: Path) -> None:
    rng = numpy.random.default_rng(0)
    (folder / "pictures").mkdir()
    for index in range(40):
        Image.fromarray(rng.integers(256, size=(16, 16, 3), dtype=numpy.uint8)).save(folder / f"pictures/{index}.png")


def equal(run: Path, other: Path) -> bool:
    """Whether the last checkpoints of two runs, and their optimisers, have the same tensors."""
    files = [[load_file(file) for file in sorted((each / "checkpoints").glob("*64*"))] for each in (run, other)]
    return len(files[0]) == 2 and all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a) for a, b in zip(*files, strict=True)
    )


def refused(done, *words: str) -> bool:
    return done.code == 1 and len(done.err.strip().splitlines()) == 1 and all(word in done.err for word in words)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A folder in which the command ran undisturbed."""
    from contextlib import chdir

    folder = tmp_path_factory.mktemp("whole")
    write_pictures(folder)
    with chdir(folder):
        main(LATENT)
    return folder


@pytest.fixture
def home(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "home"))


@pytest.fixture
def stop(monkeypatch):
    """stop(folder) sends SIGTERM to the training there, in its first step."""

    def arrange(folder: Path) -> None:
        update = TrainingRun.update

        def interrupted(self):
            update(self)
            if self.folder == folder and self.images == 32:
                os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr(TrainingRun, "update", interrupted)

    return arrange


def test_one_command_trains_both(whole):
    assert load(whole / STAGE).facts["images"] == 64 and load(whole / STAGE).facts["shape"] == [3, 16, 16]
    loaded = load(whole / RUN)
    assert loaded.facts["shape"] == [4, 4, 4] and (whole / RUN / COPY).is_file()
    node = loaded.config["first_stage"]
    assert node["_target_"].endswith(".TrainedAutoencoder") and node["path"] == str(STAGE)


def test_a_finished_first_stage_is_not_trained_again(home, whole, command):
    done = command(main, *LATENT, "seed=1", at=home)
    assert done.code == 0 and done.folder == RUN.with_name("v002") and "autoencoder is trained first" not in done.err
    assert equal(home / STAGE, whole / STAGE) and not (home / STAGE.with_name("v002")).exists()


def test_other_settings_train_another_first_stage(home, command):
    other = [*LATENT[:-1], LATENT[-1].replace("}", ",seed:3}")]
    done = command(main, *other, at=home)
    assert done.code == 0 and "the autoencoder is trained first" in done.err
    assert load(home / done.folder).config["first_stage"]["path"] == str(STAGE.with_name("v002"))


def test_the_same_command_continues_an_interrupted_first_stage(whole, tmp_path, command, stop):
    write_pictures(tmp_path)
    stop(STAGE)
    done = command(main, *LATENT, at=tmp_path)
    assert done.code == 128 + signal.SIGTERM and "continue with: the same command" in done.err
    assert not (tmp_path / RUN).exists() and load(tmp_path / STAGE).facts["images"] == 32
    assert command(main, *LATENT, at=tmp_path).code == 0
    assert [path.name for path in (tmp_path / STAGE.parent).iterdir() if path.name[0] == "v"] == ["v001"]
    for run in (STAGE, RUN):
        assert equal(tmp_path / run, whole / run)


def test_a_resumed_model_needs_no_first_stage(home, whole, command):
    for file in (home / RUN / "checkpoints").glob("*64*"):
        file.unlink()
    shutil.rmtree(home / STAGE)
    assert command(main, f"resume={RUN}", at=home).code == 0
    assert equal(home / RUN, whole / RUN) and not (home / STAGE).exists()
    for file in (home / RUN / "checkpoints").glob("*64*"):
        file.unlink()
    assert command(main, *LATENT, f"resume={RUN}", at=home).code == 0
    assert equal(home / RUN, whole / RUN) and not (home / STAGE).exists()


def test_a_given_first_stage_is_taken(home, command):
    moved = (home / STAGE).rename(home / "autoencoder")
    done = command(main, *LATENT, f"first_stage.path={moved}", at=home)
    assert done.code == 0 and not (home / STAGE).exists()


def test_a_dry_run_describes_what_is_trained_next(home, command):
    done = command(main, *LATENT, "dry_run=true", at=home)
    assert done.code == 0 and done.folder == Path("outputs/dry_run/latent_own_images/v001"), done.err
    shutil.rmtree(home / STAGE)
    done = command(main, *LATENT, "dry_run=true", at=home)
    assert done.code == 0 and done.folder == Path("outputs/dry_run/own_images_autoencoder/v001"), done.err
    assert "the autoencoder is trained first" in done.err and not (home / STAGE).exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["first_stage.recipe=nothing"], ["first_stage.recipe", "nothing"]),
        (["first_stage.recipe=gmm2d"], ["first_stage.recipe", "backbone.channels"]),
        (["first_stage.recipe=own_images_64"], ["first_stage.recipe", "own_images_64 trains no autoencoder"]),
        (["first_stage.overrides={backbone.chanels: 4}"], ["first_stage.overrides", "chanels"]),
        (["first_stage.overrides={backbone.channels: -4}"], ["channels=-4"]),
        (["first_stage.path=nothing"], ["first_stage", "nothing"]),
        (["first_stage.batch_size=x"], ["first_stage.batch_size"]),
        (["backbone.size=7"], ["backbone.size must be 4"]),
        (["backbone.multipliers=[]"], ["multipliers=[]"]),
        (["objective=vdm"], ["objective=vdm", "bits/dim"]),
        (["init_from=pictures"], ["init_from"]),
    ],
)
def test_mistakes_are_one_line_before_anything_is_trained(tmp_path, command, words, expected):
    write_pictures(tmp_path)
    done = command(main, *LATENT, *words, at=tmp_path)
    assert refused(done, *expected), done.err
    assert not (tmp_path / "outputs").exists()
