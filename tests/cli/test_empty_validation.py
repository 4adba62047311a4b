"""Data of which nothing validates: training, its pictures, evaluation and the trade-off of a sweep say so and go on."""

import json

import numpy
import pytest
import torch
from PIL import Image

from diffguide.checkpoints import store as checkpoints
from diffguide.conditions.examples import ConditionedData
from diffguide.datasets import Dataset, Split, Stream
from diffguide.evaluate import main as evaluate
from diffguide.evaluation.classification.metric import write_accuracy
from diffguide.evaluation.metric import EvalContext
from diffguide.sample import main as sample
from diffguide.train import main
from diffguide.training.held_out import held_out_loss

TINY = ["backbone.channels=4", "backbone.multipliers=[1]", "backbone.attention=[]", "backbone.blocks=1", "sampler.steps=2",
        "training.batch_size=4", "training.images=8", "dataset.size=8", "dataset.channels=1"]  # fmt: skip


@pytest.fixture(scope="module")
def at(tmp_path_factory):
    """A run on three classes, of which one has a single picture; none validates."""
    from contextlib import chdir

    folder, rng = tmp_path_factory.mktemp("none"), numpy.random.default_rng(0)
    for k, count in enumerate((1, 12, 12)):
        (folder / "pictures" / str(k)).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, (8, 8), dtype=numpy.uint8)).save(folder / f"pictures/{k}/{i}.png")
    with chdir(folder):
        main(["dataset=image_folder", "dataset.path=pictures", "dataset.num_classes=3", "dataset.validation=0", *TINY])
    return folder


RUN = "outputs/train/image_folder/v001"


def test_training_notes_that_held_out_losses_are_on_training_examples(at):
    assert "the validation split is empty" in (at / RUN / "log.txt").read_text()
    lines = map(json.loads, (at / RUN / "metrics.jsonl").read_text().splitlines())
    losses = [line["validation_loss"] for line in lines if "validation_loss" in line]
    assert len(losses) == 1 and numpy.isfinite(losses[0])
    assert checkpoints.find(at / RUN / "best").name == "0000000008.safetensors"


@pytest.mark.parametrize("metric", ["denoising", "quality"])
def test_an_empty_split_is_an_error_that_names_the_others(at, command, metric):
    done = command(evaluate, f"checkpoint={RUN}", f"metric={metric}", at=at)
    assert done.code == 1 and len(done.err.splitlines()) == 1 and "use split=train" in done.err, done.err
    again = command(evaluate, f"checkpoint={RUN}", f"metric={metric}", "split=train", at=at)
    if metric == "denoising":
        assert again.code == 0, again.err
    else:  # what it measures needs images that the model has not seen, and says so without a circle
        assert again.code == 1 and "data with validation or test examples" in again.err, again.err


def test_a_sweep_is_compared_with_training_examples(at, command):
    done = command(sample, "-m", f"checkpoint={RUN}", "sampler.steps=2,3", "n=24", at=at)
    assert done.code == 0 and "no tradeoff.png" not in done.err, done.err
    assert "25 training examples" in (at / done.folder / "sweep.csv").read_text()


class Rows(Stream):
    def __init__(self, x: torch.Tensor, y: torch.Tensor):
        self.x, self.y = x, y

    def __getitem__(self, index: int):
        return self.x[index], int(self.y[index])


class Mean(torch.nn.Module):
    """The loss of an example is its mean, which identifies the example."""

    def forward(self, x, y, rng):
        from diffguide.objectives import Loss

        return Loss(x.flatten(1).mean(1), {}, None)


@pytest.mark.parametrize("kind", [Split, Rows])
@pytest.mark.parametrize("count, asked", [(30, 30), (4500, 1500)])
def test_the_held_out_loss_is_on_evenly_spread_training_examples(kind, count, asked):
    x, y = torch.arange(count).float().reshape(-1, 1), torch.zeros(count, dtype=torch.long)
    x = x.reshape(-1, 1, 1, 1)
    empty = kind(x[:0], y[:0])
    data = Dataset(kind(x, y), empty, empty, ["a"])
    found = held_out_loss(Mean(), ConditionedData(data).held_out, 0, torch.device("cpu"), 400).per_example
    assert found.tolist() == x[:: count // asked, 0, 0, 0].tolist()
    kept = Dataset(kind(x, y), kind(x[:5], y[:5]), empty, ["a"])
    assert held_out_loss(Mean(), ConditionedData(kept).held_out, 0, torch.device("cpu"), 400).per_example.tolist() == [
        0,
        1,
        2,
        3,
        4,
    ]
    with pytest.raises(ValueError, match=r"dataset.test=0.*split=train or split=validation"):
        EvalContext(None, kept, "test")


def test_the_accuracy_of_a_classifier_is_on_training_examples(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("diffguide.evaluation.classification.metric.accuracies",
                        lambda classifier, x, *rest: seen.append(x) or [0.5] * 9)  # fmt: skip
    monkeypatch.setattr("diffguide.evaluation.classification.metric.PLOT_LEVELS", range(1, 10))
    x, y = torch.randn(6, 1, 4, 4), torch.zeros(6, dtype=torch.long)
    data = Dataset(Split(x, y), Split(x[:0], y[:0]), Split(x[:0], y[:0]), ["a", "b"])
    classifier = type("Classifier", (), {"num_classes": 2})()
    write_accuracy(tmp_path / "a.png", classifier, data, 0, torch.device("cpu"))
    assert torch.equal(seen[0], x) and (tmp_path / "a.png").is_file()
