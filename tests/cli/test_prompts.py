"""Models with texts by commands: trained from captions, sampled from prompts, resumed, refused in one line."""

import io
import json
from contextlib import chdir

import numpy
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from diffguide.conditions import ByteText
from diffguide.convert import main as convert
from diffguide.evaluate import main as evaluate
from diffguide.sample import main as sample
from diffguide.train import main as train

SMALL = ["dataset=shapes", "dataset.train=64", "dataset.validation=20", "dataset.test=20", "backbone.multipliers=[1]",
         "backbone.attention=[16]", "backbone.blocks=1", "backbone.channels=4", "backbone.head_channels=4",
         "training.images=64", "training.batch_size=32", "training.checkpoint_images=32", "sampler.steps=2"]  # fmt: skip
TEXT = [*SMALL, "condition=text", "condition.features=8", "condition.heads=2", "condition.layers=1"]
MODEL = "checkpoint=outputs/train/shapes/v001"
QUICK = [MODEL, "sampler.steps=2", "batch_size=3"]
TABULATED: list[int] = []  # examples of each split whose conditions were made in that training


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place, patch, tabulate = tmp_path_factory.mktemp("texts"), pytest.MonkeyPatch(), ByteText.tabulate

    def note(self, columns, labels):
        TABULATED.append(len(labels))
        return tabulate(self, columns, labels)

    patch.setattr(ByteText, "tabulate", note)
    with chdir(place):
        train(TEXT)
    patch.undo()
    return place


def rows(folder):
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()][1:]


def images(folder):
    with numpy.load(folder / "samples.npz") as arrays:
        return arrays["arr_0"]


def test_training_ends_with_a_row_per_caption(folder):
    run = folder / "outputs/train/shapes/v001"
    grid = Image.open(max((run / "samples").glob("*.png")))
    assert grid.height > grid.width / 2 and (run / "checkpoints").is_dir()
    assert "conditioning" in (run / "config.yaml").read_text()


def test_training_makes_the_conditions_of_a_split_once(folder):
    """For its checks, its batches, two held-out losses and two pictures."""
    assert TABULATED == [64, 20]


@pytest.mark.parametrize("given", ["list", "file", "stdin", "one"])
def test_samples_are_of_their_prompts(folder, command, monkeypatch, given):
    texts = ["a red circle"] if given == "one" else ["a red circle", "two blue squares", ""]
    (folder / "texts.txt").write_text("\ufeff" + "\n".join(texts) + "\n", encoding="utf-8")  # as some editors do
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(texts) + "\n"))
    value = {"list": "[a red circle,two blue squares,'']", "file": "texts.txt", "stdin": "-", "one": "a red circle"}[
        given
    ]
    done = command(sample, *QUICK, f"prompts={value}", "n=5", "guidance=cfg", at=folder)
    assert done.code == 0, done.err
    found = folder / done.folder
    assert [row["prompt"] for row in rows(found)] == [texts[i % len(texts)] for i in range(5)]
    assert images(found).shape == (5, 16, 16, 3) and (found / "grid.png").is_file()


def test_an_image_depends_on_its_seed_and_its_text_alone(folder, command):
    many = command(sample, *QUICK, "prompts=[a red circle,two blue squares]", "n=4", at=folder).folder
    alone = command(sample, *QUICK, "prompts=[two blue squares]", "n=1", "seed=3", "batch_size=1", at=folder).folder
    assert abs(images(folder / many)[3].astype(int) - images(folder / alone)[0]).max() <= 1
    negative = command(sample, *QUICK, "prompts=[two blue squares]", "n=1", "seed=3", "guidance=cfg",
                       "guidance.negative=green", "guidance.scale=4", at=folder)  # fmt: skip
    assert negative.code == 0
    header = json.loads((folder / negative.folder / "manifest.jsonl").read_text().splitlines()[0])
    before = json.loads((folder / alone / "manifest.jsonl").read_text().splitlines()[0])
    assert header["guidance"]["negative"] == "green" and header["network_evaluations"] > before["network_evaluations"]
    assert command(sample, *QUICK, "labels=null", "n=2", at=folder).code == 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "prompts=[...]"),
        (["prompts=nothing.txt"], "nothing.txt cannot be read"),
        (["prompts=[]"], "prompts must be 1 to"),
        (["prompts=-"], "got none in stdin"),
        (["prompts={a:red}"], "prompts: {'a': 'red'} must be one text"),
        (
            ["prompts=red", "guidance=cfg", "guidance.negative=[green,blue]"],
            "negative: ['green', 'blue'] must be one text",
        ),
        ([f"prompts={'x' * 70}"], "condition.length=64 allows 63"),
        (["prompts=red", "guidance=cfg", f"guidance.negative={'x' * 70}"], "condition.length=64 allows 63"),
        (["prompts=red", "guidance=cfg_parts", "guidance.scales={text:2}"], "condition=several"),
    ],
)
def test_mistakes_are_one_line(folder, command, monkeypatch, words, expected):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    done = command(sample, *QUICK, "n=2", *words, at=folder)
    assert done.code == 1 and expected in done.err and "Traceback" not in done.err and done.err.count("\n") == 1


