"""Progress on stderr: a bar on a terminal, else a line every few seconds."""

import math
import sys
import threading
import time
from collections.abc import Callable

from tqdm import tqdm

__all__ = ["Heartbeat", "Progress"]

REDRAW_SECONDS = 0.1  # seconds between two redraws of a bar


class Progress:
    """Counts towards `total`, with rate, time left and a few figures.

    Arguments:
        title: name of the work.
        total: number of units.
        unit: name of a unit.
        done: number of units done before.
        every: seconds between lines if stderr is no terminal.
        silent: whether to show nothing (ranks other than 0).
        log: called with every line; None = no log.
    """

    def __init__(
        self,
        title: str,
        total: int,
        unit: str,
        done: int = 0,
        every: float = 5.0,
        silent: bool = False,
        log: Callable[[str], None] | None = None,
    ):
        self.title, self.total, self.unit = title, total, unit
        self.first = self.count = done
        self.every, self.silent, self.log = every, silent, log
        self.started = self.last = time.monotonic()
        self.drawn = -math.inf
        self.bar = None
        if sys.stderr.isatty() and not silent:
            self.bar = tqdm(total=total, initial=done, unit=f" {unit}", desc=title, dynamic_ncols=True)

    def advance(self, n: int) -> None:
        """Counts n more units."""
        self.count += n
        if self.bar is not None:
            self.bar.update(n)

    def show(self, **figures: float) -> None:
        """Shows figures such as the loss: next to the bar, or in a line if the last line is old enough."""
        if self.silent:
            return
        text = " ".join(f"{name} {v if isinstance(v, int) else f'{v:.4g}'}" for name, v in figures.items())
        if self.bar is not None:
            redraw = time.monotonic() - self.drawn >= REDRAW_SECONDS
            self.bar.set_postfix_str(text, refresh=redraw)
            if redraw:
                self.drawn = time.monotonic()
        if time.monotonic() - self.last >= self.every or self.count >= self.total:
            self.last = time.monotonic()
            rate = (self.count - self.first) / max(self.last - self.started, 1e-9)
            left = f"{max(self.total - self.count, 0) / rate:.0f} s left" if rate > 0 else ""
            parts = (
                f"{self.title} {self.count}/{self.total} {self.unit}",
                f"{rate:.2g}/s" if 0 < rate < 10 else f"{rate:.0f}/s",
                text,
                left,
            )
            self.write_line(", ".join(filter(None, parts)), shown=self.bar is None)

    def write_line(self, line: str, shown: bool = True) -> None:
        """Writes a line to the log and, if `shown`, to stderr above the bar."""
        if self.silent:
            return
        if shown:
            tqdm.write(line, file=sys.stderr)
        if self.log is not None:
            self.log(line)

    def show_alive(self) -> None:
        """Shows that the work still runs: refreshes the bar, or writes a line if the last one is old."""
        if self.bar is not None:
            self.bar.refresh()
        elif time.monotonic() - self.last >= 2 * self.every and not self.silent:
            self.last = time.monotonic()
            self.write_line(
                f"{self.title} {self.count}/{self.total} {self.unit}, {self.last - self.started:.0f} s so far"
            )

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


class Heartbeat:
    """Calls a function periodically from its own thread until stopped.

    Arguments:
        beat: the function to call.
        every: seconds between two calls.
    """

    def __init__(self, beat: Callable[[], None], every: float = 1.0):
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.run, args=(beat, every), daemon=True)
        self.thread.start()

    def run(self, beat: Callable[[], None], every: float) -> None:
        while not self.stopped.wait(every):
            beat()

    def stop(self) -> None:
        self.stopped.set()
        self.thread.join()
