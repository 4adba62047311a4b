"""Running a command line: how its mistakes are told, what its multiruns leave, how it ends."""

import json
import os
import shutil
import sys
import traceback
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from os.path import abspath
from pathlib import Path
from typing import Any, NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException
from yaml import YAMLError

from . import mistakes, recipes
from .configuration import ConfigError, config_dir, telling
from .interrupts import Stopped
from .old_keys import stated
from .quoting import quote_odd, quoted
from .runs import only_writer, remove_leftovers
from .spelling import respelled

__all__ = ["Sweep", "leave", "one_line_errors", "record_job", "run_command", "tidy", "typed"]

FULL = "HYDRA_FULL_ERROR"  # 1 makes Hydra raise what it would print
USERS = "DIFFGUIDE_USERS_FULL_ERROR"  # what the user had set it to, while we have set it
TOLD = (HydraException, OmegaConfBaseException, YAMLError, OSError, ValueError)  # what composing raises
SWEEPS: list[Path] = []  # folders of notes that the multiruns of this process leave


@contextmanager
def one_line_errors(name: str, cfg: DictConfig) -> Iterator[None]:
    """Around a whole command: tells a ConfigError in one line on stderr and leaves with code 1.

    HYDRA_FULL_ERROR=1 lets the traceback through. In a multirun the other jobs go on, and the whole leaves with code 1
    at its end (`Sweep`).
    """
    users = os.environ.get(USERS)
    with nullcontext() if users is None else variables({FULL: users or None, USERS: None}):
        try:
            check_composed(cfg)
            state(cfg)
            yield
        except ConfigError as error:
            if os.environ.get(FULL) == "1":
                raise
            print(f"{name}: {error}", file=sys.stderr)
            if HydraConfig.get().mode != RunMode.MULTIRUN:
                raise SystemExit(1) from error
            record_job({"error": str(error)})


def typed() -> list[str]:
    """The overrides of this job as they were typed; iterating over Hydra's list would resolve `${...}`."""
    return OmegaConf.to_container(HydraConfig.get().overrides.task)


def check_composed(cfg: DictConfig) -> None:
    """What Hydra lets pass: keys that nothing reads, two options at once, what cannot be left out, broken `${...}`.

    Raises:
        ConfigError: such a mistake.
    """
    hydra = HydraConfig.get()
    odd = [text for text in typed() if text[:1] in "+~" or "=[" in text]
    keys = list(mistakes.dotted(OmegaConf.to_container(cfg)))
    if GlobalHydra.instance().is_initialized():
        loader, said = GlobalHydra.instance().config_loader(), [text.lstrip("+").split("=")[0] for text in typed()]
        mistake = recipes.unfit(loader, hydra.runtime.choices, said, keys)
        if not mistake:
            mistake = recipes.lacking(loader, hydra.runtime.choices, OmegaConf.to_container(cfg))
        if odd and not mistake:  # composing once more takes a tenth of a second
            mistake = mistakes.find(typed(), loader, hydra.job.config_name, sweep=False)
        if mistake:
            raise ConfigError(mistake)
    for key in keys:
        try:
            with suppress(InterpolationToMissingValueError):  # building what has no value yet asks for it by name
                OmegaConf.select(cfg, key)
        except OmegaConfBaseException as error:
            raise ConfigError(f"{key}: {str(error).splitlines()[0]}; give {key}=<value>") from error


def state(cfg: DictConfig) -> None:
    """Writes into a composed configuration what a file of the user's, of an earlier version, leaves out or names otherwise."""
    raw = OmegaConf.to_container(cfg, resolve=False)
    with open_dict(cfg):
        for key, node in raw.items():
            if isinstance(node, dict) and (now := stated(node)) != node:
                cfg[key] = now


@contextmanager
def variables(values: dict[str, str | None]) -> Iterator[None]:
    """Sets environment variables, None = absent, and puts them back."""
    before = {name: os.environ.get(name) for name in values}

    def put(wanted: dict[str, str | None]) -> None:
        for name, value in wanted.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value

    put(values)
    try:
        yield
    finally:
        put(before)


def leave(name: str, folder: Path, stopped: Stopped) -> NoReturn:
    """Ends a command that a signal stopped: how to go on on stderr, the run folder on stdout, the code that a shell expects."""
    print(f"{stopped.name} after {stopped}; continue with: {name} {quoted(f'resume={folder}')}", file=sys.stderr)
    print(folder)
    raise SystemExit(stopped.code) from stopped


