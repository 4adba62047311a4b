"""One measurement, built from its configuration and ready to start."""

import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..figures import tables
from ..files.run_folders import WriteError, create_version_dir, lock_run_dir, remove_leftovers, strict_json
from ..files.shards import START_FILE
from ..models.protocols import SamplingError
from ..runtime.engine import Fabric, inference_autocast
from ..runtime.errors import InputError
from ..runtime.signals import Interrupts, Stopped
from ..runtime.versions import collect_versions
from .bar import Bar
from .metric import EvalContext, Metric
from .parts import MetricError, Parts
from .results import MetricResult

__all__ = ["EvaluationJob", "remove_parts"]


@dataclass
class EvaluationJob:
    """A metric of a checkpoint or an oracle; nothing is written before `run`.

    Arguments:
        context: the model on its data.
        metric: what to measure, checked against the context.
        identity: entries of metrics.json that identify model, data and metric.
        engine: launched Fabric with one process.
        parent: folder of the run's versions.
        config_yaml: text of config.yaml.
        precision: in which the model is evaluated.
        folder: of the run to resume, None = a new run.
    """

    context: EvalContext
    metric: Metric
    identity: Mapping[str, Any]
    engine: Fabric
    parent: Path
    config_yaml: str
    precision: str
    folder: Path | None = None

    def run(self) -> Path:
        """Measures, writes the run folder, and returns it.

        Raises:
            InputError: the measurement failed, or the folder cannot be written.
            Stopped: a signal arrived; finished parts are saved.
        """
        with ExitStack() as held:
            folder = self.claim_folder(held)
            interrupts = held.enter_context(Interrupts())
            parts = Parts(folder / "parts")
            bar = Bar(self.metric.name, self.context, interrupts)
            held.callback(bar.close)
            self.context.begin(parts, bar)
            try:
                started = time.monotonic()
                with inference_autocast(self.engine):
                    result = self.metric.measure(self.context)
                bar.close()
                self.write(folder, result, time.monotonic() - started + parts.seconds)
            except Stopped as stopped:
                stopped.folder = folder
                raise
            except (WriteError, MetricError, SamplingError) as error:
                raise InputError(f"metric={self.metric.name}: {error}") from error
            except torch.OutOfMemoryError as error:
                raise InputError(f"out of memory: use a batch_size below {self.context.batch_size}") from error
        return folder

    def claim_folder(self, held: ExitStack) -> Path:
        """Creates or opens the run folder, and locks it until `held` closes."""
        try:
            folder = self.folder or create_version_dir(self.parent, self.fill)
            held.enter_context(lock_run_dir(folder))
            remove_leftovers(folder)
            return folder
        except OSError as error:
            raise InputError(f"{'resume' if self.folder else 'output_root'}: {error}") from error

    def fill(self, folder: Path) -> None:
        """Writes the first files of a new run folder."""
        (folder / "config.yaml").write_text(self.config_yaml, encoding="utf-8")
        (folder / START_FILE).write_text(strict_json(self.identity) + "\n", encoding="utf-8")

    def write(self, folder: Path, result: MetricResult, seconds: float) -> None:
        """Writes metrics.json and the files beside it, and prints the table and the notes on stderr."""
        context = self.context
        record = {
            "metric": self.metric.name,
            "figures": {name: part._asdict() for name, part in result.figures.items()},
            "n": context.n,
            "seed": context.seed,
            "evaluations": context.evaluations,
            "backward_passes": context.backward_passes,
            "seconds": seconds,
            **self.identity,
            "precision": self.precision,
            "device": str(self.engine.device),
            "batch_size": context.batch_size,
            "versions": collect_versions(),
            "curve": list(result.curve),
            "details": dict(result.details),
            "plots": [tables.plot_to_json(plot) for plot in result.plots],
            "notes": list(result.notes),
        }
        assert not result.facts.keys() & record.keys(), "a fact of the metric has the name of an entry of every run"
        print(tables.write_run(folder, record | result.facts, result.arrays), end="", file=sys.stderr)
        for note in result.notes:
            print(note, file=sys.stderr)
        remove_parts(folder)


def remove_parts(folder: Path) -> None:
    """Removes the parts of a finished run, and then its start file."""
    Parts(folder / "parts").remove()
    (folder / START_FILE).unlink(missing_ok=True)
