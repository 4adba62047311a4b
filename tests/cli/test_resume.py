"""A run that is stopped, killed, resumed, diverges or loses its disk: real processes where a process is the point."""

import errno
import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy
import pytest
import torch
from forked import Command
from omegaconf import OmegaConf
from process_faults import hold_lock, kill_in_write
from safetensors.torch import save_file
from short_run import RUN, SHORT

from diffguide.checkpoints import store as checkpoints
from diffguide.files import safetensors as archives
from diffguide.sample import main as sample
from diffguide.train import main
from diffguide.training.learning_rates import LearningRatePlan
from diffguide.training.state import TrainingRun

TRAIN = Path(sysconfig.get_path("scripts")) / "diffguide-train"
CLOCK = {"images_per_second", "seconds", "data_wait"}
TINY = [
    "backbone.multipliers=[1]",
    "backbone.attention=[]",
    "backbone.blocks=1",
    "backbone.channels=4",
    "sampler.steps=2",
]
KILLED = [
    *TINY,
    "training.batch_size=50",
    "training.accumulate=2",
    "training.images=2100",
    "training.checkpoint_images=250",
    "training.log_images=130",
    "training.validation_images=600",
    "training.sample_images=700",
]
LAST = "checkpoints/0000002100.safetensors"  # written after the state of its optimiser


