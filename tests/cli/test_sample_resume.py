"""Resuming a sampling run: fixed keys, moved files, and foreign folders."""

import errno
import io
import json
import os
import pickle
import shlex
import shutil
import signal
from contextlib import chdir
from pathlib import Path

import numpy
import pytest
from forked import Command
from omegaconf import OmegaConf
from process_faults import hold_lock

from diffguide.sample import main
from diffguide.sampling.run import SampleWriter

MODEL = Path("outputs/train/digits/v001")
RUN = Path("outputs/sample/digits/v001")
LONG = [f"checkpoint={MODEL}", "n=48", "batch_size=16", "sampler.steps=6"]


@pytest.fixture(scope="session")
def stopped_run(tiny_run, tmp_path_factory) -> Path:
    """A folder with the model and a run of which two batches of three are done."""
    folder = tmp_path_factory.mktemp("stopped")
    shutil.copytree(tiny_run, folder / MODEL)

    def interrupted(self, first):
        if first == 16:
            os.kill(os.getpid(), signal.SIGTERM)
        return begin(self, first)

    begin = SampleWriter.begin_batch
    with pytest.MonkeyPatch.context() as patch, chdir(folder), pytest.raises(SystemExit) as left:
        patch.setattr(SampleWriter, "begin_batch", interrupted)
        main(LONG)
    assert left.value.code == 143
    return folder


@pytest.fixture
def stopped(stopped_run, tmp_path) -> Path:
    """A copy of that folder."""
    return shutil.copytree(stopped_run, tmp_path / "home")


def shards(at: Path) -> list[str]:
    return sorted(path.name for path in (at / RUN / "shards").glob("[0-9]*.npz"))


