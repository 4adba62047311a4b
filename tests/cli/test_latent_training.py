"""diffguide-train first_stage=...: latents are encoded once, a run is whole, and a resumed run is the undisturbed one."""

import json
import shutil
from pathlib import Path

import numpy
import pytest
import torch
import yaml
from latent_run import AUTOENCODER, LATENT, PLACE, RUN, STAGE
from PIL import Image

from diffguide.checkpoints.first_stages import COPY, open_latents
from diffguide.checkpoints.store import find, load
from diffguide.datasets import Digits
from diffguide.files.safetensors import read_metadata
from diffguide.train import main


@pytest.fixture
def home(latent_home, tmp_path) -> Path:
    return Path(shutil.copytree(latent_home, tmp_path / "home"))


def lines(run: Path) -> list[dict]:
    clock = ("images_per_second", "seconds", "data_wait")
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in row.items() if key not in clock} for row in rows]


def refused(done, *words: str) -> bool:
    return done.code == 1 and len(done.err.strip().splitlines()) == 1 and all(word in done.err for word in words)


def test_the_run_is_in_latents_and_draws_pictures(latent_home):
    run, data = latent_home / RUN, Digits()
    loaded = load(run)
    assert loaded.facts["shape"] == [4, 4, 4] and loaded.model.backbone.conv_in.in_channels == 4
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["backbone"]["in_channels"], config["backbone"]["size"]) == (4, 4)
    space = open_latents(loaded.config, loaded.facts, find(run))
    z = space.encode(data.preprocess(data.train.x))
    numpy.testing.assert_allclose(z.double().mean((0, 2, 3)), 0, atol=1e-4)
    numpy.testing.assert_allclose(z.double().var((0, 2, 3), correction=0), 1, atol=1e-4)
    assert space.image_shape == (1, 8, 8) and "latents 4 x 4 x 4" in (run / "log.txt").read_text()
    picture = numpy.asarray(Image.open(run / "samples/0000000128.png").convert("RGB"))
    assert (picture[..., 0] == picture[..., 2]).all()  # decoded: grey, where latents would be drawn in colour


def test_a_resumed_run_is_whole_and_the_undisturbed_one(home, latent_home, command):
    """Without the autoencoder's own run and without the cache: the run folder has a copy."""
    shutil.rmtree(home / STAGE)
    shutil.rmtree(home / "outputs/latents")
    for file in (home / RUN / "checkpoints").glob("0000000128*"):
        file.unlink()
    assert command(main, f"resume={RUN}", at=home).code == 0
    for file in (latent_home / RUN / "checkpoints").iterdir():
        assert (home / RUN / "checkpoints" / file.name).read_bytes() == file.read_bytes(), file.name
    assert lines(home / RUN) == lines(latent_home / RUN)


def test_a_second_training_reads_what_the_first_encoded(home, command):
    before = {file: file.stat().st_mtime_ns for file in (home / "outputs/latents").rglob("*.safetensors")}
    assert command(main, *LATENT, "seed=1", at=home).code == 0
    assert before and {file: file.stat().st_mtime_ns for file in before} == before
    assert command(main, *LATENT, "seed=2", "first_stage.memory=0", "name=streamed", at=home).code == 0
    assert {file: file.stat().st_mtime_ns for file in before} == before


def test_the_storage_of_latents_does_not_change_the_training(home, latent_home, command):
    assert command(main, *LATENT, "first_stage.memory=0", at=home).code == 0
    mine, theirs = (load(folder).model.state_dict() for folder in (home / RUN.with_name("v002"), latent_home / RUN))
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


def test_a_dry_run_encodes_little_and_stores_nothing(home, command):
    shutil.rmtree(home / "outputs/latents")
    done = command(main, *LATENT, "dry_run=true", at=home)
    assert done.code == 0 and "latents: 4 x 4 x 4" in (home / done.folder / "data_sheet.txt").read_text()
    assert not (home / "outputs/latents").exists()


def test_another_first_stage_is_refused_on_resume(home, command):
    for file in (home / RUN / "checkpoints").glob("0000000128*"):
        file.unlink()
    (home / RUN / COPY).unlink()
    assert command(main, *AUTOENCODER, "seed=1", at=home).code == 0
    done = command(
        main, f"resume={RUN}", "first_stage=small_kl", f"first_stage.path={STAGE.with_name('v002')}", at=home
    )
    assert refused(done, "first_stage", "hash")
    shutil.rmtree(home / STAGE)
    assert refused(command(main, f"resume={RUN}", at=home), "first_stage", str(STAGE))


def test_a_run_in_pixels_cannot_continue_in_latents(home, tiny_run, command):
    done = command(main, f"resume={tiny_run}", *PLACE, "training.images=128", at=home)
    assert refused(done, "first_stage")


def test_fine_tuning_keeps_the_normalization_of_the_ancestor(home, command):
    done = command(main, *LATENT, f"init_from={RUN}", "name=tuned", "seed=3", at=home)
    assert done.code == 0
    facts = [read_metadata(find(home / RUN.parents[1] / name / "v001"))["first_stage"] for name in ("digits", "tuned")]
    assert facts[0] == facts[1]
    assert refused(command(main, f"init_from={RUN}", at=home), "first_stage")


MISTAKES = [
    (["objective=vdm"], ["objective=vdm", "bits/dim"]),
    (["objective=cdm", "objective.quantization_levels=17"], ["quantization_levels"]),
    (["objective=autoencoder"], ["objective=autoencoder"]),
    (["condition=low_resolution"], ["condition", "LowResolution"]),
    (["backbone.size=7"], ["backbone.size", "4"]),
    (["dataset=photo_patches"], ["first_stage", "channels"]),
    (["first_stage.path=outputs/train/nothing/v001"], ["first_stage", "nothing"]),
    (["first_stage.path=outputs/train/digits/v001"], ["first_stage", "no autoencoder"]),
    (["first_stage.batch_size=0"], ["batch_size"]),
    (["first_stage.cache=/dev/null/x"], ["first_stage.cache"]),
    (["first_stage=autoencoder_kl"], ["first_stage"]),
]


@pytest.mark.parametrize("words, keys", MISTAKES)
def test_mistakes_are_one_line(home, command, words, keys):
    done = command(main, *LATENT, *words, "name=mistake", at=home)
    assert refused(done, *keys), done.err
    assert not (home / "outputs/train/mistake").exists()


def test_a_path_must_be_given(home, command):
    assert refused(command(main, "first_stage=small_kl", at=home), "first_stage.path")


def test_vectors_have_no_latents(home, command):
    assert refused(command(main, "dataset=gmm2d", "backbone=mlp", *PLACE, at=home), "first_stage", "pictures")
