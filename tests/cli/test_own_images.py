"""A folder of images through the commands: dry run, training, resume, sampling."""

import re
from pathlib import Path

import numpy
import pytest
from PIL import Image

from diffguide.backbones import UNet
from diffguide.checkpoints import store as checkpoints
from diffguide.config.build import config_dir
from diffguide.sample import main as sample
from diffguide.train import main

SMALL = [
    "dataset.size=16",
    "backbone.channels=8",
    "backbone.head_channels=8",
    "backbone.attention=[8]",
    "backbone.blocks=1",
    "sampler.steps=2",
    "training.batch_size=8",
    "training.images=32",
    "training.checkpoint_images=16",
]
ODD = "my = images, 2 ö"


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three classes of one colour each, in a folder with an awkward name; one file is unreadable."""
    rng = numpy.random.default_rng(0)
    for k, name in enumerate(["cats", "dögs", "o, wls"]):
        (tmp_path / ODD / name).mkdir(parents=True)
        for i in range(10 + k):
            pixels = numpy.full((20, 24, 3), 30, numpy.uint8)
            pixels[..., k] = rng.integers(100, 255)
            Image.fromarray(pixels).save(tmp_path / ODD / name / f"{i}.jpg")
    (tmp_path / ODD / "cats" / "broken.jpg").write_bytes(b"not a picture")
    return tmp_path


def own(*arguments: str) -> list[str]:
    return ["dataset=image_folder", f"dataset.path={ODD}", "dataset.num_classes=3", *SMALL, *arguments]


@pytest.mark.parametrize("memory", ["2.0e+9", "0"])
def test_own_images_train_resume_and_sample(folder, command, memory):
    done = command(main, *own(f"dataset.memory={memory}"), at=folder)
    assert done.code == 0 and "1 unreadable images are skipped: cats/broken.jpg" in done.err, done.err
    assert f"resume={done.folder} training.images=" in done.err  # 32 images lie within the warm-up
    loaded = checkpoints.load(folder / done.folder)
    assert loaded.facts["class_names"] == ["cats", "dögs", "o, wls"] and loaded.facts["shape"] == [3, 16, 16]
    whole = (folder / done.folder / "checkpoints/0000000032.safetensors").read_bytes()
    for file in (folder / done.folder / "checkpoints").glob("0000000032*"):
        file.unlink()
    resumed = command(main, f"resume={done.folder}", at=folder)
    assert resumed.code == 0, resumed.err
    assert (folder / done.folder / "checkpoints/0000000032.safetensors").read_bytes() == whole
    sampled = command(sample, f"checkpoint={done.folder}", "labels=[dögs]", "n=2", "sampler.steps=2", at=folder)
    assert sampled.code == 0, sampled.err
    assert numpy.load(folder / sampled.folder / "samples.npz")["arr_0"].shape == (2, 16, 16, 3)


def test_a_dry_run_does_not_train(folder, command):
    done = command(main, *own("dry_run=true", "name=look"), at=folder)
    assert done.code == 0 and str(done.folder) == "outputs/dry_run/look/v001", done.err
    assert [path.name for path in (folder / "outputs").iterdir()] == ["dry_run"]
    sheet = (folder / done.folder / "data_sheet.txt").read_text()
    assert all(line in done.err for line in sheet.splitlines())
    mirrored = [line for line in sheet.splitlines() if "dataset.flip=false" in line]
    assert [line.startswith("network input") for line in mirrored] == [True]
    counts = [
        re.search(rf"class {k} {name}: (\d+) train / (\d+) validation", sheet)
        for k, name in enumerate(["cats", "dögs", "o, wls"])
    ]
    assert [int(found[1]) + int(found[2]) for found in counts] == [10, 11, 12]
    assert (
        "cats/broken.jpg" in sheet
        and "24 x 20" in sheet.replace("x", " x ").replace("  ", " ")
        and "[3, 16, 16]" in sheet
    )
    picture = numpy.asarray(Image.open(folder / done.folder / "contact_sheet.png").convert("RGB")).astype(int)
    cells = picture[[10, 77, 144], -30]
    assert cells.argmax(axis=1).tolist() == [0, 1, 2]  # a red row, a green one, a blue one


UNTIMED = "engine.precision=32-true"  # auto times steps of a training as long as the default


def cost(err: str) -> tuple[int, float, float, float]:
    """Parameters, bytes of weights and of activations, seconds."""
    units = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "seconds": 1, "minutes": 60, "hours": 3600, "days": 86400}
    parameters = int(re.search(r"parameters: ([\d,]+)", err)[1].replace(",", ""))
    weights = re.search(r"optimiser ([\d.]+) (\w+)", err)
    activations = re.search(r"activations of \d+ images ([\d.]+) (\w+)", err)
    seconds = re.search(r"time: about ([\d.]+) (\w+)", err)
    return parameters, *(float(found[1]) * units[found[2]] for found in (weights, activations, seconds))


def test_a_dry_run_estimates_the_cost(tmp_path, command):
    small = ["dry_run=true", UNTIMED, "backbone.channels=8", "backbone.head_channels=8"]
    first = command(main, *small, "training.batch_size=16", at=tmp_path)
    double = command(main, *small, "training.batch_size=32", "training.images=6000000", at=tmp_path)
    parts = command(main, *small, "training.batch_size=32", "training.accumulate=2", at=tmp_path)
    network = UNet(1, None, 10, 8, 8, [1, 2], 2, [4], 8, 0.1)
    (count, weights, activations, seconds), twice, cut = (cost(done.err) for done in (first, double, parts))
    assert weights == pytest.approx(20 * count, rel=0.01)  # weights, gradients, average, two moments; four bytes each
    assert twice[:2] == cut[:2] == (count, weights)
    assert twice[2] == pytest.approx(2 * activations, rel=0.05) and cut[2] == pytest.approx(activations, rel=0.05)
    assert 20 < twice[3] / seconds < 200  # a hundred times the images
    assert count == sum(parameter.numel() for parameter in network.parameters())


def test_a_long_dry_run_shows_the_sheet_first_and_names_a_smaller_backbone(tmp_path, command):
    """For vectors the smaller option is an MLP too; without one, the report says so."""
    (tmp_path / "mine/backbone").mkdir(parents=True)
    wide = Path(config_dir(), "backbone/mlp.yaml").read_text().replace("width: 128", "width: 512")
    (tmp_path / "mine/backbone/wide.yaml").write_text(wide)
    long = ["--config-dir", str(tmp_path / "mine"), "dry_run=true", UNTIMED, "dataset=gmm2d",
            "training.batch_size=32",
            "training.images=10000000000"]  # fmt: skip
    done = command(main, *long, "backbone=wide", at=tmp_path)
    assert done.code == 0, done.err
    places = [done.err.index(text) for text in ("network input", "timing 4/4 steps", "parameters: ", "backbone=mlp (")]
    assert places == sorted(places) and "more than an hour" in done.err
    done = command(main, *long, "backbone=mlp", "backbone.width=8", at=tmp_path)
    assert done.code == 0 and "no smaller backbone" in done.err, done.err


@pytest.mark.parametrize("arguments", [["experiment=gmm2d"], ["guidance=none", "backbone.num_classes=0"]])
def test_a_dry_run_accepts_every_objective(tmp_path, command, arguments):
    done = command(main, "dry_run=true", UNTIMED, *arguments, at=tmp_path)
    assert done.code == 0, done.err
    assert Image.open(tmp_path / done.folder / "contact_sheet.png").size[0] > 100
