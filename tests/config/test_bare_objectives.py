"""`diffguide-train objective=<name>` trains: no other key chooses the data, the network or the sampler."""

import json
import math
from contextlib import chdir

import pytest

from diffguide.train import main as train

SHORT = ["backbone.channels=16", "training.images=128", "training.batch_size=32", "training.log_images=32"]
OBJECTIVES = ["cdm", "cdm_ce", "cdm_mse", "classifier", "dual_score", "energy", "eqm", "jem", "nce", "sliced", "vdm"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """All of them in one sweep with two sampler steps, except tre, whose sampler has its own number."""
    at = tmp_path_factory.mktemp("bare")
    with chdir(at):
        train(
            [
                "-m",
                f"objective={','.join(OBJECTIVES)}",
                "name=${hydra:runtime.choices.objective}",
                "sampler.steps=2",
                *SHORT,
            ]
        )
        train(["objective=tre", "name=tre", *SHORT])
    return at / "outputs/train"


@pytest.mark.parametrize("name", [*OBJECTIVES, "tre"])
def test_an_objective_alone_trains(folders, name):
    """Through its warm-up, where losses do not fall yet, and to its pictures, where it makes any."""
    lines = [json.loads(line) for line in (folders / name / "v001/metrics.jsonl").read_text().splitlines()]
    assert [line["images"] for line in lines if math.isfinite(line.get("loss", math.nan))] == [32, 64, 96, 128]
    assert (folders / name / "v001/checkpoints/0000000128.safetensors").exists()
    assert (folders / name / "v001/samples/0000000128.png").exists() == (name != "nce")
