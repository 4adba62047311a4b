"""The progress of a measurement, which is where a signal stops it."""

import time
from threading import Lock

from ..runtime.progress import Heartbeat, Progress
from ..runtime.signals import Interrupts, Stopped
from .metric import Subject

__all__ = ["Bar"]

SILENT_SECONDS = 5.0  # of a measurement that reports nothing, before a line says that it runs


class Bar:
    """Progress bar, or lines where stderr is no terminal; it restarts when the unit changes.

    A heartbeat keeps the clock running while the measurement does not report. Until it first does, the examples of the
    subject are what is counted.

    Raises:
        Stopped: from a call, if a signal has arrived.
    """

    def __init__(self, title: str, subject: Subject, interrupts: Interrupts):
        self.title, self.subject, self.interrupts = title, subject, interrupts
        self.progress: Progress | None = None
        self.counts: tuple[int, str] | None = None
        self.since = time.monotonic()
        self.lock, self.heartbeat = Lock(), Heartbeat(self.beat)

    def __call__(self, done: int, total: int, unit: str) -> None:
        with self.lock:
            progress = self.start_stage(total, unit)
            progress.advance(done - progress.count)
            evaluations = self.subject.evaluations
            if total > 1 or progress.bar is not None:  # one thing was named when it began
                progress.show(**({} if evaluations is None else {"evaluations": evaluations}))
            self.since = time.monotonic()
        if self.interrupts.number:
            raise Stopped(self.interrupts.number, f"{done} of {total} {unit}")

    def start_stage(self, total: int, unit: str) -> Progress:
        """The progress of a stage: the one that runs, or a new one."""
        if self.progress is not None and self.counts == (total, unit):
            return self.progress
        if self.progress is not None:
            self.progress.close()
        self.counts, self.progress = (total, unit), Progress(self.title, total, unit)
        self.progress.started = self.since  # the first batch was done since then
        if self.progress.bar is None:
            self.progress.say(f"{self.title}: {unit}" if total == 1 else f"{self.title}: {total} {unit}")
        return self.progress

    def beat(self) -> None:
        """Shows that the measurement still runs."""
        with self.lock:
            if self.progress is not None:
                self.progress.beat()
            elif time.monotonic() - self.since >= SILENT_SECONDS:
                self.start_stage(self.subject.n, "examples")

    def close(self) -> None:
        self.heartbeat.stop()
        if self.progress is not None:
            self.progress.close()