def metrics(run: Path) -> list[dict]:
    """The lines of metrics.jsonl without their times."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key not in CLOCK} for line in lines]


def assert_the_same_run(one: Path, other: Path) -> None:
    """Equal weights, average, optimiser state and what the files say of themselves, bit for bit; equal metrics."""
    names = [sorted(path.name for path in (run / "checkpoints").iterdir()) for run in (one, other)]
    assert names[0] == names[1]
    for name in names[0]:
        assert (one / "checkpoints" / name).read_bytes() == (other / "checkpoints" / name).read_bytes(), name
    assert metrics(one) == metrics(other)
    assert [path.name for path in (one / "samples").iterdir()] == [path.name for path in (other / "samples").iterdir()]


def killed_in_a_write(at: Path, write: int) -> Path:
    """A run that is killed when half of its so-many-th file is written, and resumed to its end."""
    prepare = partial(kill_in_write, "safetensors.torch", "save_file", write)
    Command(main, *KILLED, at=at, prepare=prepare).finish(-signal.SIGKILL)
    assert len(list((at / RUN).glob("checkpoints/.*"))) == 1  # half a file
    Command(main, f"resume={RUN}", at=at).finish()
    return at / RUN


def killed_at_random(home: Path, seconds: float, kills: int = 7) -> list[Path]:
    """Runs that are killed so often in all, each time at a uniformly random moment of so many seconds after its start.

    A run is resumed until it has all its images; then the next one begins.
    """
    generator, runs = numpy.random.default_rng(0), []
    while kills:
        at, arguments = home / f"random{len(runs)}", KILLED
        runs.append(at / RUN)
        while not (runs[-1] / LAST).exists():
            process = Command(main, *arguments, at=at)
            if kills:
                process.wait_for_lock(runs[-1])
                time.sleep(generator.uniform(0, seconds))
                process.kill()
                kills -= process.code == -signal.SIGKILL
            else:
                process.finish()
            arguments = [f"resume={RUN}"]
        checkpoints.prune(runs[-1] / "checkpoints", 3)  # if the kill came between the last checkpoint and this
    return runs


@pytest.mark.slow
def test_killed_at_any_moment_and_resumed_is_the_same_run(tmp_path):
    """SIGKILL ten times, of real processes: three of them while a file is half written, the first, second and thirteenth.

    A small network and few images: what is compared are the files, nine checkpoints in two passes over the data, and
    lines of metrics and sample grids between them. The run that is never killed is the console script's.
    """
    done = subprocess.run([TRAIN, *KILLED], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    written = [(tmp_path / RUN / name).stat().st_mtime for name in ("config.yaml", LAST)]
    runs = [killed_in_a_write(tmp_path / str(write), write) for write in (1, 2, 13)]
    for run in [*runs, *killed_at_random(tmp_path, (written[1] - written[0]) / 2)]:
        assert_the_same_run(tmp_path / RUN, run)


def test_resume_alone_continues_with_the_runs_own_configuration(short_run, unfinished, tmp_path, command):
    (unfinished / "checkpoints/.0000000320.4711.safetensors").write_bytes(b"half")
    done = command(main, f"resume={RUN}", at=tmp_path)
    assert done.code == 0 and done.folder == RUN, done.err
    assert_the_same_run(short_run, unfinished)


def test_a_run_without_a_checkpoint_starts_over(short_run, unfinished, tmp_path, command):
    shutil.rmtree(unfinished / "checkpoints")
    done = command(main, f"resume={RUN}", at=tmp_path)
    assert done.code == 0 and f"{RUN} has no checkpoint" in done.err, done.err
    assert_the_same_run(short_run, unfinished)


def test_signals_save_and_the_resumed_run_is_the_same(short_run, tmp_path, command, monkeypatch):
    """SIGTERM in the fourth step, Ctrl-C in the third of the resumed run, then to the end."""
    step, calls, arguments = TrainingRun.update, [], SHORT
    for number, when, images in ((signal.SIGTERM, 4, 128), (signal.SIGINT, 3, 224)):

        def interrupted(*all, number=number, when=when):
            calls.append(number)
            if calls.count(number) == when:
                os.kill(os.getpid(), number)
            return step(*all)

        monkeypatch.setattr(TrainingRun, "update", interrupted)
        done = command(main, *arguments, at=tmp_path)
        assert done.code == 128 + number and done.folder == RUN and "Traceback" not in done.err
        ending = f"{number.name} after {images} of 320 images; continue with: diffguide-train resume={RUN}"
        assert done.err.splitlines()[-1] == ending
        arguments = [f"resume={RUN}"]
    monkeypatch.undo()
    assert command(main, f"resume={RUN}", at=tmp_path).code == 0
    last = "checkpoints/0000000320.safetensors"
    assert (tmp_path / RUN / last).read_bytes() == (short_run / last).read_bytes()
    assert metrics(tmp_path / RUN) == metrics(short_run)


def test_sigterm_exits_with_143(tmp_path):
    at, log = tmp_path / "home", tmp_path / "home" / RUN / "metrics.jsonl"
    process = Command(main, *TINY, "training.images=500000", "training.log_images=500", at=at)
    process.wait_for(lambda: log.exists() and log.stat().st_size)
    process.send_signal(signal.SIGTERM)
    out, err = process.finish(143)
    assert out == f"{RUN}\n" and f"continue with: diffguide-train resume={RUN}" in err and "Traceback" not in err
    assert len(checkpoints.list_checkpoints(at / RUN / "checkpoints")) == 1


def test_a_second_process_on_a_run_is_refused(unfinished, tmp_path, command):
    holder = Command(hold_lock, str(RUN), at=tmp_path)
    holder.wait_for_lock(unfinished)
    before = {path: path.read_bytes() for path in unfinished.rglob("*") if path.is_file()}
    done = command(main, f"resume={RUN}", at=tmp_path)
    holder.kill()
    assert done.code == 1 and f"{RUN} is being written by process {holder.pid} on" in done.err, done.err
    assert {path: path.read_bytes() for path in unfinished.rglob("*") if path.is_file()} == before
    assert command(main, f"resume={RUN}", at=tmp_path).code == 0  # the lock went with its holder


def test_the_last_checkpoints_and_the_best_are_kept(tmp_path):
    for images, loss in [(1, 0.5), (2, 0.3), (3, 0.4), (4, 0.3), (5, None), (6, 0.9), (7, 0.8)]:
        metadata = {archives.METADATA_KEY: json.dumps({"validation_loss": loss, "images": images})}
        for kind in ("safetensors", "optimizer.safetensors"):
            save_file({"x": torch.zeros(1)}, tmp_path / f"{images:010d}.{kind}", metadata)
    checkpoints.prune(tmp_path, 2)
    assert sorted({int(path.name.split(".")[0]) for path in tmp_path.iterdir()}) == [4, 6, 7]
    assert len(list(tmp_path.iterdir())) == 6
    assert checkpoints.find(tmp_path / "best").stem == "0000000004"
    checkpoints.prune(tmp_path, 5)
    assert len(list(tmp_path.iterdir())) == 6


def test_a_run_keeps_its_newest_and_its_best(short_run, tmp_path, command):
    done = command(main, *SHORT, "training.keep=1", at=tmp_path)
    assert done.code == 0, done.err
    losses = {line["images"]: line["validation_loss"] for line in metrics(short_run) if "validation_loss" in line}
    best = min((96, 192, 288, 320), key=losses.__getitem__)
    assert {int(path.stem) for path in checkpoints.list_checkpoints(tmp_path / RUN / "checkpoints")} == {best, 320}
    sampled = command(sample, f"checkpoint={RUN}/best", "n=1", "sampler.steps=2", at=tmp_path)
    assert sampled.code == 0 and f"{best:010d}" in (tmp_path / sampled.folder / "manifest.jsonl").read_text()


def test_changed_amounts_are_recorded(unfinished, tmp_path, command):
    for _ in range(2):  # the second time from the same checkpoint, as after a kill
        for file in (unfinished / "checkpoints").glob("00000003[25]*"):
            file.unlink()
        done = command(main, f"resume={RUN}", "training.images=352", "training.learning_rate=0.001", at=tmp_path)
        assert done.code == 0, done.err
        notes = [line for line in metrics(unfinished) if "changed" in line]
        changed = {"training.images": [320, 352], "training.learning_rate": [0.004, 0.001]}
        assert [(note["images"], note["changed"]) for note in notes] == [(288, changed)]
        falls = 0.5 * (1 + math.cos(math.pi * 288 / 320))  # the rate was below half its peak: it rises to that
        assert notes[0]["learning_rates"] == pytest.approx([0.004 * falls * 320 / 3000, 0.001 * 0.5 * 320 / 3000])
    assert OmegaConf.load(unfinished / "config.yaml").training.images == 352
    assert checkpoints.find(unfinished).stem == "0000000352"


@pytest.mark.parametrize(
    "every, good, message",
    [
        (320, [], "not finite at step 3 (96 images), noise level sigma/alpha"),
        (32, [32, 64], "the held-out loss is nan after 96 images; the last good checkpoint is"),
    ],
)
def test_a_run_that_diverges_stops_and_keeps_its_good_checkpoints(tmp_path, command, monkeypatch, every, good, message):
    """A third step that leads out of all numbers."""
    monkeypatch.setattr(LearningRatePlan, "rate_at", lambda self, images, *_: 1e-3 if images < 64 else 1e30)
    done = command(main, *SHORT, f"training.checkpoint_images={every}", "training.validation_images=320", at=tmp_path)
    assert done.code == 1 and message in done.err and "Traceback" not in done.err, done.err
    assert [int(path.stem) for path in checkpoints.list_checkpoints(tmp_path / RUN / "checkpoints")] == good


def test_a_full_disk_is_one_line_and_leaves_no_partial_file(tmp_path, command):
    """A limit on the file size simulates a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        done = command(main, *SHORT, at=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    last = done.err.splitlines()[-1]
    assert last.startswith("diffguide-train: cannot write outputs/train/digits/v001/checkpoints/0000000096.")
    assert done.code == 1 and "too large" in last and "Traceback" not in done.err
    assert list((tmp_path / RUN / "checkpoints").iterdir()) == []


def test_a_folder_that_disappears_is_one_line(tmp_path, command):
    log, end = tmp_path / RUN / "metrics.jsonl", time.monotonic() + 120

    def move():
        while not (log.exists() and log.stat().st_size) and time.monotonic() < end:
            time.sleep(0.002)
        (tmp_path / RUN).rename(tmp_path / "moved")

    with ThreadPoolExecutor(1) as pool:
        moved = pool.submit(move)
        done = command(main, *TINY, "training.images=500000", "training.log_images=1000", at=tmp_path)
        moved.result()
    assert f"diffguide-train: cannot write {RUN}/" in done.err and f"there is no folder {RUN}" in done.err, done.err
    assert done.code == 1 and "Traceback" not in done.err and not (tmp_path / RUN).exists()


def test_a_read_only_run_is_one_line(unfinished, tmp_path, command, monkeypatch):
    """For root, to whom nothing is read-only, the system's refusal is played."""
    unfinished.chmod(0o555)
    opened = os.open

    def refused(path, *arguments, **options):
        if unfinished.name in Path(path).parts:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    if os.geteuid() == 0:
        monkeypatch.setattr(os, "open", refused)
    done = command(main, f"resume={RUN}", at=tmp_path)
    unfinished.chmod(0o755)
    assert done.code == 1 and "resume: cannot write" in done.err and "Traceback" not in done.err
