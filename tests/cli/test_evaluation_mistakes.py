"""Mistakes of a first user of diffguide-eval: folders of other programs, invalid numbers."""

import json
from pathlib import Path

import numpy
import pytest
import torch

from diffguide.datasets import Dataset, Digits, Split
from diffguide.evaluate import main
from diffguide.evaluation.classification.weighting import Bell, Piecewise
from diffguide.evaluation.classification.zero_shot_metric import ZeroShotClassifier
from diffguide.evaluation.likelihood.comparison import Likelihoods
from diffguide.evaluation.likelihood.dequantization import DecoderDequantization
from diffguide.evaluation.likelihood.flow_ode import FixedGrid, Hutchinson
from diffguide.evaluation.likelihood.metrics import ELBO, FlowODE
from diffguide.evaluation.metric import EvalContext
from diffguide.evaluation.quality.features import Pixels
from diffguide.evaluation.quality.image_sources import StoredSamples
from diffguide.evaluation.quality.local import load_images
from diffguide.evaluation.quality.metric import Quality
from diffguide.figures import tables
from diffguide.files.run_folders import WriteError, create_version_dir
from diffguide.guidance import Unguided
from diffguide.oracles import Empirical
from diffguide.samplers import DDIM
from diffguide.samplers.grids import UniformLogSNR
from diffguide.schedules import Cosine
from diffguide.train import main as train


@pytest.fixture(scope="module")
def subject() -> EvalContext:
    """The exact denoiser of a few digits."""
    digits = Digits(1, 8, 10)
    schedule = Cosine(log_snr_max=12.0, log_snr_min=-10.0)
    return EvalContext(Empirical(digits.train.x[:20], digits.train.y[:20], schedule, 0.1, digits.class_names), digits)


@pytest.mark.parametrize("edit, message", [
    (lambda header, x, y: ([1], x, y), "metric.samples=.*samples.npz"),
    (lambda header, x, y: (header, x[:60], y), "metric.samples=.*samples.npz"),
    (lambda header, x, y: (header, x, y + 50), "labels from 50 to 59.*10 classes"),
    (lambda header, x, y: (header, x / 127.5 - 1, y), "float32.*uint8"),
], ids=["another manifest", "fewer images than labels", "unknown classes", "floats"])  # fmt: skip
def test_a_run_that_diffguide_sample_did_not_write_is_an_error(subject, tmp_path, edit, message):
    """Also fewer images than labels: the last ones would be read from outside the array."""
    images = load_images(subject.data, "train", torch.arange(100))[0].permute(0, 2, 3, 1)
    header, x, y = edit({}, images, torch.arange(100) % 10)
    (tmp_path / "manifest.jsonl").write_text(json.dumps(header) + "\n")
    numpy.savez(tmp_path / "samples.npz", arr_0=x.numpy(), arr_1=y.numpy())
    with pytest.raises(ValueError, match=message):
        StoredSamples(Path(tmp_path), 100, subject)


def test_an_inception_score_needs_a_sample_in_every_split():
    sampler = DDIM(grid=UniformLogSNR(), steps=2, eta=0.0)
    with pytest.raises(ValueError, match="splits .*count=80, got 81"):
        Quality(Unguided, sampler, Pixels(), 80, None, "balanced", "train", 2, 40, 81, 80, False)


def test_quality_accepts_images_without_classes(subject):
    """`labels` sets the classes of new samples; the examples need no classes."""
    none = (
        Split(subject.data.train.x, torch.full((1000,), -1)),
        Split(subject.data.validation.x, torch.full((350,), -1)),
    )
    data = Dataset(*none, none[1], ())
    oracle = Empirical(data.train.x[:20], torch.zeros(20).long(), Cosine(log_snr_max=12.0, log_snr_min=-10.0), 0.1)
    oracle.num_classes = 0
    sampler = DDIM(grid=UniformLogSNR(), steps=2, eta=0.0)
    metric = Quality(Unguided, sampler, Pixels(), 80, None, "balanced", "train", 2, 40, 2, 80, False)
    metric.check(EvalContext(oracle, data))


def likelihoods(floor: float = 0.001, values: int | None = 17, log_snr_max: float | None = None) -> Likelihoods:
    """The metric with a bound of one evaluation and an ODE of one step."""
    ode = FlowODE(Hutchinson(1), FixedGrid(1), DecoderDequantization(), 1, None, values, None)
    return Likelihoods(ELBO(1, None, 2, 2, 0, floor, None, values, log_snr_max), ode, None)