def everything(run: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


NOT_RESUMED = {
    "checkpoint of nothing": (["checkpoint=null"], "checkpoint is missing"),
    "another n": (["n=400"], "n (48 -> 400)"),
    "another seed": (["seed=1"], "seed (0 -> 1)"),
    "another batch": (["batch_size=32"], "batch_size (16 -> 32)"),
    "other labels": (["labels=all"], "labels (balanced -> all)"),
    "another strength": (["adapter_scale=2"], "adapter_scale (1 -> 2)"),
    "other weights": (["weights=objective"], "weights (ema -> objective)"),
    "another sampler": (["sampler.steps=7"], "sampler.steps (6 -> 7)"),
    "another guidance": (["guidance=cfg"], "guidance (Unguided -> ClassifierFree)"),
    "another precision": (["engine.precision=bf16-mixed"], "engine.precision (32-true -> bf16-mixed)"),
    "single pictures": (["png=true"], "png (False -> True)"),
    "another name": (["name=other"], "name (None -> other)"),
    "nowhere": (["resume=nowhere"], "no run at nowhere"),
    "a training run": ([f"resume={MODEL}"], "does not have the keys of this command"),
    "a number": (["resume=3"], "no run at 3"),
    "no checkpoint": (["checkpoint=nowhere"], "checkpoint: no checkpoint at nowhere"),
}


@pytest.mark.parametrize("arguments, message", NOT_RESUMED.values(), ids=NOT_RESUMED)
def test_resume_refuses_and_leaves_the_run_alone(stopped, command, arguments, message):
    before = everything(stopped / RUN)
    done = command(main, *([] if "resume" in arguments[-1][:6] else [f"resume={RUN}"]), *arguments, at=stopped)
    assert done.code == 1 and message in done.err and "Traceback" not in done.err, done.err
    assert len(done.err.splitlines()) <= 6 and done.out == ""
    assert everything(stopped / RUN) == before


def test_another_checkpoint_is_refused_and_a_moved_one_is_not(stopped, command):
    (file,) = (stopped / MODEL / "checkpoints").glob("0*64.safetensors")
    newer = file.with_name("0000000096.safetensors")
    newer.write_bytes(file.read_bytes() + b" ")
    done = command(main, f"resume={RUN}", f"checkpoint={newer.relative_to(stopped)}", at=stopped)
    assert done.code == 1 and "was sampled from a checkpoint with SHA-256" in done.err, done.err
    file.rename(stopped / "moved.safetensors")
    done = command(main, f"resume={RUN}", at=stopped)
    assert done.code == 1 and "checkpoint: no checkpoint at" in done.err
    done = command(main, f"resume={RUN}", "checkpoint=moved.safetensors", at=stopped)  # the same, by its content
    assert done.code == 0, done.err
    assert len(numpy.load(stopped / RUN / "samples.npz")["arr_0"]) == 48


def test_a_newer_checkpoint_does_not_change_a_run_that_began(stopped, command):
    (file,) = (stopped / MODEL / "checkpoints").glob("0*64.safetensors")
    file.with_name("0000000096.safetensors").write_bytes(b"another one")
    assert command(main, f"resume={RUN}", at=stopped).code == 0
    assert len(numpy.load(stopped / RUN / "samples.npz")["arr_0"]) == 48


def test_runs_of_before_have_no_adapter(stopped, command):
    lines = (stopped / RUN / "config.yaml").read_text().splitlines()
    older = [line for line in lines if not line.startswith(("null_class:", "adapter"))]
    assert len(older) == len(lines) - 3
    (stopped / RUN / "config.yaml").write_text("\n".join(older))
    assert command(main, f"resume={RUN}", at=stopped).code == 0


def test_an_adapter_that_changed_is_refused(stopped, command):
    text = (stopped / RUN / "config.yaml").read_text()
    (stopped / RUN / "config.yaml").write_text(text.replace("adapter: null", "adapter: matrices"))
    (stopped / "matrices").mkdir()
    (stopped / "matrices/adapter_model.safetensors").write_bytes(b"other ones")
    done = command(main, f"resume={RUN}", at=stopped)
    assert done.code == 1 and "adapter=matrices has changed" in done.err and done.err.count("\n") == 1, done.err


HOSTILE = {
    "sampler": {"_target_": "subprocess.run", "args": ["touch", "canary"]},
    "guidance": {"_target_": "pathlib.Path.touch", "self": "canary"},
    "engine": {"_target_": "os.system", "command": "touch canary", "precision": "32-true"},
    "name": "${oc.env:HOME}",
}


@pytest.mark.parametrize("key", HOSTILE)
def test_a_hostile_run_folder_runs_nothing(stopped, command, key):
    config = OmegaConf.to_container(OmegaConf.load(stopped / RUN / "config.yaml")) | {key: HOSTILE[key]}
    (stopped / RUN / "config.yaml").write_text(json.dumps(config))
    done = command(main, f"resume={RUN}", at=stopped)
    assert done.code == 1 and "diffguide-sample: resume: " in done.err and "Traceback" not in done.err, done.err
    assert not (stopped / "canary").exists() and len(shards(stopped)) == 2


DAMAGED = {
    "half a shard": ("shards/0000000000.npz", lambda old: old[: len(old) // 2]),
    "an empty shard": ("shards/0000000016.npz", lambda old: b""),
    "a pickle": ("shards/0000000000.npz", lambda old: pickle.dumps([1])),
    "a shard of another size": (
        "shards/0000000000.npz",
        lambda old: archive(samples=numpy.zeros((3, 8, 8, 1)), evaluations=1),
    ),
    "a shard of another kind": (
        "shards/0000000000.npz",
        lambda old: archive(samples=numpy.zeros((16, 8, 8, 3), numpy.uint8), evaluations=1),
    ),
    "no evaluations": ("shards/0000000000.npz", lambda old: archive(samples=numpy.zeros((16, 8, 8, 1)))),
    "a flipped bit": ("shards/0000000000.npz", lambda old: old[:400] + bytes([old[400] ^ 1]) + old[401:]),
    "a table of evaluations": (
        "shards/0000000000.npz",
        lambda old: archive(samples=numpy.zeros((16, 8, 8, 1), numpy.uint8), evaluations=[1, 2]),
    ),
    "fewer than no evaluations": (
        "shards/0000000000.npz",
        lambda old: archive(samples=numpy.zeros((16, 8, 8, 1), numpy.uint8), evaluations=-1),
    ),
    "one array and no archive": ("shards/0000000000.npz", lambda old: array(numpy.zeros((16, 8, 8, 1), numpy.uint8))),
    "vectors": ("shards/0000000000.npz", lambda old: archive(samples=numpy.zeros((16, 2)), evaluations=1)),
    "a number for a checksum": ("shards/start.json", lambda old: altered(old, checkpoint_sha256=3)),
    "a list for a checksum": ("shards/start.json", lambda old: altered(old, checkpoint_sha256=[3])),
    "another text for a checksum": ("shards/start.json", lambda old: altered(old, checkpoint_sha256="\x1b[2J")),
    "a number for a checkpoint": ("shards/start.json", lambda old: altered(old, checkpoint=3)),
    "a deep beginning": ("shards/start.json", lambda old: b"[" * 100_000),
    "a list for a beginning": ("shards/start.json", lambda old: b"[1, 2]"),
    "no JSON": ("shards/start.json", lambda old: b"\xff{"),
    "an empty beginning": ("shards/start.json", lambda old: b"{}"),
}


def altered(old: bytes, **entries) -> bytes:
    return json.dumps(json.loads(old) | entries).encode()


def array(values: numpy.ndarray) -> bytes:
    buffer = io.BytesIO()
    numpy.save(buffer, values)
    return buffer.getvalue()


def archive(**arrays) -> bytes:
    buffer = io.BytesIO()
    numpy.savez(buffer, **arrays)
    return buffer.getvalue()


@pytest.mark.parametrize("name, damage", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_run_is_an_error(stopped, command, name, damage):
    path = stopped / RUN / name
    path.write_bytes(damage(path.read_bytes()))
    done = command(main, f"resume={RUN}", at=stopped)
    assert done.code == 1 and "Traceback" not in done.err
    last = done.err.splitlines()[-1]
    assert Path(name).name in last and last.isprintable() and last.startswith("diffguide-sample: ")
    assert not (stopped / RUN / "samples.npz").exists()
    if name.endswith(".npz"):
        path.unlink()
        assert command(main, f"resume={RUN}", at=stopped).code == 0


@pytest.mark.parametrize("name", ["shards/start.json", "shards/0000000000.npz"])
def test_a_pipe_in_a_run_is_an_error(stopped, command, name):
    (stopped / RUN / name).unlink()
    os.mkfifo(stopped / RUN / name)
    done = command(main, f"resume={RUN}", at=stopped)
    assert done.code == 1 and "Traceback" not in done.err and Path(name).name in done.err.splitlines()[-1], done.err


def test_a_second_process_on_a_run_is_refused(stopped, command):
    holder = Command(hold_lock, str(RUN), at=stopped)
    holder.wait_for_lock(stopped / RUN)
    done = command(main, f"resume={RUN}", at=stopped)
    holder.kill()
    assert done.code == 1 and f"{RUN} is being written by process {holder.pid} on" in done.err
    assert len(shards(stopped)) == 2


def test_a_finished_run_is_not_sampled_again(stopped, command):
    assert command(main, f"resume={RUN}", at=stopped).code == 0
    before = everything(stopped / RUN)
    (stopped / RUN / ".samples.1234.npz").write_bytes(b"half")
    shutil.rmtree(stopped / MODEL)  # nothing of it is needed
    done = command(main, f"resume={RUN}", at=stopped)
    assert done.code == 0 and done.folder == RUN and "nothing is left to do" in done.err
    assert {path for path in everything(stopped / RUN)} == set(before)
    assert command(main, f"resume={RUN}", "n=50", at=stopped).code == 1


def test_a_run_can_be_resumed_after_a_full_disk(stopped, command, monkeypatch):
    def full(path, **arrays):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(numpy, "savez", full)
        done = command(main, f"resume={RUN}", at=stopped)
    assert done.code == 1 and "Traceback" not in done.err
    assert (
        done.err.splitlines()[-1]
        == f"diffguide-sample: cannot write {RUN}/shards/0000000032.npz: No space left on device"
    )
    assert len(list((stopped / RUN / "shards").iterdir())) == 3  # two shards and the beginning, no half file
    assert command(main, f"resume={RUN}", at=stopped).code == 0


def test_the_printed_command_that_resumes_can_be_typed(stopped, command, monkeypatch):
    """Of a run whose folder has a name that a shell and Hydra would take apart."""
    begin = SampleWriter.begin_batch

    def interrupted(self, first):
        os.kill(os.getpid(), signal.SIGTERM)
        return begin(self, first)

    with monkeypatch.context() as patch:
        patch.setattr(SampleWriter, "begin_batch", interrupted)
        done = command(main, *LONG, "name='it is, (odd)'", at=stopped)
    program, *arguments = shlex.split(done.err.splitlines()[-1].partition("continue with: ")[2])
    assert program == "diffguide-sample" and "odd" in arguments[0]
    done = command(main, *arguments, at=stopped)
    assert done.code == 0 and done.folder.name == "v001" and done.folder.parent.name == "it is, (odd)"
