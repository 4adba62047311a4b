"""Models that a configuration names by their run: guidance.classifier=outputs/train/..., from the command line on."""

import json
import re
import shutil
from contextlib import chdir
from pathlib import Path

import numpy
import pytest
import torch
from omegaconf import OmegaConf

import diffguide
from diffguide.checkpoints.references import with_guides
from diffguide.files.shards import START_FILE
from diffguide.sample import main as sample
from diffguide.train import main as train

SMALL = ["training.images=64", "training.batch_size=32", "training.checkpoint_images=32", "sampler.steps=2"]
CLASSIFIER, UNCONDITIONAL = "outputs/train/digits_classifier/v001", "outputs/train/unconditional/v001"
STEERED = ["guidance=classifier", f"guidance.classifier={CLASSIFIER}", "guidance.scale=3", "sampler.steps=3", "n=6"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A classifier, a generator without classes and one of the plane, each of a second."""
    folder = tmp_path_factory.mktemp("runs")
    network = ["backbone.multipliers=[1]", "backbone.attention=[]", "backbone.blocks=1", "backbone.channels=8"]
    heads = ["backbone.head_channels=8"]
    with chdir(folder):
        train(["experiment=digits_classifier", *network, *heads, *SMALL, "training.learning_rate=0.02"])
        train(["name=unconditional", "backbone.num_classes=0", "guidance=none", *network, *heads, *SMALL])
        train(["experiment=gmm2d", "guidance=none", *SMALL])
    return folder


@pytest.fixture
def at(runs, tmp_path) -> Path:
    """A temporary folder with copies of them."""
    shutil.copytree(runs / "outputs", tmp_path / "outputs")
    return tmp_path


def samples(folder: Path) -> tuple[numpy.ndarray, list[int]]:
    with numpy.load(folder / "samples.npz") as arrays:
        return arrays["arr_0"], arrays["arr_1"].tolist()


def test_a_generator_without_classes_is_steered_by_the_classifiers(at, command):
    """Labels and their names are those of the classifier; the manifest has its file."""
    done = command(sample, f"checkpoint={UNCONDITIONAL}", *STEERED, "labels=[3,7]", "name=steered", at=at)
    assert done.code == 0, done.err
    header, first, *_ = map(json.loads, (at / done.folder / "manifest.jsonl").read_text().splitlines())
    assert (first["label"], first["class"]) == (3, "3")
    guide = header["guides"]["guidance.classifier"]
    assert guide["checkpoint"] == f"{CLASSIFIER}/checkpoints/0000000064.safetensors"
    assert len(guide["checkpoint_sha256"]) == 64 and header["guidance"]["classifier"] == CLASSIFIER
    assert OmegaConf.load(at / done.folder / "config.yaml").guidance.classifier == CLASSIFIER
    steered, labels = samples(at / done.folder)
    assert labels == [3, 7] * 3
    done = command(sample, f"checkpoint={UNCONDITIONAL}", *STEERED, "labels=[3,7]", "guidance.scale=0", at=at)
    assert not numpy.array_equal(samples(at / done.folder)[0], steered)


def test_the_command_writes_what_the_library_returns(at, command):
    """The same samples from `diffguide.load` and `ClassifierGuidance`."""
    from diffguide.figures.image_grids import to_uint8
    from diffguide.guidance import ClassifierGuidance
    from diffguide.samplers import Heun, generate
    from diffguide.samplers.grids import Karras

    done = command(sample, f"checkpoint={UNCONDITIONAL}", *STEERED, at=at)
    model, classifier = diffguide.load(at / UNCONDITIONAL), diffguide.load(at / CLASSIFIER)
    guided = ClassifierGuidance(model, classifier, 3.0, (0.0, float("inf")))
    x = torch.cat(list(generate(guided, Heun(3, Karras(7.0, None, None)), range(6), list(range(6)), (1, 8, 8), 64)))
    assert numpy.array_equal(to_uint8(x), samples(at / done.folder)[0])
    header = json.loads((at / done.folder / "manifest.jsonl").read_text().splitlines()[0])
    # one a step of each: the steps are wide
    assert header["network_evaluations"] == header["potential_evaluations"] == 3


def test_classifier_cfg_apg_and_an_interval_in_one_run(at, command):
    """The samples equal those of the nested calls; training for it drops labels, for its inner part."""
    from diffguide.figures.image_grids import to_uint8
    from diffguide.guidance import ClassifierFree, ClassifierGuidance
    from diffguide.guidance.projections import APG
    from diffguide.samplers import Heun, generate
    from diffguide.samplers.grids import Karras

    both = ["guidance=classifier_cfg", f"guidance.parts.classifier.classifier={CLASSIFIER}", "sampler.steps=3"]
    small = [*SMALL, "backbone.multipliers=[1]", "backbone.attention=[]", "backbone.blocks=1", "backbone.channels=8"]
    trained = command(train, "backbone.head_channels=8", *small, *both, "p_uncond=0.3", at=at)
    assert trained.code == 0, trained.err
    assert OmegaConf.load(at / trained.folder / "config.yaml").objective.p_uncond == 0.3
    done = command(sample, f"checkpoint={trained.folder}", *both, "n=6", "guidance/rule@guidance.parts.cfg.rule=apg",
                   "guidance.parts.cfg.scale=3", "guidance.parts.cfg.interval=[0.1,5]", "guidance.parts.classifier.scale=2",
                   at=at)  # fmt: skip
    assert done.code == 0, done.err
    inner = ClassifierFree(diffguide.load(at / trained.folder), 3.0, (0.1, 5.0), APG(0.0, 15.0, -0.5))
    guided = ClassifierGuidance(inner, diffguide.load(at / CLASSIFIER), 2.0, (0.0, float("inf")))
    x = torch.cat(list(generate(guided, Heun(3, Karras(7.0, None, None)), range(6), list(range(6)), (1, 8, 8), 64)))
    assert numpy.array_equal(to_uint8(x), samples(at / done.folder)[0])
    header = json.loads((at / done.folder / "manifest.jsonl").read_text().splitlines()[0])
    assert list(header["guides"]) == ["guidance.parts.classifier.classifier"]


def test_resuming_needs_the_same_classifier(at, command):
    """A run without its end is resumed; with another classifier file it is an error."""
    done = command(sample, f"checkpoint={UNCONDITIONAL}", *STEERED, "batch_size=2", at=at)
    folder = at / done.folder
    header = json.loads((folder / "manifest.jsonl").read_text().splitlines()[0])
    before, _ = samples(folder)
    for digest in (header["guides"]["guidance.classifier"]["checkpoint_sha256"], "0" * 64):
        header["guides"]["guidance.classifier"]["checkpoint_sha256"] = digest
        (folder / "samples.npz").unlink()
        (folder / "shards").mkdir()
        (folder / "shards" / START_FILE).write_text(json.dumps(header))
        again = command(sample, f"resume={done.folder}", at=at)
        assert (again.code == 1 and "guidance.classifier" in again.err) if digest == "0" * 64 else again.code == 0
        if again.code == 0:
            assert numpy.array_equal(samples(folder)[0], before)


def test_training_samples_its_grids_with_the_classifier(at, command):
    done = command(train, "name=drawn", "backbone.num_classes=0", *STEERED[:3], "backbone.channels=4", "backbone.blocks=1",
                   "backbone.multipliers=[1]", "backbone.attention=[]", *SMALL, at=at)  # fmt: skip
    assert done.code == 0, done.err
    assert (at / done.folder / "samples" / "0000000064.png").exists()


REFUSED = {
    "no classifier given": (["guidance.classifier=null"], "guidance.classifier must be the folder"),
    "none there": (["guidance.classifier=outputs/train/none"], "guidance.classifier: no checkpoint at "),
    "a generator": ([f"guidance.classifier={UNCONDITIONAL}"], "noisy data .* got a Preconditioned"),
    "another shape": (["checkpoint=outputs/train/gmm2d/v001"],
                      r"shape \[1, 8, 8\], but this model has \[2\]"),
    "a classifier sampled": ([f"checkpoint={CLASSIFIER}"], "holds a NoisyClassifier"),
    "scale": (["guidance.scale=high"], "guidance.scale must be a number, got 'high'"),
    "a node": (["guidance.classifier={a:1}"], "guidance.classifier must be the folder"),
}  # fmt: skip


@pytest.mark.parametrize("arguments, sentence", REFUSED.values(), ids=REFUSED)
def test_mistakes_in_guides_are_one_line(runs, command, arguments, sentence):
    done = command(sample, f"checkpoint={UNCONDITIONAL}", *STEERED, *arguments, at=runs)
    assert done.code == 1 and len(done.err.strip().splitlines()) == 1
    assert re.search(sentence, done.err), done.err


def test_a_classifier_must_be_given(runs, command):
    done = command(sample, f"checkpoint={UNCONDITIONAL}", "guidance=classifier", at=runs)
    assert done.code == 1 and "guidance.classifier must be given (the folder" in done.err


@pytest.mark.parametrize("arguments, sentence", [
    (["guidance=classifier", "guidance.classifier=none"], "diffguide-train: guidance.classifier: no checkpoint at none"),
    (["objective=classifier", "backbone=unet"], "shape of the data; use backbone=unet_encoder"),
    (["experiment=digits_classifier", "backbone.out_features=4"], "out_features is 4, but the data have 10"),
    (["experiment=energy_digits", "backbone.out_features=4"], "out_features is 4, but the data have 10"),
    (["backbone.num_classes=4"], "num_classes is 4, but the data have 10"),
    (["backbone=unet_encoder", "guidance=none"], "output of the network"),
])  # fmt: skip
def test_networks_that_do_not_fit_the_objective(tmp_path, command, arguments, sentence):
    done = command(train, *arguments, *SMALL, at=tmp_path)
    assert done.code == 1 and sentence in done.err, done.err
    assert not (tmp_path / "outputs").exists()


def test_only_arguments_for_models_accept_run_folders(runs):
    """The other values stay, lists of nodes are searched, and the node that is put there loads the file."""
    target = "diffguide.guidance.classifier.ClassifierGuidance"
    node = {"parts": [{"_target_": target, "classifier": str(runs / CLASSIFIER), "scale": 2.0}], "name": "text"}
    found, guides = with_guides(node, "guidance", "cpu", [])
    assert [guide.key for guide in guides] == ["guidance.parts.0.classifier"] and found["name"] == "text"
    loading = found["parts"][0]["classifier"]
    assert loading["_target_"] == "diffguide.load" and loading["path"] == str(guides[0].file)
    assert list(guides[0].shape) == [1, 8, 8] and guides[0].class_names == list("0123456789")
    assert node["parts"][0]["classifier"] == str(runs / CLASSIFIER)
