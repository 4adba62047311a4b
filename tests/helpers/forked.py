"""Real processes of the commands, forked from a server that has imported what they need.

A fresh interpreter takes seconds to import PyTorch; a fork of the server takes none. What is tested of a process (its
signals, its locks, its files, its exit code) is the same; tests of the console scripts start fresh interpreters.
"""

import atexit
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from multiprocessing import forkserver
from pathlib import Path

PRELOADED = ["torch", "hydra.main", "hydra._internal.core_plugins.basic_launcher", "lightning_fabric.strategies",
             "sklearn.datasets", "matplotlib.ticker", "matplotlib.cm", "PIL.PngImagePlugin", "PIL.GifImagePlugin",
             "diffguide.train", "diffguide.sample", "diffguide.cli.training_job", "diffguide.cli.sampling_job",
             "diffguide.training.preflight", "diffguide.datasets.digits", "diffguide.figures.image_grids",
             "diffguide.figures.trajectories", "pytest"]  # fmt: skip
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(PRELOADED)


@atexit.register
def stop_server() -> None:
    """Ends what a failed test left, and waits for the server, so that its CPU time counts as that of the tests."""
    for process in multiprocessing.active_children():
        process.kill()
        process.join()
    forkserver._forkserver._stop()


class Command:
    """A process of one thread that runs `main` with these arguments in a folder; `prepare` is called first.

    Its stdout and stderr go to files beside the folder; `suffix` tells processes in one folder apart.
    """

    def __init__(
        self, main: Callable, *arguments: str, at: Path, prepare: Callable[[], None] | None = None, suffix: str = ""
    ):
        at.mkdir(exist_ok=True)
        self.streams = [at.parent / f".{at.name}{suffix}.{name}" for name in ("out", "err")]
        options = (main, arguments, at, self.streams, prepare)
        self.process = CONTEXT.Process(target=run, args=options, daemon=True)
        self.process.start()
        self.pid = self.process.pid

    @property
    def code(self) -> int | None:
        """The exit code, minus the signal that killed the process; None while it runs."""
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Sends SIGKILL and waits for the end; the process may have ended before, see `code`."""
        self.process.kill()
        self.process.join()

    def wait_for(self, condition: Callable[[], object], seconds: float = 120) -> None:
        """Returns when the condition holds or the process has ended."""
        end = time.monotonic() + seconds
        while not condition() and self.code is None:
            assert time.monotonic() < end, "the process hangs"
            time.sleep(0.002)

    def wait_for_lock(self, run: Path) -> None:
        """Returns when the process has the lock of this run folder, or has ended."""
        lock = run / ".lock"
        self.wait_for(lambda: lock.exists() and str(self.pid) in lock.read_text())

    def finish(self, code: int = 0, seconds: float = 300) -> tuple[str, str]:
        """Waits for the end with this code; returns what was printed on stdout and stderr."""
        self.process.join(seconds)
        out, err = (path.read_text(encoding="utf-8") for path in self.streams)
        assert self.code == code, err
        return out, err


def run(
    main: Callable, arguments: Sequence[str], at: Path, streams: Sequence[Path], prepare: Callable[[], None] | None
) -> None:
    """In the process itself."""
    import torch

    threads = Path(f"/proc/{os.getppid()}/task")
    assert not threads.exists() or len(list(threads.iterdir())) == 1, "the server that forks has threads"
    for number, path in enumerate(streams, 1):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's jobs in the background ignore it
    torch.set_num_threads(1)
    os.chdir(at)
    if prepare is not None:
        prepare()
    main(list(arguments))
