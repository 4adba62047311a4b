"""Several runs of one command line: the notes that they leave each other, and how the whole ends."""

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

SWEEPS = ".sweeps"  # in output_root: a folder per multirun, which is there while it runs
NOTES = ".jobs"  # in that folder: what each job leaves for the end
BEGUN: list[Path] = []  # folders of the multiruns of this process
MADE: list[Path] = []  # those of them, and of the folders that they are in, that were not there


def record_job(record: dict) -> None:
    """Leaves a note of this job of a multirun for the end of the sweep; nothing in a single run."""
    hydra = HydraConfig.get()
    if hydra.mode == RunMode.MULTIRUN:
        folder = Path(hydra.sweep.dir) / NOTES
        folder.mkdir(parents=True, exist_ok=True)
        swept = dict(override.lstrip("+").split("=", 1) for override in task_overrides() if "=" in override)
        (folder / f"{hydra.job.num:05d}.json").write_text(json.dumps(record | {"overrides": swept}))


class Sweep(Callback):
    """Beginning and end of a multirun: where its notes lie, what the finished jobs make together, and the exit code.

    Jobs are in the order of their numbers, whoever came first: launchers may run them side by side.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:  # the signatures are Hydra's
        folder = Path(config.hydra.sweep.dir)
        if (
            not folder.is_absolute() and folder.parent.name == SWEEPS
        ):  # as our files say: it belongs to the runs' folder
            folder = output_root(config).expanduser().absolute() / SWEEPS / folder.name
            with read_write(config):
                config.hydra.sweep.dir = str(folder)
                config.hydra.overrides.hydra.append(f"hydra.sweep.dir={literal(str(folder))}")  # for every job
        notes = folder / NOTES
        MADE.extend(path for path in (folder, *folder.parents) if not path.exists())
        BEGUN.append(folder)
        with left_with_code(config.hydra.help.app_name), convert_write_errors(notes):
            shutil.rmtree(notes, ignore_errors=True)  # of a multirun that was killed
            notes.mkdir(parents=True)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        files = sorted((Path(config.hydra.sweep.dir) / NOTES).glob("*.json"))
        jobs = [json.loads(file.read_text()) for file in files]
        with left_with_code(config.hydra.help.app_name):
            self.finish([job for job in jobs if "error" not in job])
        if failed := [job for job in jobs if "error" in job]:
            print(f"{len(failed)} of {len(jobs)} runs failed", file=sys.stderr)
            raise SystemExit(1)

    def finish(self, jobs: list[dict]) -> None:
        """Something from the records of the finished jobs."""


@contextmanager
def left_with_code(name: str) -> Iterator[None]:
    """Ends the command with code 1 where something is raised, which Hydra would make a warning of; files in one line."""
    try:
        yield
    except WriteError as error:
        print(f"{name}: output_root: {error}", file=sys.stderr)
        raise SystemExit(1) from error
    except Exception as error:
        traceback.print_exc()
        raise SystemExit(1) from error


def output_root(config: DictConfig) -> Path:
    """The folder of all runs; of several, the first."""
    for text in to_plain(config.hydra.overrides.task):
        override = parse_override(text)
        if override and override.key_or_group == "output_root" and override.is_discrete_sweep():
            first = parse_override(f"output_root={next(override.sweep_string_iterator())}")
            return Path(str(first.value() if first else "outputs"))
    root = OmegaConf.select(config, "output_root")
    return Path(root if isinstance(root, str) and root else "outputs")


def remove_notes() -> None:
    """Removes what the multiruns that this process began left for their ends, and the folders that they made, if empty."""
    while BEGUN:
        folder = BEGUN.pop()
        shutil.rmtree(folder / NOTES, ignore_errors=True)
        if folder.parent.name == SWEEPS:
            (folder / "multirun.yaml").unlink(missing_ok=True)  # which Hydra's sweeper writes
    for folder in MADE:
        with suppress(OSError):
            folder.rmdir()
    MADE.clear()