def test_resumed_training_has_the_captions_of_an_undisturbed_one(folder, command):
    assert command(train, *TEXT, "training.images=32", "name=begun", at=folder).code == 0
    assert (
        command(
            train, "resume=outputs/train/begun/v001", "training.images=64", "training.extend=as_if_planned", at=folder
        ).code
        == 0
    )
    folders = (folder / "outputs/train" / name / "v001/checkpoints" for name in ("shapes", "begun"))
    whole, resumed = (load_file(place / "0000000064.safetensors") for place in folders)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole.keys() | resumed.keys())


def test_a_trained_text_model_is_continued_measured_and_exported(folder, command):
    start = [word for word in SMALL if not word.startswith("backbone")]
    assert command(train, *start, "init_from=outputs/train/shapes/v001", "name=tuned", at=folder).code == 0
    done = command(evaluate, MODEL, "metric=denoising", "n=4", at=folder)
    assert done.code == 0 and "mse_x_0" in done.out + done.err
    done = command(convert, "outputs/train/shapes/v001", "program", "to=torch_export", at=folder)
    facts = json.loads((folder / "program/model.json").read_text())
    assert done.code == 0 and facts["condition"] == {"ids": {"dtype": "int64", "shape": [64], "null": 0}}
    assert command(convert, "outputs/train/shapes/v001", "plain", "to=safetensors", at=folder).code == 0


def test_labels_choose_among_prompts(folder, command):
    prompts = "prompts=[a red circle,two blue squares]"
    done = command(sample, *QUICK, prompts, "labels=[two blue squares,0]", "n=2", at=folder)
    assert done.code == 0 and [row["prompt"] for row in rows(folder / done.folder)] == [
        "two blue squares",
        "a red circle",
    ]
    for labels, expected in {
        "labels=[green]": "labels: there is no prompt 'green'; indices 0 to 1, or texts: a red circle, two blue squares",
        "labels=[]": "give prompts, balanced",
    }.items():
        done = command(sample, *QUICK, prompts, labels, "n=2", at=folder)
        assert done.code == 1 and expected in done.err and "class" not in done.err and done.err.count("\n") == 1


def test_pictures_without_captions_are_compared_with_a_text_model(folder, command):
    """Its samples need no captions of the data; what is measured on their conditions does, and says so in one line."""
    rng = numpy.random.default_rng(0)
    for index in range(200):
        path = folder / f"pictures/{index % 2}/{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(256, size=(16, 16, 3), dtype=numpy.uint8)).save(path)
    plain = ["dataset=image_folder", "dataset.path=pictures", "dataset.num_classes=2", "dataset.validation=0.5"]
    few = ["metric.count=70", "metric.compared=10", "metric.subset_size=2", "metric.subsets=2", "metric.splits=1",
           "metric.classification=false", "metric.labels=null", "metric.sampler.steps=2", "metric.features.steps=1",
           "metric.features.cache=null"]  # fmt: skip
    done = command(evaluate, MODEL, *plain, "metric=quality", *few, "n=70", at=folder)
    assert done.code == 0 and "fd_local" in done.out + done.err, done.err
    done = command(evaluate, MODEL, *plain, "metric=denoising", "n=4", at=folder)
    assert done.code == 1 and "needs data with captions" in done.err and done.err.count("\n") == 1


def figures(folder, done):
    assert done.code == 0, done.err
    return json.loads((folder / done.folder / "metrics.json").read_text())


