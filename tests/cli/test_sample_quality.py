"""metric=quality: samples whose figures are known beforehand, parts that outlive a signal, and what is refused."""

import json
import math
import signal
from functools import partial
from pathlib import Path

import pytest
import torch

from diffguide.datasets import GMM2D, Dataset, Digits, Split
from diffguide.evaluate import main as evaluate
from diffguide.evaluation.metric import EvalContext, MetricError
from diffguide.evaluation.parts import Parts
from diffguide.evaluation.quality import figures as comparison
from diffguide.evaluation.quality.features import Features, Pixels
from diffguide.evaluation.quality.frechet import Moments, frechet_distance
from diffguide.evaluation.quality.kid import squared_mmd
from diffguide.evaluation.quality.local import Local, load_images
from diffguide.evaluation.quality.metric import Quality
from diffguide.evaluation.quality.precision_recall import (
    density_coverage,
    distance_ratio,
    find_copies,
    precision_recall,
    two_nearest,
)
from diffguide.evaluation.results import MetricResult
from diffguide.figures import tables
from diffguide.files.shards import write_archive
from diffguide.guidance import Unguided
from diffguide.guidance.contrast import ClassifierFree
from diffguide.models.protocols import DenoiserWrapper
from diffguide.oracles import Empirical, GMM2DLaw
from diffguide.runtime.signals import Stopped
from diffguide.sample import main as sample
from diffguide.samplers import DDIM
from diffguide.samplers.grids import UniformLogSNR
from diffguide.schedules import Cosine


@pytest.fixture(scope="module")
def digits() -> Digits:
    return Digits(1, 8, 10)


@pytest.fixture(scope="module")
def law(digits) -> Empirical:
    """The exact denoiser of the training examples: a generator that copies them."""
    return Empirical(digits.train.x, digits.train.y, Cosine(log_snr_max=12.0, log_snr_min=-10.0), 0.0)


def quality(**changed) -> Quality:
    arguments = {
        "guidance": Unguided, "sampler": DDIM(grid=UniformLogSNR(), steps=4, eta=0.0), "features": Pixels(), "count": 100,
        "samples": None, "labels": "balanced", "reference": "train", "subsets": 10, "subset_size": 50, "splits": 2,
        "compared": 1000, "classification": False,
    }  # fmt: skip
    return Quality(**arguments | changed)


def measured(metric: Quality, subject: EvalContext) -> MetricResult:
    metric.check(subject)
    return metric.measure(subject)


def stored(folder: Path, images: torch.Tensor, y: torch.Tensor, header: dict) -> str:
    """A finished sampling run with these bytes [N, C, H, W]."""
    folder.mkdir(parents=True)
    (folder / "manifest.jsonl").write_text(json.dumps(header) + "\n")
    write_archive(folder / "samples.npz", [images.permute(0, 2, 3, 1).numpy()], y.tolist())
    return str(folder)


def test_a_generator_that_copies_its_training_data_is_detected(digits, law):
    """All samples are copies of training examples of their class, at a distance near 0."""
    subject = EvalContext(law, digits, n=200, seed=3, batch_size=64)
    metric = quality(sampler=DDIM(grid=UniformLogSNR(), steps=30, eta=0.0))
    found = measured(metric, subject)
    figures = {name: figure.value for name, figure in found.figures.items()}
    assert figures["copies"] == 1.0 and figures["distance_ratio"] < 0.1 and found.details["copies_of_real"] == 0.0
    assert figures["agreed_labels_pixels"] == 1.0 and 0.9 < found.details["agreed_labels_pixels_of_real"] < 1
    assert figures["fd_pixels"] < 2 * figures["fd_pixels_floor"]
    half, n = found.figures["fd_pixels_halves"].n, found.figures["fd_pixels"].n
    assert (half, n) == (500, 100)
    assert figures["fd_pixels_floor"] == pytest.approx(figures["fd_pixels_halves"] * (1 / 100 + 1 / 1000) * 250)
    assert found.facts["samples"] == 100 and found.facts["reference"] == "1000 train examples"
    assert found.facts["held_out"] == "200 validation examples" and found.facts["features"]["name"] == "pixels"
    assert found.facts["guidance"] == "Unguided" and subject.evaluations == 100 * 30


