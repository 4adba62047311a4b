"""The data of a run that is resumed or evaluated later: changed, moved, read from elsewhere, or of a run from before."""

import json
import shutil
from pathlib import Path

import numpy
import pytest
from image_files import path_place
from omegaconf import OmegaConf
from PIL import Image
from small_checkpoint import change

from diffguide.checkpoints import data_record as provenance
from diffguide.checkpoints import store as checkpoints
from diffguide.evaluate import main as evaluate
from diffguide.train import main

TINY = ["backbone.channels=4", "backbone.multipliers=[1]", "backbone.attention=[]", "backbone.blocks=1", "sampler.steps=2",
        "training.batch_size=4", "training.images=8", "dataset.size=8", "dataset.channels=1"]  # fmt: skip
OWN = ["dataset=image_folder", "dataset.path=pictures", "dataset.num_classes=3", *TINY]
RUN = Path("outputs/train/image_folder/v001")
MEASURED = ["metric=denoising", f"checkpoint={RUN}"]


def draw(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(numpy.random.default_rng(number).integers(0, 256, (8, 8), dtype=numpy.uint8)).save(path)


def begun(folder: Path, command, *arguments: str) -> Path:
    """A run of two steps on three classes, 1, 2 and 10, of fourteen pictures."""
    for k, name in enumerate(("1", "2", "10")):
        for i in range(14):
            draw(folder / "pictures" / name / f"{i}.png", 100 * k + i)
    done = command(main, *OWN, *arguments, at=folder)
    assert done.code == 0 and done.folder == RUN, done.err
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    from contextlib import chdir

    folder = tmp_path_factory.mktemp("pictures")
    for k, name in enumerate(("1", "2", "10")):
        for i in range(14):
            draw(folder / "pictures" / name / f"{i}.png", 100 * k + i)
    with chdir(folder):
        main(OWN)
    return folder


@pytest.fixture
def at(trained, tmp_path) -> Path:
    """A copy of the run, with its pictures; the original ones are elsewhere still, so the record is of the copy."""
    shutil.copytree(trained, tmp_path / "at")
    place(tmp_path / "at")
    return tmp_path / "at"


def place(folder: Path) -> None:
    """Writes this folder into the records as the place of the images."""
    path = str(folder / "pictures")
    file = folder / RUN / "data.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"path": path}))
    for weights in checkpoints.list_checkpoints(folder / RUN / "checkpoints"):

        def put(tensors, metadata):
            metadata["data"]["path"] = path

        change(weights, weights, put)


def refused(done, *words: str) -> None:
    """One line, code 1, with these words."""
    assert done.code == 1 and len(done.err.splitlines()) == 1 and "Traceback" not in done.err, done.err
    assert all(word in done.err for word in words), done.err


def notes(folder: Path) -> list[dict]:
    lines = map(json.loads, (folder / RUN / "metrics.jsonl").read_text().splitlines())
    return [line["data"] for line in lines if "data" in line]


def test_changed_data_are_reported_and_recorded(at, command):
    draw(at / "pictures/2/new.png", 999)
    draw(at / "pictures/1/3.png", 998)
    for i in (0, 1, 2, 5):
        (at / f"pictures/10/{i}.png").unlink()
    done = command(main, f"resume={RUN}", "training.images=12", at=at)
    changed = {"added": {"count": 1, "first": ["2/new.png"]}, "replaced": {"count": 1, "first": ["1/3.png"]},
               "removed": {"count": 4, "first": ["10/0.png", "10/1.png", "10/2.png"]}}  # fmt: skip
    assert done.code == 0 and notes(at) == [changed], done.err
    told = [line for line in done.err.splitlines() if line.startswith("the data have changed since: ")]
    assert len(told) == 1 and "4 files removed (10/0.png, 10/1.png, " in told[0]
    again = command(main, f"resume={RUN}", "training.images=16", at=at)  # they are the run's data now
    assert again.code == 0 and notes(at) == [changed] and "have changed" not in again.err, again.err
    (at / "pictures/2/new.png").unlink()
    measured = command(evaluate, *MEASURED, at=at)
    assert measured.code == 0 and "1 files removed (2/new.png)" in measured.err, measured.err


def test_moved_data_are_read_at_dataset_path(at, command):
    (at / "pictures").rename(at / "moved")
    refused(command(main, f"resume={RUN}", "training.images=12", at=at), str(at / "pictures"), "dataset.path=<folder>")
    refused(command(evaluate, *MEASURED, at=at), "pictures", "dataset.path=<folder>")
    measured = command(evaluate, *MEASURED, "dataset.path=moved", at=at)
    assert measured.code == 0, measured.err
    assert json.loads((at / measured.folder / "metrics.json").read_text())["dataset"]["path"] == "moved"
    for number, options in enumerate((["dataset.path=moved"], ["dataset=image_folder", "dataset.path=moved"]), start=1):
        done = command(main, f"resume={RUN}", f"training.images={8 + 4 * number}", *options, at=at)
        assert done.code == 0 and notes(at) == [], done.err
    record = provenance.read_record(at / RUN)
    assert record["path"] == str(at / "moved") and record["count"] == 42
    shutil.copytree(at / "moved", at / "fewer")
    (at / "fewer/10/7.png").unlink()
    for line in ([main, f"resume={RUN}", "training.images=20"], [evaluate, *MEASURED]):
        refused(command(*line, "dataset.path=fewer", at=at), "dataset.path=fewer", "1 files removed (10/7.png)")
    other = command(evaluate, *MEASURED, "dataset=image_folder", "dataset.path=fewer", at=at)  # others, on purpose
    assert other.code == 0, other.err


def test_a_relative_path_is_found_from_elsewhere(at, command):
    """The recorded absolute path has priority over the same relative path in the working folder."""
    elsewhere = at / "elsewhere"
    draw(elsewhere / "pictures/1/other.png", 1)
    done = command(main, f"resume=../{RUN}", "training.images=12", at=elsewhere)
    assert done.code == 0 and notes(at) == [] and "have changed" not in done.err, done.err
    measured = command(evaluate, "metric=denoising", f"checkpoint=../{RUN}", at=elsewhere)
    assert measured.code == 0 and "have changed" not in measured.err, measured.err
    assert OmegaConf.load(at / RUN / "config.yaml").dataset.path == "pictures"  # as it was typed


@pytest.mark.parametrize("options, words", [
    (["dataset.pth=x"], ["no key dataset.pth", "dataset.path"]),
    (["dataset=digits"], ["cannot change dataset", "drop dataset=digits"]),
    (["dataset=image_folder", "dataset.num_classes=4"], ["dataset.num_classes (3 -> 4)"]),
    (["dataset.validation=0.5"], ["dataset.validation (0.05 -> 0.5)"]),
    (["dataset=mnist"], ["cannot change dataset", "drop dataset=mnist"]),
    (["backbone.channels=5"], ["backbone.channels (4 -> 5)"]),
    (["objective=eps"], ["objective.parameterization (V -> Eps)"]),
])  # fmt: skip
def test_another_data_option_is_one_line(at, command, options, words):
    refused(command(main, f"resume={RUN}", "training.images=12", *options, at=at), *words)


def test_a_repeated_option_keeps_the_keys_of_the_run(at, command):
    done = command(main, f"resume={RUN}", "training.images=12", "dataset=image_folder", "backbone=unet", "objective=v",
                   "sampler=heun", at=at)  # fmt: skip
    assert done.code == 0, done.err
    config = OmegaConf.load(at / RUN / "config.yaml")
    assert (config.dataset.size, config.backbone.channels, config.sampler.steps) == (8, 4, 2)
    refused(command(evaluate, *MEASURED, "dataset.pth=x", at=at), "no key dataset.pth", "dataset.path")


def test_renamed_classes_are_an_error(at, command):
    (at / "pictures/2").rename(at / "pictures/3")
    refused(command(main, f"resume={RUN}", "training.images=12", at=at), "1, 2, 10", "1, 3, 10")


def test_an_old_run_keeps_its_split_and_its_order(tmp_path, command):
    """Its config.yaml and its checkpoint lack the keys; training continues bit for bit, without a note about its data."""
    old = ["dataset.class_order=names", "dataset.split_by=path", "dataset.suffixes=[.png,.jpg,.jpeg,.webp,.bmp,.gif,.tif,"
           ".tiff,.ppm,.pgm]", "dataset.validation=0.2"]  # fmt: skip
    at = begun(tmp_path, command, *old)
    shutil.copytree(at / RUN, at / "twin")
    draw(at / "pictures/2/0.tga", 5)  # which was not read then
    strip(at / RUN)
    done = command(main, f"resume={RUN}", "training.images=12", at=at)
    assert done.code == 0 and "have changed" not in done.err and "1 .tga (2/0.tga)" in done.err, done.err
    shutil.move(at / RUN, at / "stripped")
    shutil.move(at / "twin", at / RUN)
    assert command(main, f"resume={RUN}", "training.images=12", at=at).code == 0
    one, other = (checkpoints.read(run / "checkpoints/0000000012.safetensors") for run in (at / "stripped", at / RUN))
    assert one[1] == other[1] | {"config": one[1]["config"]} and one[1]["class_names"] == ["1", "10", "2"]
    assert all(bool((one[0][name] == other[0][name]).all()) for name in one[0])

    strip(at / RUN)
    measured = command(evaluate, *MEASURED, at=at)
    record = json.loads((at / measured.folder / "metrics.json").read_text())
    validating = [
        f"{name}/{i}.png" for name in ("1", "2", "10") for i in range(14) if path_place(f"{name}/{i}.png") < 0.2
    ]
    assert record["n"] == len(validating) and record["dataset"]["split_by"] == "path", measured.err


def strip(run: Path) -> None:
    """Takes out of a run folder what versions before did not write."""
    added = ("class_order", "split_by", "suffixes")
    config = OmegaConf.load(run / "config.yaml")
    for key in added:
        del config.dataset[key]
    OmegaConf.save(config, run / "config.yaml")
    (run / "data.json").unlink()

    def take(tensors, metadata):
        del metadata["data"]
        for key in added:
            del metadata["config"]["dataset"][key]

    for file in checkpoints.list_checkpoints(run / "checkpoints"):
        change(file, file, take)


@pytest.mark.parametrize("record", [3, {}, {"sha256": "x", "count": 1, "path": None}, {"sha256": "a" * 64, "count": "1"},
                                    {"sha256": "a" * 64, "count": 1, "path": "a\0b"},
                                    {"sha256": "a" * 64, "count": 1, "path": "x" * 5000}])  # fmt: skip
def test_an_invalid_record_is_an_error_in_a_checkpoint_and_ignored_in_a_folder(record, at, tmp_path):
    (at / RUN / "data.json").write_text(json.dumps(record))
    assert provenance.read_record(at / RUN) is None
    (file,) = checkpoints.list_checkpoints(at / RUN / "checkpoints")
    change(file, tmp_path / "other.safetensors", lambda tensors, metadata: metadata.update(data=record))
    with pytest.raises(checkpoints.CheckpointError, match="data must hold a sha256, a count and a path"):
        checkpoints.read(tmp_path / "other.safetensors")


def test_old_names_of_keys_are_accepted(tmp_path, command):
    """dataset.root of a download, typed and in a file of the user; the run states the new keys."""
    typed, written = ["dataset=mnist", "dataset.root=nowhere"], ["--config-dir", "conf", "dataset=mine"]
    for line, notices in (
        (typed, ["dataset.root is now dataset.path; the next version removes the old name"]),
        (written, []),
    ):
        (tmp_path / "conf/dataset").mkdir(parents=True, exist_ok=True)
        (tmp_path / "conf/dataset/mine.yaml").write_text(
            "_target_: diffguide.datasets.downloads.MNIST\nroot: nowhere\ndownload: false\nchannels: 1\nsize: 28\n"
            "num_classes: 10\nflip: false\nvalidation: 10\nvalues: 256\n"
        )
        options = [] if "mine" in line[-1] else ["dataset.download=false"]
        done = command(main, *line, *options, "backbone=unet_28", at=tmp_path)
        *shown, error = done.err.splitlines()
        assert done.code == 1 and shown == notices and "dataset.path is nowhere" in error, done.err
    own = [f"{key}: {value}" for key, value in {
        "_target_": "diffguide.datasets.image_folder.ImageFolder", "path": "pictures", "channels": 1, "size": 8,
        "num_classes": 3, "resize": "null", "stretch": "false", "flip": "false", "validation": 0.1, "test": 0.0,
        "memory": 1.0, "workers": 0,
    }.items()]  # fmt: skip
    (tmp_path / "conf/dataset/mine.yaml").write_text("\n".join(own) + "\n")
    for k, name in enumerate(("1", "2", "10")):
        for i in range(4):
            draw(tmp_path / "pictures" / name / f"{i}.png", 10 * k + i)
    done = command(main, "--config-dir", "conf", "dataset=mine", *TINY, at=tmp_path)
    assert done.code == 0, done.err
    node = OmegaConf.load(tmp_path / done.folder / "config.yaml").dataset
    assert (node.class_order, node.split_by, node.suffixes) == ("numbers", "contents", None)
