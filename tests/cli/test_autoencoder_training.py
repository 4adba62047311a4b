"""diffguide-train objective=autoencoder: it learns, resumes bit for bit, draws reconstructions, and says what it is not."""

import json
import shutil
from contextlib import chdir
from pathlib import Path

import numpy
import pytest
from PIL import Image

import diffguide
from diffguide.evaluate import main as evaluate
from diffguide.first_stages import Autoencoder
from diffguide.sample import main as sample
from diffguide.train import main

RUN = Path("outputs/train/digits/v001")
SMALL = ["objective=autoencoder", "backbone.channels=8", "backbone.multipliers=[1,1]", "backbone.head_channels=8",
         "training.batch_size=32", "training.images=1280", "training.checkpoint_images=640", "training.log_images=320",
         "training.validation_images=640", "training.sample_images=1280", "training.warmup_images=0"]  # fmt: skip


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("autoencoder")
    with chdir(folder):
        main(SMALL)
    return folder / RUN


def lines(run: Path) -> list[dict]:
    clock = ("images_per_second", "seconds", "data_wait")
    return [
        {key: value for key, value in json.loads(line).items() if key not in clock}
        for line in (run / "metrics.jsonl").read_text().splitlines()
    ]


def test_the_reconstruction_improves_and_is_drawn(autoencoder):
    losses = [line["validation_loss"] for line in lines(autoencoder) if "validation_loss" in line]
    psnr = [line["psnr"] for line in lines(autoencoder) if "psnr" in line]
    assert losses[-1] < losses[0] and psnr[-1] > psnr[0]
    assert {"l1", "mse", "kl", "pyramid"} <= lines(autoencoder)[0].keys()
    (picture,) = (autoencoder / "samples").glob("*.png")
    assert numpy.asarray(Image.open(picture)).std() > 10
    model = diffguide.load(autoencoder)
    assert isinstance(model, Autoencoder) and model.latent_shape((1, 8, 8)) == (4, 4, 4)


def test_a_resumed_run_is_the_undisturbed_one(autoencoder, tmp_path, command):
    shutil.copytree(autoencoder, tmp_path / RUN)
    for file in (tmp_path / RUN / "checkpoints").glob("0000001280*"):
        file.unlink()
    assert command(main, f"resume={RUN}", at=tmp_path).code == 0
    for file in (autoencoder / "checkpoints").iterdir():
        assert (tmp_path / RUN / "checkpoints" / file.name).read_bytes() == file.read_bytes(), file.name
    assert lines(tmp_path / RUN) == lines(autoencoder)


@pytest.mark.parametrize("main, words", [(sample, ["first_stage"]), (evaluate, ["Autoencoder"])])
def test_it_is_no_generator(autoencoder, tmp_path, command, main, words):
    done = command(main, f"checkpoint={autoencoder}", at=tmp_path)
    assert done.code == 1 and len(done.err.strip().splitlines()) == 1 and all(word in done.err for word in words)


MISTAKES = [(["backbone=unet"], "small_kl"), (["dataset=gmm2d"], "vectors"), (["schedule=cosine"], "schedule=none"),
            (["objective.kl_weight=-1"], "kl_weight")]  # fmt: skip


@pytest.mark.parametrize("words, key", MISTAKES)
def test_mistakes_are_one_line(tmp_path, command, words, key):
    done = command(main, *SMALL, *words, at=tmp_path)
    assert done.code == 1 and len(done.err.strip().splitlines()) == 1 and key in done.err
    assert not (tmp_path / "outputs").exists()