def test_figures_are_those_of_the_library(digits, law, tmp_path):
    """Of given samples: every figure again from the bytes, in one go."""
    rng = torch.Generator().manual_seed(0)
    u, y = load_images(digits, "train", torch.randperm(1000, generator=rng)[:100])
    u = (u.float() + 20 * torch.randn(u.shape, generator=rng)).clamp(0, 255).to(torch.uint8)
    folder = stored(tmp_path / "run", u, y, {"guidance": {"scale": 3}})
    subject = EvalContext(law, digits, split="test", batch_size=33)
    found = measured(quality(samples=folder), subject)
    x, real, held = (
        part.flatten(1).double() / 255 for part in (u, *(load_images(digits, s)[0] for s in ("train", "test")))
    )
    sets = [Moments(64).add(part) for part in (x, real)]
    values = {name: figure.value for name, figure in found.figures.items()}
    assert values["fd_pixels"] == pytest.approx(frechet_distance(*sets), rel=1e-6)
    assert found.details["fd_pixels_of_held_out"] == pytest.approx(
        frechet_distance(Moments(64).add(held), sets[1]), rel=1e-6
    )
    assert [values[f"{name}_pixels"] for name in ("precision", "recall")] == pytest.approx(precision_recall(held, x, 3))
    assert [values[f"{name}_pixels"] for name in ("density", "coverage")] == pytest.approx(density_coverage(held, x, 5))
    assert values["kid_pixels"] == pytest.approx(
        squared_mmd(x, real), abs=5 * found.figures["kid_pixels"].standard_error
    )
    assert "10 subsets of 50" in found.facts["kid"] and "is_pixels" not in values
    share = values["precision_pixels"]
    assert found.figures["precision_pixels"].standard_error == pytest.approx(math.sqrt(share * (1 - share) / 100))
    assert found.figures["coverage_pixels"].n == 447 and found.figures["density_pixels"].standard_error is None
    assert found.facts["guidance"] == {"scale": 3} and found.facts["sampled"] == folder
    two = two_nearest(u.flatten(1), load_images(digits, "train")[0].flatten(1).split(300))
    assert values["copies"] == float(find_copies(two).double().mean())
    pixels = (part.flatten(1) for part in (u, load_images(digits, "train")[0], load_images(digits, "test")[0]))
    assert 0 < values["distance_ratio"] < 1 and values["distance_ratio"] == pytest.approx(distance_ratio(*pixels))


