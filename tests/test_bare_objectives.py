"""`diffguide-train objective=<name>` simply trains: no other key says with what."""

import json

import pytest

from diffguide.train import main as train

SHORT = ["training.images=256", "training.batch_size=64", "training.warmup_images=64", "training.log_images=64",
         "training.learning_rate=0.002"]  # fmt: skip
OBJECTIVES = ["cdm", "cdm_ce", "cdm_mse", "classifier", "energy", "jem", "nce", "sliced", "vdm", "eps"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """All of them in one sweep, but for tre, whose sampler has steps of its own; the others' pictures are made in two."""
    from contextlib import chdir

    at = tmp_path_factory.mktemp("bare")
    with chdir(at):
        train(["-m", f"objective={','.join(OBJECTIVES)}", "name=${hydra:runtime.choices.objective}", "sampler.steps=2", *SHORT])
        train(["objective=tre", "name=tre", *SHORT])
    return at / "outputs/train"


@pytest.mark.parametrize("name", [*OBJECTIVES, "tre"])
def test_an_objective_alone_trains_and_learns(folders, name):
    """Its loss falls within four steps."""
    lines = [json.loads(line) for line in (folders / name / "v001/metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0], losses
    assert (folders / name / "v001/checkpoints/0000000256.safetensors").exists()
