"""Finished parts of a long measurement on disk: a killed measurement loses one part at most."""

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy

from ..files.run_folders import write_atomically
from ..models.protocols import Tally

__all__ = ["MetricError", "Parts"]

EVALUATIONS_KEY, BACKWARD_KEY, SECONDS_KEY = (
    "_evaluations",
    "_backward_passes",
    "_seconds",
)  # arrays besides those of a part


class MetricError(ValueError):
    """A measurement that failed after its start; the message says why, and what to change."""


class Parts:
    """One `<name>.npz` per finished part, written atomically, without pickle.

        arrays = context.parts.load_or_compute(f"{first:010d}", lambda: {"nll": compute(first)})
        context.progress(first + len(arrays["nll"]), context.n, "examples")  # the part is saved: safe to stop here

    Arguments:
        folder: of the files, created with the first one; None = nothing is saved.

    Attributes:
        tally: counts the evaluations, None = they are not counted.
        restored: evaluations and backward passes of the parts that were read from files.
        seconds: computing time of those parts.
    """

    def __init__(self, folder: Path | None):
        self.folder = folder
        self.restored = Tally()
        self.seconds = 0.0
        self.tally: Tally | None = None

    def load_or_compute(self, name: str, compute: Callable[[], dict[str, numpy.ndarray]]) -> dict[str, numpy.ndarray]:
        """Reads the arrays of a part from its file, or computes and writes them.

        Raises:
            MetricError: the file is damaged.
            WriteError: the disk is full, the folder is gone, ...
        """
        if self.folder is None:
            return compute()
        path = self.folder / f"{name}.npz"
        if path.exists():
            return self.read(path)
        before, started = self.count(), time.monotonic()
        arrays = compute()
        evaluations, backward = (now - then for now, then in zip(self.count(), before))
        spent = {
            EVALUATIONS_KEY: numpy.int64(evaluations),
            BACKWARD_KEY: numpy.int64(backward),
            SECONDS_KEY: numpy.float64(time.monotonic() - started),
        }
        self.folder.mkdir(exist_ok=True)
        write_atomically(path, lambda temporary: numpy.savez(temporary, allow_pickle=False, **arrays, **spent))
        return arrays

    def read(self, path: Path) -> dict[str, numpy.ndarray]:
        """Reads the arrays of a file, and adds its cost to `restored` and `seconds`."""
        try:
            with numpy.load(path, allow_pickle=False) as file:
                arrays = dict(file)
            self.restored.evaluations += int(arrays.pop(EVALUATIONS_KEY))
            self.restored.backward_passes += int(arrays.pop(BACKWARD_KEY, 0))  # earlier versions did not count them
            self.seconds += float(arrays.pop(SECONDS_KEY))
        except Exception as error:  # NumPy and zipfile raise many types
            raise MetricError(f"the part {path} is damaged: remove it and resume the run") from error
        return arrays

    def count(self) -> tuple[int, int]:
        """Evaluations and backward passes so far, without those of restored parts."""
        return (0, 0) if self.tally is None else (self.tally.evaluations, self.tally.backward_passes)

    def remove(self) -> None:
        """Removes all parts, and the folder if it is then empty."""
        if self.folder is not None and self.folder.is_dir():
            for path in self.folder.glob("*.npz"):
                path.unlink()
            with suppress(OSError):
                self.folder.rmdir()
