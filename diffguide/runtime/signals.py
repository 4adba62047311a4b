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
    """The work has stopped after a signal, with all results saved.

    Attributes:
        name: name of the signal.
        code: exit code, 128 + signal.
        folder: folder of the run, from which it can be resumed; None = unknown.
        again: whether the same command continues, which had more to do than this run.
    """

    folder: Path | None = None
    again: bool = False

    def __init__(self, number: int, where: str):
        super().__init__(where)
        self.name = signal.Signals(number).name
        self.code = 128 + number


class Interrupts:
    """Context in which the first SIGINT or SIGTERM is recorded in `number`; a second one stops the process.

    Outside the main thread, where Python delivers no signals, `number` stays 0.

    Arguments:
        silent: whether to print nothing on a signal (ranks other than 0).

    Attributes:
        number: the signal received, 0 = none.
    """

    def __init__(self, silent: bool = False):
        self.number, self.silent = 0, silent
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self.record) for number in SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}

    def record(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self.__exit__()
        if not self.silent:
            print(
                f"\n{signal.Signals(number).name}: saving, then stopping; a second signal stops at once",
                file=sys.stderr,
            )
