"""One measurement, built from its configuration and ready to start."""

import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from ..figures import tables
from ..files.run_folders import WriteError, claim_version, only_writer, remove_leftovers, strict_json
from ..files.shards import START
from ..models.protocols import SamplingError
from ..runtime.errors import InputError
from ..runtime.signals import Interrupts, Stopped
from ..runtime.versions import versions
from .bar import Bar
from .metric import Measured, Metric, Subject
from .parts import MetricError, Parts

__all__ = ["Device", "EvaluationJob", "remove_parts"]


class Device(Protocol):
    """What a measurement needs of Fabric."""

    @property
    def device(self) -> torch.device: ...

    def autocast(self) -> AbstractContextManager[None]: ...


@dataclass
class EvaluationJob:
    """A metric of a checkpoint or an oracle; nothing is written before `run`.

    Arguments:
        subject: the model on its data.
        metric: what to measure, checked against the subject.
        identity: what identifies both in metrics.json.
        engine: launched Fabric, of one process.
        parent: folder of the run's versions.
        config_yaml: text of config.yaml.
        precision: in which the model is evaluated.
        folder: of the run to resume, None = a new run.
    """

    subject: Subject
    metric: Metric
    identity: Mapping[str, Any]
    engine: Device
    parent: Path
    config_yaml: str
    precision: str
    folder: Path | None = None

    def run(self) -> Path:
        """Measures, and writes the run folder, which it returns.

        Raises:
            InputError: a measurement that cannot end, or a folder that cannot be written.
            Stopped: a signal came; everything is kept that the metric keeps.
        """
        with ExitStack() as held:
            folder = self.claim_folder(held)
            interrupts = held.enter_context(Interrupts())
            parts = Parts(folder / "parts")
            bar = Bar(self.metric.name, self.subject, interrupts)
            held.callback(bar.close)
            self.subject.begin(parts, bar)
            try:
                started = time.monotonic()
                with self.engine.autocast():
                    measured = self.metric.measure(self.subject)
                bar.close()
                self.write(folder, measured, time.monotonic() - started + parts.seconds)
            except Stopped as stopped:
                stopped.folder = folder
                raise
            except (WriteError, MetricError, SamplingError) as error:
                raise InputError(f"metric={self.metric.name}: {error}") from error
            except torch.OutOfMemoryError as error:
                lower = f"lower batch_size, now {self.subject.batch_size}"
                raise InputError(f"the device's memory is full: {lower}") from error
        return folder

    def claim_folder(self, held: ExitStack) -> Path:
        """The run folder, locked until `held` closes."""
        try:
            folder = self.folder or claim_version(self.parent, self.fill)
            held.enter_context(only_writer(folder))
            remove_leftovers(folder)
            return folder
        except OSError as error:
            raise InputError(f"{'resume' if self.folder else 'output_root'}: {error}") from error

    def fill(self, folder: Path) -> None:
        """Writes what a new run folder begins with."""
        (folder / "config.yaml").write_text(self.config_yaml, encoding="utf-8")
        (folder / START).write_text(strict_json(self.identity) + "\n", encoding="utf-8")

    def write(self, folder: Path, measured: Measured, seconds: float) -> None:
        """Writes metrics.json and what belongs to it, and shows the table and the notes on stderr."""
        subject = self.subject
        record = {
            "metric": self.metric.name,
            "figures": {name: part._asdict() for name, part in measured.figures.items()},
            "n": subject.n,
            "seed": subject.seed,
            "evaluations": subject.evaluations,
            "seconds": seconds,
            **self.identity,
            "precision": self.precision,
            "device": str(self.engine.device),
            "batch_size": subject.batch_size,
            "versions": versions(),
            "curve": list(measured.curve),
            "details": dict(measured.details),
            "plots": [tables.plain(plot) for plot in measured.plots],
            "notes": list(measured.notes),
        }
        assert not measured.facts.keys() & record.keys(), "a fact of a metric hides what every run says"
        print(tables.write_run(folder, record | measured.facts, measured.arrays), end="", file=sys.stderr)
        for note in measured.notes:
            print(note, file=sys.stderr)
        remove_parts(folder)


def remove_parts(folder: Path) -> None:
    """Removes what a finished run no longer needs: its parts, and last the mark of its beginning."""
    Parts(folder / "parts").remove()
    (folder / START).unlink(missing_ok=True)
