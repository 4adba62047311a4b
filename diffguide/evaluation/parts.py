"""Finished parts of a long measurement on disk, so that a killed one loses a single part."""

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy

from ..files.run_folders import write_atomically
from ..models.protocols import Tally

__all__ = ["MetricError", "Parts"]

EVALUATIONS_KEY, SECONDS_KEY = "_evaluations", "_seconds"  # of every part, beside its own arrays


class MetricError(ValueError):
    """A measurement that has begun and cannot be finished; the message says why, and what to change."""


class Parts:
    """One `<name>.npz` per finished part, written atomically, without pickle.

        arrays = context.parts.part(f"{first:010d}", lambda: {"nll": compute(first)})
        context.progress(first + len(arrays["nll"]), context.n, "examples")  # here, where the part is kept

    Arguments:
        folder: of the files, created with the first one; None = nothing is kept.

    Attributes:
        tally: of the evaluations, None = they are not counted.
        restored: evaluations of the parts that were read from files.
        seconds: that those took.
    """

    def __init__(self, folder: Path | None):
        self.folder, self.restored, self.seconds = folder, 0, 0.0
        self.tally: Tally | None = None

    def part(self, name: str, compute: Callable[[], dict[str, numpy.ndarray]]) -> dict[str, numpy.ndarray]:
        """The arrays of a part: read from its file, or computed and written.

        Raises:
            MetricError: a file that is damaged.
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
        """The arrays of a file, whose cost is added up."""
        try:
            with numpy.load(path, allow_pickle=False) as file:
                arrays = dict(file)
            self.restored += int(arrays.pop(EVALUATIONS_KEY))
            self.seconds += float(arrays.pop(SECONDS_KEY))
        except Exception as error:  # NumPy and zipfile raise many kinds
            raise MetricError(f"the part {path} is damaged: remove it and resume the run") from error
        return arrays

    def count(self) -> int:
        return 0 if self.tally is None else self.tally.evaluations

    def remove(self) -> None:
        """Removes all parts, and the folder unless something else is in it."""
        if self.folder is not None and self.folder.is_dir():
            for path in self.folder.glob("*.npz"):
                path.unlink()
            with suppress(OSError):
                self.folder.rmdir()
