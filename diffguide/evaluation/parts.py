"""Finished parts of a long measurement on disk: a killed measurement loses one part at most."""

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy

from ..files.run_folders import write_atomically
from ..models.protocols import Tally

__all__ = ["MetricError", "Parts"]

EVALUATIONS_KEY, SECONDS_KEY = "_evaluations", "_seconds"  # arrays that every part has besides its own


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
        restored: number of evaluations of the parts that were read from files.
        seconds: computing time of those parts.
    """

    def __init__(self, folder: Path | None):
        self.folder = folder
        self.restored = 0
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
        spent = {
            EVALUATIONS_KEY: numpy.int64(self.count() - before),
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
            self.restored += int(arrays.pop(EVALUATIONS_KEY))
            self.seconds += float(arrays.pop(SECONDS_KEY))
        except Exception as error:  # NumPy and zipfile raise many types
            raise MetricError(f"the part {path} is damaged: remove it and resume the run") from error
        return arrays

    def count(self) -> int:
        return 0 if self.tally is None else self.tally.evaluations

    def remove(self) -> None:
        """Removes all parts, and the folder if it is then empty."""
        if self.folder is not None and self.folder.is_dir():
            for path in self.folder.glob("*.npz"):
                path.unlink()
            with suppress(OSError):
                self.folder.rmdir()