@pytest.mark.parametrize("changed, message", [
    ({"values": None}, "set metric.elbo.quantization_levels \\(17"),
    ({"values": 16}, "not of 16 values .*metric.elbo.quantization_levels"),
    ({"log_snr_max": float("inf")}, "metric.elbo: log_snr_max .*-10 to 12, got inf"),
    ({"log_snr_max": float("nan")}, "metric.elbo: log_snr_max .*-10 to 12, got nan"),
    ({"floor": float("inf")}, "floor .*got inf"),
])  # fmt: skip
def test_likelihoods_name_the_key_to_set(subject, changed, message):
    """metric.elbo.quantization_levels in metric=likelihood; log_snr_max of the metric, not of the schedule."""
    with pytest.raises(ValueError, match=message):
        likelihoods(**changed).check(subject)


@pytest.mark.parametrize("arguments, message", [
    (["metric=quality", "metric.guidance.scale=2"],
     "no key metric.guidance.scale with guidance@metric.guidance=none; "),
    (["metric=quality", "guidance@metric.guidance=cfg", "metric.guidance.scal=2"],
     "no key metric.guidance.scal with guidance@metric.guidance=cfg; nearest: metric.guidance.scale"),
    (["metric=likelihood", "metric.ode.trace.largest=9"],
     "metric.ode.draws; metric/trace@metric.ode.trace=exact has it"),
])  # fmt: skip
def test_a_key_of_another_option_of_a_nested_group(command, tmp_path, arguments, message):
    """The message has the override that chooses that option."""
    done = command(main, "checkpoint=any", *arguments, at=tmp_path)
    assert done.code == 1 and message in done.err and len(done.err.strip().splitlines()) == 1, done.err


@pytest.mark.parametrize("make, message", [
    (lambda: Piecewise([float("nan"), 6.0], [1.0, 1.0]), "increasing finite numbers"),
    (lambda: Piecewise([-6.0, float("inf")], [1.0, 1.0]), "increasing finite numbers"),
    (lambda: Bell(float("nan"), 2.0), "spacing.centre must be a finite number, got nan"),
])  # fmt: skip
def test_weightings_need_finite_numbers(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_spacing_must_overlap_the_weighting(subject):
    """Far outside, the density is 0; dividing by it would look like a diverged training."""
    weighting = Piecewise([-6.0, 6.0], [1.0, 1.0])
    metric = ZeroShotClassifier(weighting, Bell(2000.0, 2.0), 4, [], None, 1.0, False, 15, 10)
    with pytest.raises(ValueError, match="metric.spacing lies outside"):
        metric.check(subject)


def test_a_decoder_with_other_values_is_an_error_of_the_objective(command, tmp_path):
    """Several examples are compared: black corners fit every number of values."""
    done = command(train, "experiment=vdm_digits", "objective.decoder.quantization_levels=16", at=tmp_path)
    assert done.code == 1 and done.err.startswith("diffguide-train: objective: the data"), done.err


def test_a_file_in_place_of_a_run_folder_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="cannot write .*v001: Not a directory"):
        create_version_dir(tmp_path / "file/run", lambda folder: None)


def test_figures_of_two_units_share_neither_a_column_nor_an_axis(tmp_path, monkeypatch):
    """Bits of images and nats of vectors; a panel that only one of them has is drawn all the same."""
    folders, drawn = [], {}
    monkeypatch.setattr(
        tables.curves, "write_curve_figure", lambda path, plot, lines: drawn.update({path.name: (plot, list(lines))})
    )
    for model, unit, more in (("a", "bits/dim", ["excess"]), ("b", "nats/dim", []), ("c", "bits/dim", [])):
        panels = [{"column": name, "label": unit, "reference": None} for name in ["nll", *more]]
        record = {
            "model": model, "images": 1, "metric": "m", "split": "test", "n": 3, "seconds": 1.0, "curve": [],
            "figures": {"nll": {"value": 0.5, "standard_error": None, "n": 3, "unit": unit}},
            "plots": [{"name": "p", "x": "x", "label": "x", "logarithmic": False, "panels": panels}],
        }  # fmt: skip
        (folder := tmp_path / model).mkdir()
        (folder / "metrics.json").write_text(json.dumps(record))
        folders.append({"folder": str(folder), "overrides": {}})
    table = (tables.write_comparison(folders) / "table.md").read_text().splitlines()
    assert table[0].endswith("| nll_bits/dim [bits/dim] | nll_nats/dim [nats/dim] |")
    assert table[2].endswith("| 0.5 |  |") and table[3].endswith("|  | 0.5 |")
    assert {name: lines for name, (_, lines) in drawn.items()} == {"p.png": ["a", "c"], "p_2.png": ["b"]}
    assert [panel.column for panel in drawn["p.png"][0].panels] == ["nll", "excess"]
