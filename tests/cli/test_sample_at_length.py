"""Sampling at length: shards while it runs, kills, signals, several processes; the files are always the same."""

import os
import shutil
import signal
import socket
import subprocess
import sysconfig
import time
from collections.abc import Callable
from contextlib import chdir
from functools import partial
from pathlib import Path

import numpy
import pytest
import torch
from forked import Command
from process_faults import become_rank, fail_in_batch, kill_in_removal, kill_in_write

from diffguide.sample import main
from diffguide.sampling.run import SampleWriter

SCRIPTS = Path(sysconfig.get_path("scripts"))
SAMPLE = SCRIPTS / "diffguide-sample"
MODEL = Path("outputs/train/digits/v001")
RUN = Path("outputs/sample/digits/v001")
FILES = {"samples.npz", "manifest.jsonl", "grid.png", "trajectory.gif"}
LONG = [f"checkpoint={MODEL}", "n=300", "batch_size=16", "sampler=ddpm", "sampler.steps=6", "trajectory=true"]
OWN, TORCHRUN = {}, {"TORCHELASTIC_RUN_ID": "none"}  # what our launcher and torchrun set besides the ranks
TWO = ["engine.accelerator=cpu", "engine.devices=2", "engine.strategy=ddp"]


@pytest.fixture(autouse=True)
def one_thread():
    """As in the processes that are compared with this one."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def whole(tiny_run, tmp_path_factory) -> dict[str, bytes]:
    """What the run LONG writes where nothing disturbs it."""
    folder = tmp_path_factory.mktemp("whole")
    shutil.copytree(tiny_run, folder / MODEL)
    torch.set_num_threads(1)
    with chdir(folder):
        main(LONG)
    return contents(folder / RUN)


def contents(run: Path) -> dict[str, bytes]:
    """Every file of a finished run but its configuration; nothing else is there."""
    files = {path.relative_to(run).as_posix(): path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert files.pop("config.yaml") and files.pop(".lock") and not (run / "shards").exists()
    return files


def shards(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "shards").glob("[0-9]*.npz"))


def start(at: Path, *arguments: str, program: str | Path = SAMPLE) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [program, *arguments], cwd=at, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )


def finish(process: subprocess.Popen, code: int = 0) -> tuple[str, str]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    return out, err


def start_two(
    at: Path, *arguments: str, launcher: dict[str, str], disturb: Callable[[], None] | None = None
) -> list[Command]:
    """Two processes as a launcher starts them; `disturb` is called in the second."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    prepare = [partial(become_rank, 0, port, launcher), partial(become_rank, 1, port, launcher, disturb)]
    return [Command(main, *arguments, *TWO, at=at, prepare=prepare[k], suffix=f".{k}") for k in (0, 1)]


def finish_two(processes: list[Command], code: int = 0) -> tuple[str, str]:
    """Waits for both, of which the first ends with this code; returns what the second and then the first printed."""
    (first_out, first_err), (second_out, second_err) = processes[0].finish(code), processes[1].finish()
    return second_out + first_out, second_err + first_err


SHARD, ARCHIVE = ("numpy", "savez"), ("diffguide.sampling.outputs", "write_archive")
PICTURE = ("PIL.Image:Image", "save")
HALVES = {"first shard": (*SHARD, 1), "picture": (*PICTURE, 1), "fifth shard": (*SHARD, 5), "archive": (*ARCHIVE, 1)}


@pytest.mark.parametrize("where", HALVES)
def test_killed_in_the_middle_of_a_write_and_resumed_is_the_same_run(at, whole, command, where):
    """The first shard, a later one, a picture of the end, the archive: half of it on the disk, and SIGKILL."""
    Command(main, *LONG, at=at, prepare=partial(kill_in_write, *HALVES[where])).finish(-signal.SIGKILL)
    expected = {"first shard": 0, "fifth shard": 4}.get(where, 19)
    assert len(shards(at / RUN)) == expected and not (at / RUN / "samples.npz").exists()
    done = command(main, f"resume={RUN}", at=at)
    assert done.code == 0 and done.folder == RUN, done.err
    assert contents(at / RUN) == whole and set(whole) == FILES


@pytest.mark.slow
def test_killed_at_random_moments_and_resumed_until_it_is_finished(at, whole):
    generator, arguments, kills = numpy.random.default_rng(0), LONG, 0
    while not (at / RUN / "samples.npz").exists():
        process = Command(main, *arguments, at=at)
        process.wait_for_lock(at / RUN)
        time.sleep(generator.uniform(0, 0.3))
        process.kill()
        kills += process.code == -signal.SIGKILL
        arguments = [f"resume={RUN}"]
    Command(main, *arguments, at=at).finish()
    assert contents(at / RUN) == whole and kills >= 3


def test_killed_while_the_shards_are_removed(at, whole, command):
    Command(main, *LONG, at=at, prepare=partial(kill_in_removal, "shards", 3)).finish(-signal.SIGKILL)
    assert len(shards(at / RUN)) == 17 and (at / RUN / "samples.npz").exists()
    done = command(main, f"resume={RUN}", at=at)
    assert done.code == 0 and f"nothing is left to do: {RUN} has all its samples" in done.err
    assert contents(at / RUN) == whole


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_stop_after_the_batch_and_the_resumed_run_is_the_same(at, whole, command, monkeypatch, number):
    """In the third batch, and once more in the second of the resumed run."""
    begin, arguments = SampleWriter.begin_batch, LONG
    for when, samples in ((3, 48), (2, 80)):
        calls = []

        def interrupted(self, first):
            calls.append(first)
            if len(calls) == when:
                os.kill(os.getpid(), number)
            return begin(self, first)

        monkeypatch.setattr(SampleWriter, "begin_batch", interrupted)
        done = command(main, *arguments, at=at)
        assert done.code == 128 + number and done.folder == RUN and "Traceback" not in done.err
        ending = f"{number.name} after {samples} of 300 samples; continue with: diffguide-sample resume={RUN}"
        assert done.err.splitlines()[-1] == ending and len(shards(at / RUN)) == samples // 16
        arguments = [f"resume={RUN}"]
    monkeypatch.undo()
    assert command(main, *arguments, at=at).code == 0
    assert contents(at / RUN) == whole


