"""metrics.jsonl: means since the last line, and what of it belongs to a checkpoint."""

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
    """Means of named per-example figures, and the time they took, since the last reset."""

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.count, self.fresh, self.since = 0, 0, time.monotonic()

    def add(self, figures: dict[str, Tensor]) -> None:
        for name, value in figures.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.sum()  # on the device: reading would wait for it
        self.count += len(value)
        self.fresh += len(value)

    def totals(self, fabric) -> dict[str, Tensor]:
        """The sums and the count over all devices, for a line or a checkpoint."""
        count = torch.tensor(float(self.count), device=fabric.device)
        totals = {name: value.clone() for name, value in {**self.sums, "count": count}.items()}  # reduced in place
        return totals if fabric.world_size == 1 else fabric.all_reduce(totals, reduce_op="sum")

    def read(self, fabric, batches) -> tuple[dict[str, float], dict[str, float]]:
        """The means over all devices, and what a clock says: images per second, share of the time spent on data."""
        totals = {name: float(value) for name, value in self.totals(fabric).items()}
        count, seconds = totals.pop("count"), time.monotonic() - self.since
        timing = {
            "images_per_second": self.fresh * fabric.world_size / seconds,
            "data_wait": batches.wait_seconds / seconds,
        }
        batches.wait_seconds = 0.0
        return {name: value / count for name, value in totals.items()}, timing

    def restore(self, totals: dict[str, Tensor], fabric) -> None:
        """Goes on from a checkpoint's totals; they are kept by the first device."""
        if fabric.is_global_zero and totals:
            self.sums = {name: value.to(fabric.device) for name, value in totals.items()}
            self.count = int(self.sums.pop("count"))

    @contextmanager
    def pause(self) -> Iterator[None]:
        """What happens inside does not count as time."""
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
        """One line."""
        if not self.silent:
            append_json(self.path, record)

    def flush(self) -> None:
        """Everything written so far reaches the disk."""
        if not self.silent and self.path.exists():
            with convert_write_errors(self.path), open(self.path, "rb+") as file:
                os.fsync(file.fileno())

    def truncate(self, images: int, note: dict | None = None, restores: int = 0) -> None:
        """Drops what lies after a checkpoint, a line torn by a kill included; `note` becomes the last line if it is not.

        Arguments:
            restores: how often the run had gone back to a checkpoint; the lines of later times go too.
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
