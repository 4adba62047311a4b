"""metrics.jsonl: its lines, and the means between two lines."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from .run_folders import append_json, convert_write_errors, write_atomically

__all__ = ["MetricsLog", "Meter"]


class Meter:
    """Means of named per-example figures, and timing, since the last reset."""

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.count = 0
        self.fresh = 0  # part of `count` since the last reset, without examples restored from a checkpoint
        self.since = time.monotonic()

    def add(self, figures: dict[str, Tensor]) -> None:
        for name, value in figures.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.sum()  # stays on the device, to avoid a synchronization
        self.count += len(value)
        self.fresh += len(value)

    def totals(self, fabric) -> dict[str, Tensor]:
        """The sums and the count over all devices."""
        count = torch.tensor(float(self.count), device=fabric.device)
        # copies, since all_reduce works in place
        totals = {name: value.clone() for name, value in {**self.sums, "count": count}.items()}
        return totals if fabric.world_size == 1 else fabric.all_reduce(totals, reduce_op="sum")

    def read(self, fabric, batches) -> tuple[dict[str, float], dict[str, float]]:
        """(Means over all devices, images per second and the share of time spent waiting for data)."""
        totals = {name: float(value) for name, value in self.totals(fabric).items()}
        count, seconds = totals.pop("count"), time.monotonic() - self.since
        timing = {
            "images_per_second": self.fresh * fabric.world_size / seconds,
            "data_wait": batches.wait_seconds / seconds,
        }
        batches.wait_seconds = 0.0
        return {name: value / count for name, value in totals.items()}, timing

    def restore(self, totals: dict[str, Tensor], fabric) -> None:
        """Continues from the totals of a checkpoint, on the first device only."""
        if fabric.is_global_zero and totals:
            self.sums = {name: value.to(fabric.device) for name, value in totals.items()}
            self.count = int(self.sums.pop("count"))

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Excludes the time of the block."""
        started = time.monotonic()
        yield
        self.since += time.monotonic() - started


class MetricsLog:
    """The file metrics.jsonl of a run, written by one process.

    Arguments:
        path: the file.
        silent: whether to write nothing (ranks other than 0).
    """

    def __init__(self, path: Path, silent: bool = False):
        self.path, self.silent = path, silent

    def write(self, record: dict) -> None:
        """Appends a line."""
        if not self.silent:
            append_json(self.path, record)

    def flush(self) -> None:
        """Flushes all lines to the disk."""
        if not self.silent and self.path.exists():
            with convert_write_errors(self.path), open(self.path, "rb+") as file:
                os.fsync(file.fileno())

    def truncate(self, images: int, note: dict | None = None, restores: int = 0) -> None:
        """Removes invalid lines and the lines after a checkpoint.

        Arguments:
            images: images seen at the checkpoint.
            note: the last line, appended if absent; None = no such line.
            restores: number of rollbacks before the checkpoint; lines after more rollbacks are removed too.
        """
        if self.silent:
            return
        kept = []
        with convert_write_errors(self.path):
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines() if self.path.exists() else []
        for line in lines:
            try:
                record = json.loads(line)
                if record["images"] <= images and record.get("restores", 0) <= restores:
                    kept.append(line)
            except (ValueError, KeyError, TypeError, AttributeError):
                continue
        if note is not None and not (kept and json.loads(kept[-1]) == note):
            kept.append(json.dumps(note))
        text = "".join(line + "\n" for line in kept)
        write_atomically(self.path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
