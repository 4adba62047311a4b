"""diffguide-eval: load checkpoints, put a question to them, write the answer with its errors."""

import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from .cli.model_choice import build_oracle, check_model
from .cli.multirun import Sweep, record_job
from .cli.runner import leave, one_line_errors, run_command, tidy
from .config.build import ConfigError, build, check_whole, config_dir, run_parent
from .files.run_folders import WriteError, create_version_dir, lock_run_dir, remove_leftovers, strict_json
from .runtime.signals import Interrupts, Stopped

__all__ = ["evaluate", "main"]

PATIENCE = 5.0  # seconds of a measurement that says nothing, until it is said that it runs


class Run(NamedTuple):
    """One checkpoint and one metric: the subject, the metric, and what identifies both in metrics.json."""

    subject: Any
    metric: Any
    identity: dict[str, Any]
    name: str


def evaluate(cfg: DictConfig) -> None:
    """One metric of one checkpoint, or of several: prints each folder that it wrote, a table's last, on stdout."""
    begun = None
    if cfg.resume is not None:
        from .cli.resume import find_evaluation

        cfg, begun = find_evaluation(cfg)
    check(cfg)
    cfg = OmegaConf.masked_copy(cfg, [key for key in cfg if "oracle" in cfg or key != "schedule"])  # the rest is unused
    if begun is not None and begun.header is None:
        return tidy(begun.folder, "its figures", lambda: remove_parts(begun.folder))
    engine = build(cfg, "engine")
    if engine.world_size > 1:
        raise ConfigError(
            f"engine.devices must be 1, got {engine.world_size}: one process measures; others may measure other checkpoints"
        )
    engine.launch()
    built: dict[str, Any] = {}
    runs = [
        prepare(cfg, engine, begun.file if begun else path, built) for path in paths(cfg)
    ]  # all can, before one does
    folders = []
    for path, run in zip(paths(cfg), runs):
        measured = {"checkpoint": path} | ({"dataset": run.identity["dataset"]} if "dataset" in cfg else {})
        folders.append(measure(OmegaConf.merge(cfg, measured), engine, run, begun))
        print(folders[-1])
    record_job({"folders": list(map(str, folders))})
    if len(folders) > 1 and HydraConfig.get().mode != RunMode.MULTIRUN:
        from .figures.tables import write_comparison

        print(write_comparison([{"folder": str(folder), "overrides": {}} for folder in folders]))


def check(cfg: DictConfig) -> None:
    """What can be said before anything is built.

    Raises:
        ConfigError: a value of the wrong type or range, no checkpoint.
    """
    for key, least in {"batch_size": 1, "seed": 0, "n": 1}.items():
        if key != "n" or cfg.n is not None:  # null = the whole split
            check_whole(cfg, key, least)
    if cfg.split not in ("train", "validation", "test"):
        raise ConfigError(f"split must be train, validation or test, got {cfg.split!r}")
    if "oracle" not in cfg and not (paths(cfg) and all(isinstance(path, str) for path in paths(cfg))):
        raise ConfigError(
            "checkpoint is missing: give checkpoint=outputs/train/<name>/v001, the folder of a training run, a list of "
            "them, checkpoint=[a,b], or oracle=<name>; see --help"
        )
    for path in filter(None, paths(cfg)):
        if "," in path and not Path(path).exists():
            raise ConfigError(
                f"checkpoint: there is no {path}; several are a list, checkpoint=[{path}], or one after another with -m "
                f"checkpoint={path}"
            )
    check_model(cfg)


def paths(cfg: DictConfig) -> list:
    """The checkpoints, one or several; [None] beside an oracle."""
    return OmegaConf.to_container(cfg.checkpoint) if OmegaConf.is_list(cfg.checkpoint) else [cfg.checkpoint]


def prepare(cfg: DictConfig, engine, path: str | Path | None, built: dict[str, Any]) -> Run:
    """The subject, of a checkpoint or of an oracle (path None), and the metric that it can answer.

    Arguments:
        built: data sets, which several checkpoints share.

    Raises:
        ConfigError: a model, data and metric that do not go together.
    """
    from .checkpoints.references import check_guides, with_guides
    from .cli import evaluation_subjects as subjects
    from .cli.resume import trusted

    if "oracle" in cfg:
        (subject, identity), note = subjects.exact(cfg, build_oracle(cfg, engine.device), engine.device), None
        name = HydraConfig.get().runtime.choices["oracle"]
    else:
        subject, note, identity = subjects.trained(cfg, path, engine.device, built)
        name = subject.config["name"]
    try:
        node = OmegaConf.to_container(cfg.metric, resolve=True)
        node, guides = with_guides(node, "metric", engine.device, trusted(cfg))
        check_guides(guides, subject.shape, subject.class_names)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    metric = build({"metric": node}, "metric")
    try:
        metric = metric.of(subject)
        metric.check(subject)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if note:
        print(note, file=sys.stderr)
    identity["guides"] = {guide.key: guide.identity() for guide in guides}
    return Run(subject, metric, identity, name)


