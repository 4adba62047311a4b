"""What a first user of diffguide-eval gets wrong: folders that no run of ours wrote, numbers that are none."""

import json
from pathlib import Path

import numpy
import pytest
import torch

from diffguide.datasets import Digits
from diffguide.evaluation.features import Pixels
from diffguide.evaluation.flow_ode import FixedGrid, Hutchinson
from diffguide.evaluation.likelihood import Decoded
from diffguide.evaluation.likelihoods import ELBO, FlowODE, Likelihoods
from diffguide.evaluation.local import splits_of
from diffguide.evaluation.metric import Subject
from diffguide.evaluation.samples import Quality, Stored
from diffguide.guidance import Unguided
from diffguide.oracles import Empirical
from diffguide.samplers import DDIM
from diffguide.samplers.grids import UniformLogSNR
from diffguide.schedules import Cosine


@pytest.fixture(scope="module")
def subject() -> Subject:
    """The exact denoiser of a few digits."""
    digits = Digits(1, 8, 10)
    schedule = Cosine(log_snr_max=12.0, log_snr_min=-10.0)
    return Subject(Empirical(digits.train.x[:20], digits.train.y[:20], schedule, 0.1, digits.class_names), digits)


@pytest.mark.parametrize("edit, message", [
    (lambda header, x, y: ([1], x, y), "is no finished run of diffguide-sample"),
    (lambda header, x, y: (header, x[:60], y), "is no finished run of diffguide-sample"),
    (lambda header, x, y: (header, x, y + 50), "has labels from 50 to 59, and the data have 10 classes"),
    (lambda header, x, y: (header, x / 127.5 - 1, y), "has images of float32, and diffguide-sample writes uint8"),
], ids=["another manifest", "fewer images than labels", "unknown classes", "floats"])  # fmt: skip
def test_runs_that_diffguide_sample_did_not_write(subject, tmp_path, edit, message):
    """One sentence before anything is computed; of fewer images than labels the last ones would be read from elsewhere."""
    images = splits_of(subject.data, "train", torch.arange(100))[0].permute(0, 2, 3, 1)
    header, x, y = edit({}, images, torch.arange(100) % 10)
    (tmp_path / "manifest.jsonl").write_text(json.dumps(header) + "\n")
    numpy.savez(tmp_path / "samples.npz", arr_0=x.numpy(), arr_1=y.numpy())
    with pytest.raises(ValueError, match=message):
        Stored(Path(tmp_path), 100, subject)


def test_an_inception_score_has_a_sample_in_every_split():
    sampler = DDIM(grid=UniformLogSNR(), steps=2, eta=0.0)
    with pytest.raises(ValueError, match="splits must be at most count=80, got 81"):
        Quality(Unguided, sampler, Pixels(), 80, None, "balanced", "train", 2, 40, 81, 80, False)


def likelihoods(floor: float = 0.001, values: int | None = 17, log_snr_max: float | None = None) -> Likelihoods:
    """The metric with a bound of one evaluation and an ODE of one step."""
    ode = FlowODE(Hutchinson(1), FixedGrid(1), Decoded(), 1, None, values, None)
    return Likelihoods(ELBO(1, None, 2, 2, 0, floor, None, values, log_snr_max), ode, None)


@pytest.mark.parametrize("changed, message", [
    ({"values": None}, "set metric.elbo.values \\(17 for digits"),
    ({"values": 16}, "not of 16 values equally spaced in \\[-1, 1\\]: set metric.elbo.values"),
    ({"log_snr_max": float("inf")}, "metric.elbo: log_snr_max must lie within the schedule's -10 to 12, got inf"),
    ({"log_snr_max": float("nan")}, "metric.elbo: log_snr_max must lie within the schedule's -10 to 12, got nan"),
    ({"floor": float("inf")}, "floor finite and above 0; got .* floor=inf"),
])  # fmt: skip
def test_likelihoods_name_the_key_to_set(subject, changed, message):
    """In metric=likelihood it is not metric.values; and the schedule is not blamed for the metric's own end."""
    with pytest.raises(ValueError, match=message):
        likelihoods(**changed).check(subject)
