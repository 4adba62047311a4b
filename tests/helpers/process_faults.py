"""What happens to a process: for the `prepare` and the `main` of `forked.Command`."""

import importlib
import os
import signal
from functools import partial
from pathlib import Path


def kill_in_write(module: str, name: str, number: int) -> None:
    """From now on, `module.name` writes half of its so-many-th file, and then comes SIGKILL."""
    place = importlib.import_module(module)
    calls: list[Path] = []

    def write(whole, *arguments, **options) -> None:
        whole(*arguments, **options)
        calls.append(next(Path(part) for part in arguments if isinstance(part, str | Path)))
        if len(calls) == number:
            os.truncate(calls[-1], os.path.getsize(calls[-1]) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    setattr(place, name, partial(write, getattr(place, name)))


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


def hold_lock(arguments: list[str]) -> None:
    """As the `main` of a process: takes the lock of this run folder, and keeps it until a signal ends the process."""
    from diffguide.files.run_folders import lock_run_dir

    with lock_run_dir(Path(arguments[0])):
        signal.pause()