def test_a_text_model_is_measured_by_samples_of_its_own(folder, command):
    words = [MODEL, "metric=alignment", "metric.count=6", "metric.sampler.steps=2", "batch_size=4"]
    plain = figures(folder, command(evaluate, *words, at=folder))
    assert plain["samples"] == plain["figures"]["alignment"]["n"] == 6 and plain["figures"]["alignment_seen"]["n"] == 3
    guided = figures(folder, command(evaluate, *words, "guidance@metric.guidance=cfg", at=folder))
    assert guided["guidance"] == "ClassifierFree" and guided["evaluations"] > plain["evaluations"]


def test_other_captions_are_measured_by_a_dual_encoder(tmp_path, command):
    words = ["dataset=digits", *(word for word in TEXT if not word.startswith("dataset"))]
    assert command(train, *words, "backbone.attention=[8]", at=tmp_path).code == 0
    words = ["checkpoint=outputs/train/digits/v001", "metric=alignment", "metric.sampler.steps=2"]
    few = ["metric.encoder.steps=1", "metric.encoder.cache=null", "metric.count=5", "metric.candidates=4"]
    found = figures(tmp_path, command(evaluate, *words, *few, at=tmp_path))
    assert found["candidates"] == 4 and found["figures"]["recall_at_1_chance"]["value"] == 0.25
    assert found["figures"]["recall_at_1"]["n"] == 5 == found["figures"]["recall_at_1_real"]["n"]


def test_prompts_need_a_model_that_reads_them(at, command):
    done = command(sample, "checkpoint=outputs/train/digits/v001", "prompts=red", at=at)
    assert done.code == 1 and "labels=" in done.err and done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["dataset=photo_patches", "condition=text", "backbone=unet_32"], "needs data with captions"),
        (["dataset=shapes", "condition=text", "backbone=mlp"], "backbone=unet or dit"),
        ([*SMALL, "condition=text", "condition.length=8"], "allows 7: set condition.length=58"),
        ([*SMALL, "condition=several", "condition.drop.text=0.1"], "+condition.drop.text=<value>"),
        ([*SMALL, "condition=several", "+condition.drop.text=1.1"], "condition.drop.text must be in [0, 1], got 1.1"),
        ([*SMALL, "condition=several", "+condition.drop.txt=0.1"], "names txt, but the parts are text, class"),
        ([*TEXT, "backbone.num_classes=4"], "must be 0 with a conditioning"),
    ],
)
def test_a_condition_that_does_not_fit_is_refused(tmp_path, command, words, expected):
    done = command(train, *words, at=tmp_path)
    assert done.code == 1 and expected in done.err and done.err.count("\n") == 1


def test_training_on_several_conditions_and_each_kind_of_pictures(tmp_path, command):
    several = [*SMALL, "condition=several", "condition.parts.text.features=8", "condition.parts.text.heads=2"]
    assert command(train, *several, at=tmp_path).code == 0
    done = command(sample, *QUICK, "prompts=[{text:a red circle,class:1},{class:2}]", "guidance=cfg_parts",
                   "guidance.scales={text:5,class:2}", "n=2", at=tmp_path)  # fmt: skip
    assert done.code == 0 and [row["prompt"] for row in rows(tmp_path / done.folder)] == [
        "text: a red circle, class: 1",
        "class: 2",
    ]
    done = command(sample, *QUICK, "prompts=[{text:a red circle,class:1}]", "guidance=cads", "n=2", at=tmp_path)
    assert done.code == 0, done.err
    done = command(sample, *QUICK, "prompts=[{text:null,class:1}]", "guidance=cfg", "guidance.negative={text:green}", "n=2",
                   at=tmp_path)  # fmt: skip
    assert done.code == 0, done.err
    for condition in ("low_resolution", "masked"):
        done = command(train, *SMALL, f"condition={condition}", f"name={condition}", at=tmp_path)
        assert done.code == 0, done.err
    Image.new("RGB", (4, 4), "red").save(tmp_path / "small.png")
    done = command(
        sample,
        "checkpoint=outputs/train/low_resolution/v001",
        "prompts=[small.png]",
        "n=2",
        "sampler.steps=2",
        at=tmp_path,
    )
    assert done.code == 0 and images(tmp_path / done.folder).shape == (2, 16, 16, 3)
