"""The progress bar of a measurement. A signal stops the measurement when progress is reported."""

import time
from threading import Lock

from ..runtime.progress import Heartbeat, Progress
from ..runtime.signals import Interrupts, Stopped
from .metric import EvalContext

__all__ = ["Bar"]

SILENT_SECONDS = 5.0  # without a report, after which a line says that the measurement runs


class Bar:
    """Progress bar, or lines if stderr is not a terminal; it restarts when the unit or the total changes.

    A heartbeat keeps the clock running between reports. Before the first report the bar counts the examples of the context.

    Raises:
        Stopped: from a call, if a signal has arrived.
    """

    def __init__(self, title: str, context: EvalContext, interrupts: Interrupts):
        self.title, self.context, self.interrupts = title, context, interrupts
        self.progress: Progress | None = None
        self.counts: tuple[int, str] | None = None
        self.since = time.monotonic()
        self.lock = Lock()  # before the thread that needs it
        self.heartbeat = Heartbeat(self.beat)

    def __call__(self, done: int, total: int, unit: str) -> None:
        with self.lock:
            progress = self.start_stage(total, unit)
            new = done - progress.count
            progress.advance(new)
            evaluations = self.context.evaluations
            printed = new == 0 and done == total or total == 1  # a stage of one unit was printed at its start
            if progress.bar is not None or not printed:
                progress.show(**({} if evaluations is None else {"evaluations": evaluations}))
            self.since = time.monotonic()
        if self.interrupts.number:
            raise Stopped(self.interrupts.number, f"{done} of {total} {unit}")

    def start_stage(self, total: int, unit: str) -> Progress:
        """Returns the progress of the current stage, or starts a new one."""
        if self.progress is not None and self.counts == (total, unit):
            return self.progress
        if self.progress is not None:
            self.progress.close()
        self.counts = (total, unit)
        self.progress = Progress(self.title, total, unit)
        self.progress.started = self.since  # includes the time of the first batch
        if self.progress.bar is None:
            self.progress.write_line(f"{self.title}: {unit}" if total == 1 else f"{self.title}: {total} {unit}")
        return self.progress

    def beat(self) -> None:
        """Shows that the measurement is still running."""
        with self.lock:
            if self.progress is not None:
                self.progress.show_alive()
            elif time.monotonic() - self.since >= SILENT_SECONDS:
                self.start_stage(self.context.n, "examples")

    def close(self) -> None:
        self.heartbeat.stop()
        if self.progress is not None:
            self.progress.close()
