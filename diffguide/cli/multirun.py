"""Multiruns: the notes of their jobs, and the exit code of the whole command."""

import json
import shutil
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, read_write

from ..config.files import to_plain
from ..config.quoting import literal, parse_override
from ..files.run_folders import WriteError, convert_write_errors
from .arguments import task_overrides

__all__ = ["Sweep", "record_job", "remove_notes"]

SWEEPS = ".sweeps"  # in output_root: a temporary folder for each multirun
NOTES = ".jobs"  # in that folder: a note of each job
BEGUN: list[Path] = []  # folders of the multiruns that this process started
CREATED: list[Path] = []  # folders that did not exist before


def record_job(record: dict) -> None:
    """Writes a note of this job for the end of its multirun; does nothing in a single run."""
    hydra = HydraConfig.get()
    if hydra.mode == RunMode.MULTIRUN:
        folder = Path(hydra.sweep.dir) / NOTES
        folder.mkdir(parents=True, exist_ok=True)
        swept = dict(override.lstrip("+").split("=", 1) for override in task_overrides() if "=" in override)
        (folder / f"{hydra.job.num:05d}.json").write_text(json.dumps(record | {"overrides": swept}))


class Sweep(Callback):
    """Start and end of a multirun: creates the folder of the notes, calls `finish`, sets the exit code.

    Jobs are sorted by their numbers; a launcher may run them in parallel.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:  # the signatures are those of Hydra
        folder = Path(config.hydra.sweep.dir)
        if not folder.is_absolute() and folder.parent.name == SWEEPS:  # the default of our files
            folder = output_root(config).expanduser().absolute() / SWEEPS / folder.name
            with read_write(config):
                config.hydra.sweep.dir = str(folder)
                config.hydra.overrides.hydra.append(f"hydra.sweep.dir={literal(str(folder))}")  # the jobs read it
        notes = folder / NOTES
        CREATED.extend(path for path in (folder, *folder.parents) if not path.exists())
        BEGUN.append(folder)
        with exit_on_error(config.hydra.help.app_name), convert_write_errors(notes):
            shutil.rmtree(notes, ignore_errors=True)  # notes of a killed multirun
            notes.mkdir(parents=True)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        files = sorted((Path(config.hydra.sweep.dir) / NOTES).glob("*.json"))
        jobs = [json.loads(file.read_text()) for file in files]
        with exit_on_error(config.hydra.help.app_name):
            self.finish([job for job in jobs if "error" not in job])
        if failed := [job for job in jobs if "error" in job]:
            print(f"{len(failed)} of {len(jobs)} runs failed", file=sys.stderr)
            raise SystemExit(1)

    def finish(self, jobs: list[dict]) -> None:
        """Called with the notes of the finished jobs, after the last one."""


@contextmanager
def exit_on_error(name: str) -> Iterator[None]:
    """Exits with code 1 after an exception, which Hydra would turn into a warning; a WriteError is one line."""
    try:
        yield
    except WriteError as error:
        print(f"{name}: output_root: {error}", file=sys.stderr)
        raise SystemExit(1) from error
    except Exception as error:
        traceback.print_exc()
        raise SystemExit(1) from error


def output_root(config: DictConfig) -> Path:
    """The folder of all runs; the first one of a sweep over output_root."""
    for text in to_plain(config.hydra.overrides.task):
        override = parse_override(text)
        if override and override.key_or_group == "output_root" and override.is_discrete_sweep():
            first = parse_override(f"output_root={next(override.sweep_string_iterator())}")
            return Path(str(first.value() if first else "outputs"))
    root = OmegaConf.select(config, "output_root")
    return Path(root if isinstance(root, str) and root else "outputs")


def remove_notes() -> None:
    """Removes the notes of the multiruns that this process started, and the empty folders that they created."""
    while BEGUN:
        folder = BEGUN.pop()
        shutil.rmtree(folder / NOTES, ignore_errors=True)
        if folder.parent.name == SWEEPS:
            (folder / "multirun.yaml").unlink(missing_ok=True)  # written by the sweeper of Hydra
    for folder in CREATED:
        with suppress(OSError):
            folder.rmdir()
    CREATED.clear()
