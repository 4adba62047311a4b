"""Old keys and names, on the command line and in saved runs."""

import inspect
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from diffguide.cli.spelling import respell
from diffguide.config.build import config_dir
from diffguide.datasets import CIFAR10, MNIST, ImageFolder
from diffguide.nodes import old_names
from diffguide.nodes.old_names import ADDED, RENAMED, complete_new_config, current_key, update_saved_config

FOLDER, MNIST_ = "diffguide.datasets.image_folder.ImageFolder", "diffguide.datasets.downloads.MNIST"


def test_added_keys_have_the_defaults_of_class_and_file_in_new_runs():
    yaml = OmegaConf.to_container(OmegaConf.load(Path(config_dir()) / "dataset/image_folder.yaml"))
    signature = inspect.signature(ImageFolder).parameters
    assert set(ADDED) == {FOLDER}
    for key, (_, now) in ADDED[FOLDER].items():
        assert yaml[key] == signature[key].default == now


def test_root_of_downloads_is_renamed_to_path():
    assert {MNIST_, "diffguide.datasets.downloads.CIFAR10"} < set(RENAMED)
    for kind in (MNIST, CIFAR10):
        assert "path" in inspect.signature(kind).parameters and "root" not in inspect.signature(kind).parameters


def test_saved_nodes_get_the_former_values_and_new_nodes_the_present_ones():
    saved = {
        "dataset": {"_target_": FOLDER, "path": "x", "split_by": "contents"},
        "seed": 3,
        "guidance": {"picture": [{"dataset": {"_target_": MNIST_, "root": "data"}}]},
    }
    before, now = update_saved_config(saved), complete_new_config(saved)
    assert before["dataset"]["class_order"] == "names" and now["dataset"]["class_order"] == "numbers"
    assert before["dataset"]["split_by"] == now["dataset"]["split_by"] == "contents"  # keys of the node stay
    assert before["guidance"]["picture"][0]["dataset"] == {"_target_": MNIST_, "path": "data"} and before["seed"] == 3
    assert update_saved_config(before) == before and complete_new_config(now) == now


@pytest.mark.parametrize(
    "typed, spelled",
    [
        ("dataset.root=x", "dataset.path=x"),
        ("~dataset.root", "~dataset.path"),
        ("++dataset.root=a=b", "++dataset.path=a=b"),
        ("guidance.picture.dataset.root=x", "guidance.picture.dataset.path=x"),
        ("output_root=x", "output_root=x"),
        ("dataset.values=17", "dataset.quantization_levels=17"),
        ("objective.values=0", "objective.quantization_levels=0"),
        ("objective.decoder.values=17", "objective.decoder.quantization_levels=17"),
        ("metric.values=17", "metric.quantization_levels=17"),
        ("metric.ode.values=17", "metric.ode.quantization_levels=17"),
        ("--config-dir=root", "--config-dir=root"),
        ("guidance.root=x", "guidance.root=x"),
        ("-m", "-m"),
    ],
)
def test_old_keys_are_respelled(typed, spelled):
    assert respell([typed]) == [spelled]


def test_a_renamed_key_prints_a_notice(capsys):
    respell(["metric.elbo.values=17", "metric.elbo.steps=3"])
    assert capsys.readouterr().err.splitlines() == [
        "metric.elbo.values is now metric.elbo.quantization_levels; the next version removes the old name"
    ]


@pytest.mark.parametrize("name", ["ELBO", "ExactDensity", "FlowODE"])
def test_a_saved_likelihood_keeps_its_number_of_values(name):
    node = {"_target_": f"diffguide.evaluation.likelihood.metrics.{name}", "values": 17}
    now = update_saved_config({"metric": node})["metric"]
    assert now == {"_target_": node["_target_"], "quantization_levels": 17}


def test_keys_of_a_saved_run_are_forced():
    assert respell(["resume=r", "dataset.path=x", "training.images=3"]) == [
        "resume=r",
        "++dataset.path=x",
        "training.images=3",
    ]
    assert respell(["checkpoint=r", "dataset.path=x", "metric.n=1"]) == [
        "checkpoint=r",
        "++dataset.path=x",
        "metric.n=1",
    ]
    for line in (
        ["dataset.path=x"],
        ["resume=r", "dataset=digits", "dataset.path=x"],
        ["resume=null", "dataset.path=x"],
        ["resume=r", "+dataset.path=x"],
        ["resume=r", "sampler/grid=karras", "~dataset.path"],
    ):
        assert respell(line) == line


def test_a_renamed_key_needs_its_parent():
    assert current_key("dataset.root") == "dataset.path" and current_key("root") == "root"


def test_classes_are_renamed_and_modules_moved(monkeypatch):
    monkeypatch.setitem(old_names.CLASSES, "diffguide.training.Loop", "diffguide.training.loop.Training")
    saved = {"a": {"_target_": "diffguide.training.Loop"}, "b": [{"_target_": "diffguide.training.Training"}]}
    now = {"_target_": "diffguide.training.loop.Training"}
    assert update_saved_config(saved | {"trust": ["diffguide.training.Loop"]}) == {
        "a": now,
        "b": [now],
        "trust": ["diffguide.training.Loop"],
    }