def test_repeats_and_noise_stand_beside_the_figures(digits, law, tmp_path):
    """In facts, notes, tables; of samples that are four copies each, and of pure noise."""
    u, y = load_images(digits, "train", torch.arange(25))
    folder = stored(tmp_path / "four", u.repeat(4, 1, 1, 1), y.repeat(4), {})
    found = measured(quality(samples=folder), EvalContext(law, digits, split="test", batch_size=33))
    assert found.facts["repeated"] == {"samples": 75, "held_out": 0} and found.figures["recall_pixels"].value == 0
    assert [note.split(" samples")[0] for note in found.notes] == ["75 of 100"]
    noise = 255 * torch.randint(2, (100, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    folder = stored(tmp_path / "noise", noise, torch.arange(100) % 10, {})
    found = measured(quality(samples=folder), EvalContext(law, digits, split="test"))
    recall = found.figures["recall_pixels"]
    assert (
        recall.value == 1 and not recall.meaningful and found.figures["precision_pixels"] == (0, 0, 100, "share", True)
    )
    assert len(found.notes) == 1 and found.notes[0].startswith("precision is 0: ")
    record = {
        "metric": "quality", "model": "digits", "split": "test", "n": 447, "seconds": 1.0, "curve": [], "plots": [],
        "figures": {name: figure._asdict() for name, figure in found.figures.items()},
    }  # fmt: skip
    lines = {line.split()[0]: line for line in tables.write_run(tmp_path, record).splitlines()}
    assert "(not meaningful)" in lines["recall_pixels"] and "meaningful" not in lines["precision_pixels"]
    assert "| 1 (not meaningful) |" in (tmp_path / "table.md").read_text()
    head, row = ((tmp_path / "table.csv").read_text().splitlines()[k].split(",") for k in range(2))
    assert dict(zip(head, row))["recall_pixels_meaningful"] == "False" and "coverage_pixels_meaningful" not in head
    assert json.loads((tmp_path / "metrics.json").read_text())["figures"]["recall_pixels"]["meaningful"] is False


def test_the_two_nearest_neighbours_do_not_depend_on_the_batch_size():
    """And what a copy is: three times as near to the first as to the second, or equal to one."""
    rng = torch.Generator().manual_seed(0)
    x, train = torch.randn(9, 5, generator=rng).double(), torch.randn(23, 5, generator=rng).double()
    expected = torch.cdist(x, train).sort(1).values[:, :2]
    assert torch.allclose(two_nearest(x, train.split([1, 20, 2])), expected, rtol=1e-9)
    assert find_copies(torch.tensor([[1.0, 2.9], [1.0, 3.1], [0.0, 0.0], [0.1, 0.2]])).tolist() == [
        False,
        True,
        True,
        False,
    ]


class Named(Features):
    """Pixels that go by another name, with logits: twice the first ten."""

    classifies = True

    def __init__(self, name: str):
        self.name = name

    def width(self, shape):
        return 64

    def __call__(self, images):
        features = Pixels()(images).features
        return Pixels()(images)._replace(logits=2 * features[:, 20:30])


@pytest.mark.parametrize("name, fd, kid", [("inception", "fid", "kid"), ("dinov2", "fd_dinov2", "kid_dinov2")])
def test_figures_are_named_by_their_features(digits, law, name, fd, kid):
    """fid is inception's alone; where there are logits there is an inception score."""
    found = measured(quality(features=Named(name), compared=20), EvalContext(law, digits, n=100))
    end = "" if name == "inception" else f"_{name}"
    expected = {fd, f"{fd}_halves", f"{fd}_floor", kid, f"is{end}", "copies", "distance_ratio"}
    expected |= {f"{part}{end}" for part in ("precision", "recall", "density", "coverage", "agreed_labels")}
    assert set(found.figures) == expected
    assert found.facts["is"] == "2 splits" and found.facts["compared"] == "20 samples, 20 held-out examples"
    assert 1 < found.figures[f"is{end}"].value < 10 and found.figures["copies"].n == 20


def test_the_classification_accuracy_score(digits, law, tmp_path):
    """Samples with the classes of real examples teach a classifier those; samples with false classes teach it others."""
    u, y = load_images(digits, "train", torch.arange(600))
    subject, metric = EvalContext(law, digits, n=100), partial(quality, count=600, features=Local(40, 0, str(tmp_path)))
    right = measured(metric(samples=stored(tmp_path / "a", u, y, {}), classification=True), subject)
    wrong = measured(metric(samples=stored(tmp_path / "b", u, (y + 1) % 10, {}), classification=True), subject)
    assert right.figures["cas"].value > 0.8 and wrong.figures["cas"].value < 0.1
    assert right.figures["agreed_labels_local"].value > 0.95 > 0.1 > wrong.figures["agreed_labels_local"].value
    assert right.details["cas_of_real"] > 0.8 and right.figures["cas"].n == 100
    assert right.facts["features"]["steps"] == 40 and 1 < right.figures["is_local"].value < 10


def test_a_model_without_classes_has_no_figures_of_classes(digits, law):
    """metric.labels=null: samples of no class."""
    found = measured(quality(labels=None, classification=True), EvalContext(law, digits, n=50))
    assert "cas" not in found.figures and "agreed_labels_pixels" not in found.figures and found.facts["labels"] is None


def test_labels_may_have_the_frequencies_of_the_data(digits, law):
    """Drawn from the reference split, the same ones for the same seed."""
    metric, subject = quality(labels="data", count=3000), EvalContext(law, digits, seed=1)
    drawn = torch.tensor(metric.sample_labels(subject, law))
    counts, expected = drawn.bincount(minlength=10), 3 * digits.train.y.bincount()
    assert float(((counts - expected) ** 2 / expected).sum()) < 27.9  # chi-squared of 9 at 0.001
    assert (
        metric.sample_labels(subject, law)
        == drawn.tolist()
        != metric.sample_labels(EvalContext(law, digits, seed=2), law)
    )


def test_a_stopped_measurement_is_resumed(digits, law, tmp_path):
    """After a stop within a batch, finished samples are kept, and every figure is the same."""
    subject, whole = (EvalContext(law, digits, n=60, batch_size=40) for _ in range(2))
    calls = []

    def stop(done, total, unit):
        calls.append((done, unit))
        if (50, "samples") in calls:  # within the second batch
            raise Stopped(signal.SIGTERM, "here")

    subject.begin(Parts(tmp_path / "parts"), stop)
    with pytest.raises(Stopped):
        quality().measure(subject)
    kept = {path.name for path in (tmp_path / "parts").iterdir()}
    assert "samples_0000000000.npz" in kept and "samples_0000000040.npz" not in kept
    again = EvalContext(law, digits, n=60, batch_size=40, parts=Parts(tmp_path / "parts"))
    found, expected = quality().measure(again), quality().measure(whole)
    assert found.figures == expected.figures and found.details == expected.details
    assert again.tally.evaluations == 60 * 4 and again.evaluations == whole.evaluations == 100 * 4


def test_samples_that_are_not_finite_are_an_error(digits, law):
    class Broken(DenoiserWrapper):
        def __call__(self, x_t, t, y=None):
            found = self.denoiser(x_t, t, y)
            return found._replace(x_0=found.x_0 * math.nan)

    with pytest.raises(MetricError, match="100 of the 100 samples"):
        measured(quality(guidance=Broken), EvalContext(law, digits, n=50))


def test_held_out_examples_in_the_training_data_print_a_note(digits, law):
    """A tenth of them: then coverage and copies would mean nothing."""
    shared = Split(torch.cat([digits.validation.x[:80], digits.train.x[:20]]), torch.zeros(100, dtype=torch.long))
    data = Dataset(digits.train, shared, digits.test, digits.class_names)
    with pytest.raises(MetricError, match="20 of the 100 validation examples"):
        measured(quality(), EvalContext(law, data))
    assert comparison.check_overlap(EvalContext(law, digits, n=100)).shape == (100, 2)


def vectors() -> EvalContext:
    return EvalContext(GMM2DLaw(Cosine(log_snr_max=12.0, log_snr_min=-10.0)), GMM2D(2, None, 4, 500, 50, 50, 0))


REFUSED = {
    "vectors": ({}, vectors, "metric=quality needs images"),
    "train": ({}, {"split": "train"}, "split=validation"),
    "few samples": ({"count": 64}, {}, "metric.count: 64 samples"),
    "few examples": ({"count": 500, "features": Named("wide")}, {}, "metric.reference: 350"),
    "few held out": ({}, {"n": 9}, "at least 10 examples"),
    "no run": ({"samples": "nowhere"}, {}, "metric.samples=nowhere"),
}  # fmt: skip


@pytest.mark.parametrize("changed, subject, message", REFUSED.values(), ids=REFUSED)
def test_quality_that_cannot_be_measured_is_an_error(digits, law, changed, subject, message, monkeypatch):
    if isinstance(changed.get("features"), Named):
        monkeypatch.setattr(Named, "width", lambda self, shape: 400)
        changed = changed | {"reference": "validation"}
    with pytest.raises(ValueError, match=message):
        quality(**changed).check(subject() if callable(subject) else EvalContext(law, digits, **subject))


def test_a_model_without_a_null_condition_needs_labels(digits, law, monkeypatch):
    monkeypatch.setattr(Empirical, "has_null", False)
    with pytest.raises(ValueError, match="metric.labels=null"):
        quality(labels=None).check(EvalContext(law, digits))
    with pytest.raises(ValueError, match="cfg"):
        quality(guidance=partial(ClassifierFree, scale=2.0, interval=(0.0, math.inf))).check(EvalContext(law, digits))


@pytest.mark.parametrize("changed, message", [
    ({"count": 9}, "count .*got 9"), ({"subsets": 0}, "subsets .*got 0"),
    ({"subset_size": 1}, "subset_size .*got 1"), ({"splits": 0}, "splits .*got 0"),
    ({"compared": 5}, "compared .*got 5"), ({"labels": "all"}, "labels .*balanced"),
    ({"reference": "tset"}, "reference must be train, validation or test, got 'tset'"),
])  # fmt: skip
def test_values_out_of_range(changed, message):
    with pytest.raises(ValueError, match=message):
        quality(**changed)


def test_runs_of_another_model_are_an_error(digits, law, tmp_path):
    """Other images, too few of them, or another checkpoint."""
    u, y = load_images(digits, "train", torch.arange(70))
    subject = EvalContext(law, digits)
    with pytest.raises(ValueError, match="70 samples.*metric.count=100"):
        quality(samples=stored(tmp_path / "a", u, y, {})).check(subject)
    wide = torch.zeros(100, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match="8, 3\\].*8, 1\\]"):
        quality(samples=stored(tmp_path / "b", wide, torch.zeros(100).long(), {})).check(subject)
    (tmp_path / "model").write_bytes(b"")
    known = EvalContext(law, digits, checkpoint=tmp_path / "model")
    folder = stored(tmp_path / "c", u.repeat(2, 1, 1, 1), y.repeat(2), {"checkpoint_sha256": "f" * 64})
    with pytest.raises(ValueError, match="SHA-256 f{12}.*e3b0c44298fc"):
        quality(samples=folder).check(known)


FEW = ["metric=quality", "metric/features=pixels", "metric.count=80", "metric.classification=false",
       "metric.sampler.steps=2", "engine.accelerator=cpu"]  # fmt: skip


def test_the_command_samples_as_diffguide_sample_does(short_run, tmp_path, command):
    """With guidance, new samples and those of a sampling run with the same seed have the same figures."""
    same = [
        f"checkpoint={short_run}",
        f"output_root={tmp_path}",
        "seed=5",
        "engine.accelerator=cpu",
    ]
    done = command(sample, *same, "n=80", "guidance=cfg", "guidance.scale=3", "sampler.steps=2", at=tmp_path)
    assert done.code == 0, done.err
    guided = ["guidance@metric.guidance=cfg", "metric.guidance.scale=3"]
    records = []
    for extra in (guided, [f"metric.samples={done.folder}"]):
        run = command(evaluate, *same, *FEW, *extra, at=tmp_path)
        assert run.code == 0, run.err
        records.append(json.loads((tmp_path / run.folder / "metrics.json").read_text()))
    assert records[0]["figures"] == records[1]["figures"] and records[0]["details"] == records[1]["details"]
    assert records[0]["guidance"] == "ClassifierFree" and records[1]["guidance"]["scale"] == 3
    assert records[0]["evaluations"] == 80 * 2 * 2 and records[1]["evaluations"] == 0
    other = command(evaluate, *same, *FEW, "guidance@metric.guidance=cfg", "metric.guidance.scale=9", at=tmp_path)
    assert json.loads((tmp_path / other.folder / "metrics.json").read_text())["figures"] != records[0]["figures"]


def test_the_default_features_are_local_ones(short_run, tmp_path, command):
    """By name, from a cache that the second run reads."""
    cache = tmp_path / "cache"
    arguments = [f"checkpoint={short_run}", f"output_root={tmp_path}", *FEW, "metric/features=local",
                 "metric.features.steps=5", f"metric.features.cache={cache}"]  # fmt: skip
    first = command(evaluate, *arguments, at=tmp_path)
    assert first.code == 0 and "fd_local " in first.err, first.err
    stages = [line for line in first.err.splitlines() if line.startswith("quality: ")]
    assert [stage.removeprefix("quality: ") for stage in stages][:4] == [
        "5 steps of the classifier", "1000 reference examples", "350 held-out examples", "80 samples",
    ]  # fmt: skip
    assert {"quality: KID", "quality: Frechet distance", "quality: near copies"} <= set(stages)
    (file,) = cache.iterdir()
    written = file.stat().st_mtime_ns
    second = command(evaluate, *arguments, at=tmp_path)
    assert second.code == 0 and list(cache.iterdir()) == [file] and file.stat().st_mtime_ns == written
    one, two = (json.loads((tmp_path / run.folder / "metrics.json").read_text()) for run in (first, second))
    assert one["figures"] == two["figures"] and one["features"]["hash"] == two["features"]["hash"]


@pytest.mark.parametrize("arguments, message", {
    "no weights": (["metric/features=inception", "metric.features.weights=nowhere.pth"], "there is no file nowhere.pth"),
    "a folder": (["metric.samples=nowhere"], "metric.samples=nowhere"),
    "train": (["split=train"], "use split=validation"),
    "a guide": (["guidance@metric.guidance=classifier", "metric.guidance.classifier=nowhere"], "no checkpoint at nowhere"),
    "too few": (["metric.count=60"], "metric.count: 60 samples"),
}.values())  # fmt: skip
def test_mistakes_are_one_line(short_run, tmp_path, command, arguments, message):
    if "metric/features=inception" in arguments:
        pytest.importorskip("torch_fidelity")
    done = command(
        evaluate, f"checkpoint={short_run}", f"output_root={tmp_path}", *FEW[:1], *FEW[2:], *arguments,
        *([] if "metric/features=inception" in arguments else ["metric/features=pixels"]), at=tmp_path,
    )  # fmt: skip
    assert done.code == 1 and message in done.err and "Traceback" not in done.err, done.err
    assert not list(tmp_path.glob("evaluate/*/v*/metrics.json"))