def test_a_signal_at_the_end_stops_before_the_archive(at, whole, command, monkeypatch):
    begin = SampleWriter.begin_batch

    def interrupted(self, first):
        if first == 288:
            os.kill(os.getpid(), signal.SIGTERM)
        return begin(self, first)

    monkeypatch.setattr(SampleWriter, "begin_batch", interrupted)
    done = command(main, *LONG, at=at)
    assert done.code == 143 and "SIGTERM after all 300 samples" in done.err and "continue with" in done.err
    monkeypatch.undo()
    assert command(main, f"resume={RUN}", at=at).code == 0
    assert contents(at / RUN) == whole


def test_shards_are_written_during_the_run_and_sigterm_exits_with_143(at):
    """n = 2000 streams: a real process, stopped in the middle, its finished batches on the disk."""
    process = Command(main, f"checkpoint={MODEL}", "n=2000", "batch_size=50", "sampler.steps=30", at=at)
    process.wait_for(lambda: len(shards(at / RUN)) >= 3)
    assert process.code is None and not (at / RUN / "samples.npz").exists()
    process.send_signal(signal.SIGTERM)
    out, err = process.finish(143)
    assert out == f"{RUN}\n" and f"continue with: diffguide-sample resume={RUN}" in err and "Traceback" not in err
    names = shards(at / RUN)
    assert 3 <= len(names) < 40 and names == [f"{50 * k:010d}.npz" for k in range(len(names))]
    with numpy.load(at / RUN / "shards" / names[-1]) as arrays:
        assert arrays["samples"].shape == (50, 8, 8, 1) and arrays["evaluations"] == 50 * 2 * 30


def test_two_processes_write_what_one_writes(at, whole):
    """With the launcher of diffguide; 19 batches, so that the last round has one for only one process."""
    out, err = finish(start(at, *LONG, *TWO))
    assert out == f"{RUN}\n" and err.count("300 samples") == 0
    assert contents(at / RUN) == whole


@pytest.mark.slow
def test_torchrun_resumes_the_run_of_one_process(at, whole, command, monkeypatch):
    """Its two processes; torchrun itself starts those of a training in test_devices.py."""
    begin = SampleWriter.begin_batch

    def interrupted(self, first):
        if first == 64:
            os.kill(os.getpid(), signal.SIGTERM)
        return begin(self, first)

    monkeypatch.setattr(SampleWriter, "begin_batch", interrupted)
    assert command(main, *LONG, at=at).code == 143
    for name in shards(at / RUN)[1:3]:  # what is there need not be a beginning
        (at / RUN / "shards" / name).unlink()
    out, _ = finish_two(start_two(at, f"resume={RUN}", launcher=TORCHRUN))
    assert out == f"{RUN}\n"
    assert contents(at / RUN) == whole


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_processes(at, whole):
    processes = start_two(at, *LONG, "sampler.steps=60", launcher=OWN)
    processes[0].wait_for(lambda: len(shards(at / RUN)) >= 2)
    processes[0].send_signal(signal.SIGTERM)
    out, err = finish_two(processes, 143)
    assert out == f"{RUN}\n" and err.count("continue with: diffguide-sample resume=") == 1 and "Traceback" not in err
    assert len(shards(at / RUN)) % 2 == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault, code, ending",
    [
        ("disk full", 1, f"diffguide-sample: cannot write {RUN}/shards/0000000048.npz: No space left on device"),
        ("signal", 143, f"SIGTERM after 64 of 300 samples; continue with: diffguide-sample resume={RUN}"),
    ],
    ids=["disk full", "signal"],
)
def test_an_error_in_the_second_process_ends_both(at, fault, code, ending):
    processes = start_two(at, *LONG, launcher=OWN, disturb=partial(fail_in_batch, 48, fault))
    _, err = finish_two(processes, code)
    assert err.splitlines()[-1] == ending and err.count(ending) == 1 and "Traceback" not in err
    assert len(shards(at / RUN)) == (3 if code == 1 else 4)


def test_all_processes_sample_the_checkpoint_of_the_first(at, command, monkeypatch):
    """A process that starts later may find a newer checkpoint; it uses that of the first."""
    from diffguide.sampling.job import SamplingJob

    few = ["n=4", "sampler.steps=2", "trajectory=true"]
    (older,) = (at / MODEL / "checkpoints").glob("0*32.safetensors")
    expected = contents(at / command(main, f"checkpoint={older.relative_to(at)}", *few, at=at).folder)
    claim = SamplingJob.claim_folder
    monkeypatch.setattr(SamplingJob, "claim_folder", lambda *all: (*claim(*all)[:2], older.relative_to(at)))
    found = contents(at / command(main, f"checkpoint={MODEL}", *few, at=at).folder)
    assert found["samples.npz"] == expected["samples.npz"] and found["trajectory.gif"] == expected["trajectory.gif"]
    monkeypatch.undo()
    newer = contents(at / command(main, f"checkpoint={MODEL}", *few, at=at).folder)
    assert newer["samples.npz"] != expected["samples.npz"]
