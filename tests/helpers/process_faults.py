"""What happens to a process: for the `prepare` and the `main` of `forked.Command`."""

import errno
import os
import pkgutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy


def kill_in_write(place: str, name: str, number: int) -> None:
    """From now on, the function `name` of a module or class writes half of its so-many-th file, and then comes SIGKILL."""
    owner = pkgutil.resolve_name(place)
    whole, calls = getattr(owner, name), []

    def write(*arguments, **options) -> None:
        whole(*arguments, **options)
        paths = [Path(part) for part in arguments if isinstance(part, str | Path)]
        calls.extend(paths[:1])
        if len(calls) == number:
            os.truncate(calls[-1], os.path.getsize(calls[-1]) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, write)


def kill_in_removal(folder: str, number: int) -> None:
    """From now on, SIGKILL comes before the so-many-th file of a folder of this name is removed."""
    unlink, calls = Path.unlink, []

    def killed(path: Path, **options) -> None:
        if path.parent.name == folder:
            calls.append(path)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        unlink(path, **options)

    Path.unlink = killed


def become_rank(rank: int, port: int, launcher: dict[str, str], disturb: Callable[[], None] | None = None) -> None:
    """From now on, this process is one of two of a launcher, which sets these variables; `disturb` is called last."""
    ranks = {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": "2"}
    os.environ |= ranks | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)} | launcher
    if "TORCHELASTIC_RUN_ID" in launcher:
        os.environ |= {"RANK": str(rank), "GROUP_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    if disturb is not None:
        disturb()


def fail_in_batch(first: int, fault: str) -> None:
    """From now on, sampling has a full disk or gets SIGTERM when the batch begins whose first sample has this number."""
    from diffguide.sampling.run import SampleWriter

    begin = SampleWriter.begin_batch

    def full(path, **arrays) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def disturbed(self, number: int):
        if number == first and fault == "disk full":
            numpy.savez = full
        elif number == first:
            os.kill(os.getpid(), signal.SIGTERM)
        return begin(self, number)

    SampleWriter.begin_batch = disturbed


def hold_lock(arguments: list[str]) -> None:
    """As the `main` of a process: takes the lock of this run folder, and keeps it until a signal ends the process."""
    from diffguide.files.run_folders import lock_run_dir

    with lock_run_dir(Path(arguments[0])):
        signal.pause()


def wait_in_the_building() -> None:
    """From now on, a training says "in" where it would build its components, and waits."""
    from diffguide.cli import training_job

    training_job.build_training_job = lambda cfg: (print("in", flush=True), signal.pause())
