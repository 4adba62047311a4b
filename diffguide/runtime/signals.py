"""Deferred handling of SIGINT and SIGTERM: the work stops at its next safe point."""

import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

__all__ = ["Interrupts", "Stopped"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):
    """The work has stopped at a signal, and everything is saved.

    Attributes:
        code: the exit code that a shell expects, 128 + signal.
        folder: of the run that resumes it, once it is known.
    """

    folder: Path | None = None

    def __init__(self, number: int, where: str):
        super().__init__(where)
        self.name, self.code = signal.Signals(number).name, 128 + number


class Interrupts:
    """with Interrupts() as interrupts: ... `interrupts.number` is the first signal received, 0 = none.

    A second signal acts at once. Outside the main thread, where Python delivers no signals, it stays 0.

    Arguments:
        silent: whether to print nothing on a signal (ranks other than 0).
    """

    def __init__(self, silent: bool = False):
        self.number, self.silent = 0, silent
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self.note) for number in SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}

    def note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self.__exit__()
        if not self.silent:
            print(
                f"\n{signal.Signals(number).name}: saving, then stopping; a second signal stops at once",
                file=sys.stderr,
            )
