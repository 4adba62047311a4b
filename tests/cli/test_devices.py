"""Several processes give the results of one: the launcher of diffguide and torchrun, gloo on the CPU."""

import json
import os
import resource
import shutil
import subprocess
import sysconfig
from contextlib import chdir
from pathlib import Path

import pytest
from safetensors.torch import load_file

from diffguide.train import main

SCRIPTS = Path(sysconfig.get_path("scripts"))
RUN = Path("outputs/train/digits/v001")
TWO = ["engine.accelerator=cpu", "engine.devices=2", "engine.strategy=ddp"]
UNET = [
    "backbone.channels=8",
    "backbone.head_channels=8",
    "backbone.multipliers=[1]",
    "backbone.attention=[8]",
    "backbone.blocks=1",
    "backbone.dropout=0",
]
OF_DIFFUSERS = [
    "backbone=diffusers_unet",
    "backbone.arguments.block_out_channels=[8]",
    "backbone.arguments.down_block_types=[AttnDownBlock2D]",
    "backbone.arguments.up_block_types=[AttnUpBlock2D]",
    "backbone.arguments.attention_head_dim=8",
    "backbone.arguments.dropout=0",
    "+backbone.arguments.norm_num_groups=4",
]
STEPS = [
    "sampler.steps=2",
    "training.accumulate=2",
    "training.batch_size=32",
    "training.images=320",
    "training.log_images=64",
    "training.checkpoint_images=96",
    "objective/levels=loss_second_moment",
    "objective.levels.bins=4",
    "objective.levels.history=5",
]
SMALL = [*UNET, *STEPS]


def run(at: Path, *command: str | Path, **options) -> subprocess.CompletedProcess:
    """A real process with one thread a rank."""
    at.mkdir(exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=at, capture_output=True, text=True, env=environment, timeout=240, **options)


def losses(run: Path, key: str) -> list[float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line[key] for line in lines if key in line]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """The run of one process; without dropout, whose layers draw per process; its levels learn from all processes."""
    home = tmp_path_factory.mktemp("one")
    with chdir(home):
        main(SMALL)
    return home / RUN


def assert_equal_losses(one: Path, other: Path) -> None:
    for key in ("loss", "validation_loss"):
        assert len(losses(one, key)) >= 4
        assert losses(other, key) == pytest.approx(losses(one, key), rel=0, abs=1e-5)
    weights = [load_file(path / "checkpoints/0000000320.safetensors") for path in (one, other)]
    assert max((weights[0][name] - weights[1][name]).abs().max() for name in weights[0]) < 1e-3


@pytest.mark.slow
def test_a_network_of_diffusers_has_the_losses_of_one_process_too(tmp_path):
    (tmp_path / "one").mkdir()
    with chdir(tmp_path / "one"):
        main([*OF_DIFFUSERS, *STEPS])
    done = run(tmp_path / "two", SCRIPTS / "diffguide-train", *OF_DIFFUSERS, *STEPS, *TWO)
    assert done.returncode == 0, done.stderr
    assert_equal_losses(tmp_path / "one" / RUN, tmp_path / "two" / RUN)


def test_two_processes_have_the_losses_of_one(alone, tmp_path):
    """The launcher of diffguide writes one folder, and one line on stdout."""
    done = run(tmp_path / "two", SCRIPTS / "diffguide-train", *SMALL, *TWO)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{RUN}\n"
    assert [path.name for path in (tmp_path / "two" / RUN.parent).iterdir()] == ["v001"]
    assert_equal_losses(alone, tmp_path / "two" / RUN)


@pytest.mark.slow
def test_torchrun_resumes_the_run_of_one_process(alone, tmp_path):
    shutil.copytree(alone, tmp_path / "two" / RUN)
    for file in (tmp_path / "two" / RUN / "checkpoints").glob("00000003*"):
        file.unlink()
    torchrun = [SCRIPTS / "torchrun", "--nproc-per-node=2", "--no-python", SCRIPTS / "diffguide-train"]
    done = run(tmp_path / "two", *torchrun, f"resume={RUN}", *TWO)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{RUN}\n"
    assert_equal_losses(alone, tmp_path / "two" / RUN)


@pytest.mark.slow
def test_a_failure_of_the_first_process_ends_the_others(tmp_path, monkeypatch):
    """A limit on the file size simulates a full disk; only the first process writes."""
    monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)  # its data file would not fit either

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    done = run(tmp_path, SCRIPTS / "diffguide-train", *SMALL, *TWO, preexec_fn=limit)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"diffguide-train: cannot write {RUN}/checkpoints/0000000096")