def measure(cfg: DictConfig, engine, run: Run, begun) -> Path:
    """Measures, and writes the run folder, which it returns.

    Raises:
        ConfigError: a measurement that cannot end, or a folder that cannot be written.
        SystemExit: after a signal, with everything kept that the metric keeps.
    """
    import torch

    from .evaluation.parts import MetricError, Parts
    from .figures import tables
    from .files.shards import START_FILE
    from .models.protocols import SamplingError
    from .sampling.run import versions

    def fill(folder: Path) -> None:
        OmegaConf.save(cfg, folder / "config.yaml", resolve=True)
        (folder / START_FILE).write_text(strict_json(run.identity) + "\n", encoding="utf-8")

    subject, metric = run.subject, run.metric
    precision = "float64" if "oracle" in cfg else cfg.engine.precision
    with ExitStack() as held:
        try:
            folder = (
                begun.folder if begun else create_version_dir(run_parent(cfg, "evaluate", cfg.name or run.name), fill)
            )
            held.enter_context(lock_run_dir(folder))
            remove_leftovers(folder)
        except OSError as error:
            raise ConfigError(f"{'resume' if begun else 'output_root'}: {error}") from error
        interrupts = held.enter_context(Interrupts())
        parts, bar, started = Parts(folder / "parts"), Bar(metric.name, subject, interrupts), time.monotonic()
        held.callback(bar.close)
        subject.begin(parts, bar)
        try:
            with engine.autocast():
                measured = metric.measure(subject)
            bar.close()
            record = {
                "metric": metric.name, "figures": {name: part._asdict() for name, part in measured.figures.items()},
                "n": subject.n, "seed": subject.seed,
                "evaluations": subject.evaluations, "seconds": time.monotonic() - started + parts.seconds,
                **run.identity, "precision": precision, "device": str(engine.device),
                "batch_size": subject.batch_size, "versions": versions(), "curve": list(measured.curve),
                "details": dict(measured.details), "plots": [tables.plot_to_json(plot) for plot in measured.plots],
                "notes": list(measured.notes),
            }  # fmt: skip
            assert not measured.facts.keys() & record.keys(), "a fact of a metric hides what every run says"
            print(tables.write_run(folder, record | measured.facts, measured.arrays), end="", file=sys.stderr)
            for note in measured.notes:
                print(note, file=sys.stderr)
            remove_parts(folder)
        except Stopped as stopped:
            bar.close()
            leave("diffguide-eval", folder, stopped)
        except (WriteError, MetricError, SamplingError) as error:
            raise ConfigError(f"metric={metric.name}: {error}") from error
        except torch.OutOfMemoryError as error:
            raise ConfigError(f"the device's memory is full: lower batch_size, now {cfg.batch_size}") from error
    return folder


class Bar:
    """How far a measurement is: a bar, and elsewhere lines, for every stage that counts something else.

    Where it is called is where a signal stops it. While the measurement does not call, the clock goes on; until it first
    does, the examples of the subject are what is counted.

    Raises:
        Stopped: there was a signal.
    """

    def __init__(self, title: str, subject, interrupts: Interrupts):
        from .runtime.progress import Heartbeat

        self.title, self.subject, self.interrupts = title, subject, interrupts
        self.progress, self.counts, self.since = None, None, time.monotonic()
        self.lock, self.heartbeat = Lock(), Heartbeat(self.show_alive)

    def __call__(self, done: int, total: int, unit: str) -> None:
        with self.lock:
            self.turn(total, unit)
            self.progress.advance(done - self.progress.count)
            evaluations = self.subject.evaluations
            if total > 1 or self.progress.bar is not None:  # one thing was named when it began
                self.progress.show(**({} if evaluations is None else {"evaluations": evaluations}))
            self.since = time.monotonic()
        if self.interrupts.number:
            raise Stopped(self.interrupts.number, f"{done} of {total} {unit}")

    def turn(self, total: int, unit: str) -> None:
        """To a stage, which may be the one that runs."""
        from .runtime.progress import Progress

        if self.counts != (total, unit):
            if self.progress is not None:
                self.progress.close()
            self.counts, self.progress = (total, unit), Progress(self.title, total, unit)
            self.progress.started = self.since  # the first batch was done since then
            if self.progress.bar is None:
                self.progress.write_line(f"{self.title}: {unit}" if total == 1 else f"{self.title}: {total} {unit}")

    def show_alive(self) -> None:
        with self.lock:
            if self.progress is not None:
                self.progress.show_alive()
            elif time.monotonic() - self.since >= PATIENCE:
                self.turn(self.subject.n, "examples")

    def close(self) -> None:
        self.heartbeat.stop()
        if self.progress is not None:
            self.progress.close()


def remove_parts(folder: Path) -> None:
    """What a finished run needs no more: the parts it was made of, and the mark of its beginning, which is the last."""
    from .evaluation.parts import Parts
    from .files.shards import START_FILE

    Parts(folder / "parts").remove()
    (folder / START_FILE).unlink(missing_ok=True)


class Comparison(Sweep):
    """After a multirun: one table and its plots, in a folder beside the runs."""

    def finish(self, jobs: list[dict]) -> None:
        from .figures.tables import write_comparison

        if jobs:
            runs = [{"folder": folder, "overrides": job["overrides"]} for job in jobs for folder in job["folders"]]
            print(write_comparison(runs))


@hydra.main(version_base="1.3", config_path=config_dir(), config_name="evaluate")
def command(cfg: DictConfig) -> None:
    with one_line_errors("diffguide-eval", cfg):
        evaluate(cfg)


def main(argv: Sequence[str] | None = None) -> None:
    """The console script `diffguide-eval`; argv without the program's name."""
    run_command(command, "diffguide-eval", argv, "evaluate")


if __name__ == "__main__":
    main()