def tidy(folder: Path, has: str, remove: Callable[[], None]) -> None:
    """Says that a finished run `has` everything, and removes what a process that was killed then may have left."""
    with telling("resume"), only_writer(folder):
        remove_leftovers(folder)
        remove()
    print(f"nothing is left to do: {folder} has {has}", file=sys.stderr)
    print(folder)


def record_job(record: dict) -> None:
    """Leaves a note of this job of a multirun for the end of the sweep; nothing in a single run."""
    hydra = HydraConfig.get()
    if hydra.mode == RunMode.MULTIRUN:
        folder = Path(hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        swept = dict(override.lstrip("+").split("=", 1) for override in typed() if "=" in override)
        (folder / f"{hydra.job.num:05d}.json").write_text(json.dumps(record | {"overrides": swept}))


class Sweep(Callback):
    """The end of a multirun: what the finished jobs make together, and the exit code."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:  # the signatures are Hydra's
        SWEEPS.append(Path(config.hydra.sweep.dir))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        jobs = [json.loads(file.read_text()) for file in sorted(folder.glob("[0-9]*.json"))]
        self.finish([job for job in jobs if "error" not in job])
        if failed := [job for job in jobs if "error" in job]:
            print(f"{len(failed)} of {len(jobs)} runs failed", file=sys.stderr)
            raise SystemExit(1)

    def finish(self, jobs: list[dict]) -> None:
        """Something from the records of the finished jobs."""


def run_command(
    command: Callable[[], None], name: str, argv: Sequence[str] | None, config_name: str | None = None
) -> None:  # fmt: skip
    """Runs a Hydra entry point on `argv` (None = the process's own arguments), as the console script does.

    Hydra is made to raise what it would print; its mistakes are told in one line, what a command itself did not foresee
    keeps its traceback. Where the user has set HYDRA_FULL_ERROR=1, nothing is caught.

    Arguments:
        name: of the console script.
        config_name: of the primary configuration; None = what follows diffguide- in the name.

    Raises:
        SystemExit: with code 1 and a message on stderr where the input is wrong, with 130 after an interrupt.
    """
    warnings.filterwarnings("ignore", r"`torch\.jit", FutureWarning)  # torch warns of what torch itself calls
    saved = sys.argv
    sys.argv = [name if argv is not None else saved[0], *respelled(quote_odd(saved[1:] if argv is None else argv))]
    try:
        if os.environ.get(FULL) == "1":
            return command()
        with variables({FULL: "1", USERS: os.environ.get(FULL, "")}), mistakes.quick_listing():
            told(command, name, config_name or name.removeprefix("diffguide-"))
    finally:
        sys.argv = saved
        remove_sweeps()


def told(command: Callable[[], None], name: str, config_name: str) -> None:
    """Runs a command; tells a mistake, and an interrupt, in one line."""
    parser, task = get_args_parser(), command.__wrapped__.__code__
    parser.error = refuse_flags
    try:
        flags = parser.parse_args(sys.argv[1:])
        command()
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        if any(frame.f_code is task for frame, _ in traceback.walk_tb(error.__traceback__)):
            raise  # not Hydra's, which composes before the task and after it
        mistake = None if isinstance(error, ConfigError) else mistake_of(flags, config_name)
        if mistake is None and not isinstance(error, TOLD):
            raise
        print(f"{name}: {' '.join((mistake or mistakes.brief(error)).split())}", file=sys.stderr)
        raise SystemExit(1) from error


def mistake_of(flags: Namespace, config_name: str) -> str | None:
    """The mistake in a command line that Hydra could not compose, where it is to be found."""
    loader = mistakes.loader_of(flags.config_path or config_dir(), flags.config_dir and abspath(flags.config_dir))
    with suppress(*TOLD):
        found = mistakes.find(flags.overrides, loader, flags.config_name or config_name, flags.multirun)
        return found


def refuse_flags(message: str) -> None:
    """What Hydra's parser of flags calls in place of printing its usage."""
    tip = "; keys have no dashes, key=value" if "unrecognized arguments: --" in message else ""
    raise ConfigError(f"{message}{tip}; see --help")


def remove_sweeps() -> None:
    """Removes the notes of the multiruns that this process began, however they ended."""
    while SWEEPS:
        folder = SWEEPS.pop()
        shutil.rmtree(folder, ignore_errors=True)
        for parent in (folder.parent, folder.parent.parent):  # .sweeps, and outputs where all went elsewhere
            with suppress(OSError):
                parent.rmdir()
