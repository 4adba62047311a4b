"""Running a command line: how its words are read, how its mistakes are told, how it ends."""

import os
import signal
import sys
import traceback
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from itertools import pairwise
from os.path import abspath
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException
from yaml import YAMLError

from ..config import diagnose as mistakes
from ..config import experiments as recipes
from ..config.build import ConfigError, config_dir, config_errors
from ..config.files import dotted, loader_of, quick_listing
from ..config.quoting import quote_odd, quoted
from ..files.run_folders import lock_run_dir, remove_leftovers
from ..nodes.old_names import stated
from ..nodes.user_modules import searching
from ..runtime.errors import InputError
from ..runtime.signals import Stopped
from . import help as option_help
from . import stray_words
from .arguments import read_flags, typed
from .multirun import record_job, remove_notes
from .spelling import rename_options, respelled

__all__ = ["leave", "one_line_errors", "run_command", "tidy", "typed"]

FULL = "HYDRA_FULL_ERROR"  # 1 makes Hydra raise what it would print
USERS = "DIFFGUIDE_USERS_FULL_ERROR"  # what the user had set it to, while we have set it
TOLD = (HydraException, OmegaConfBaseException, YAMLError, OSError, ValueError)  # what composing raises


@contextmanager
def one_line_errors(name: str, cfg: DictConfig) -> Iterator[None]:
    """Around a whole command: tells a ConfigError in one line on stderr and leaves with code 1.

    HYDRA_FULL_ERROR=1 lets the traceback through. In a multirun the other jobs go on, and the whole leaves with code 1
    at its end (`Sweep`).
    """
    users = os.environ.get(USERS)
    with nullcontext() if users is None else variables({FULL: users or None, USERS: None}):
        try:
            with searching(targets(OmegaConf.to_container(cfg)), own_folders()):
                check_composed(cfg)
                state(cfg)
                yield
        except Stopped as stopped:
            leave(name, stopped)
        except InputError as error:
            if os.environ.get(FULL) == "1":
                raise
            print(f"{name}: {error}", file=sys.stderr)
            if HydraConfig.get().mode != RunMode.MULTIRUN:
                raise SystemExit(1) from error
            record_job({"error": str(error)})


def targets(tree: Any) -> Iterator[str]:
    """The dotted names in what was composed: ours, and those that the user typed or wrote into a file, trust among them.

    A saved configuration has not been read yet: what it names is not among them.
    """
    for key, part in tree.items() if isinstance(tree, dict) else enumerate(tree):
        if key in ("_target_", "trust"):
            yield from (name for name in (part if isinstance(part, list) else [part]) if isinstance(name, str))
        elif isinstance(part, dict | list):
            yield from targets(part)


def own_folders() -> list[str]:
    """Where modules of the user's own may lie: the working folder, and those of the configuration files that are not ours."""
    sources = HydraConfig.get().runtime.config_sources
    return [".", *(part.path for part in sources if part.schema == "file" and part.path != config_dir())]


def check_composed(cfg: DictConfig) -> None:
    """What Hydra lets pass: keys that nothing reads, two options at once, what cannot be left out, broken `${...}`.

    Raises:
        ConfigError: such a mistake.
    """
    hydra = HydraConfig.get()
    odd = [text for text in typed() if text[:1] in "+~" or "=[" in text]
    keys = list(dotted(OmegaConf.to_container(cfg)))
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


def leave(name: str, stopped: Stopped) -> NoReturn:
    """Ends a command that a signal stopped: how to go on on stderr, the run folder on stdout, the code that a shell expects."""
    resume = quoted(f"resume={stopped.folder}")
    print(f"{stopped.name} after {stopped}; continue with: {name} {resume}", file=sys.stderr)
    print(stopped.folder)
    raise SystemExit(stopped.code) from stopped


def tidy(folder: Path, has: str, remove: Callable[[], None]) -> None:
    """Says that a finished run `has` everything, and removes what a process that was killed then may have left."""
    with config_errors("resume"), lock_run_dir(folder):
        remove_leftovers(folder)
        remove()
    print(f"nothing is left to do: {folder} has {has}", file=sys.stderr)
    print(folder)


def run_command(
    command: Callable[[], None], name: str, argv: Sequence[str] | None = None, config_name: str | None = None
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
    saved, config_name = sys.argv, config_name or name.removeprefix("diffguide-")
    words = respelled(quote_odd(saved[1:] if argv is None else argv))
    words = rename_options(words, [config_dir(), *own_config_dirs(words)])
    sys.argv = [name if argv is not None else saved[0], *words]
    try:
        if os.environ.get(FULL) == "1":
            return run_words(command, words, config_name)
        with variables({FULL: "1", USERS: os.environ.get(FULL, "")}), quick_listing():
            told(command, words, name, config_name)
    finally:
        sys.argv = saved
        remove_notes()


def own_config_dirs(words: Sequence[str]) -> list[str]:
    """The folders behind --config-dir, read before the flags are, which may be wrong."""
    spaced = [folder for flag, folder in pairwise(words) if flag in ("--config-dir", "-cd")]
    return spaced + [word.partition("=")[2] for word in words if word.startswith("--config-dir=")]


def run_words(command: Callable[[], None], words: Sequence[str], config_name: str) -> None:
    """Runs a Hydra entry point, or prints the help that is asked for.

    Raises:
        ConfigError: words that are neither a flag nor key=value.
    """
    try:
        flags, sys.argv[1:] = read_flags(words)
    except ConfigError as error:
        loader = loader_of(config_dir(), None)
        raise ConfigError(stray_words.explain(words, loader, config_name) or f"{error}; see --help") from error
    if flags.help:
        name = flags.config_name or config_name
        print(option_help.text(loader_for(flags), name, flags.overrides, flags.resolve), end="", flush=True)
        return
    if mistake := stray_words.explain(words, loader_for(flags), flags.config_name or config_name):
        raise ConfigError(mistake)
    command()


def told(command: Callable[[], None], words: Sequence[str], name: str, config_name: str) -> None:
    """Runs a command; tells a mistake, and an interrupt, in one line."""
    task = command.__wrapped__.__code__
    try:
        run_words(command, words, config_name)
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:  # --help | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(128 + signal.SIGPIPE) from None
    except Exception as error:
        if any(frame.f_code is task for frame, _ in traceback.walk_tb(error.__traceback__)):
            raise  # not Hydra's, which composes before the task and after it
        mistake = None if isinstance(error, ConfigError) else mistake_of(words, config_name)
        if mistake is None and not isinstance(error, TOLD):
            raise
        print(f"{name}: {' '.join((mistake or mistakes.brief(error)).split())}", file=sys.stderr)
        raise SystemExit(1) from error


def loader_for(flags: Namespace) -> ConfigLoader:
    """What reads the configuration files of a command line."""
    return loader_of(flags.config_path or config_dir(), flags.config_dir and abspath(flags.config_dir))


def mistake_of(words: Sequence[str], config_name: str) -> str | None:
    """The mistake in a command line that Hydra could not compose, where it is to be found."""
    with suppress(*TOLD):
        flags, _ = read_flags(words)
        overrides = [word for word in flags.overrides if "=" in word or not flags.help]
        found = mistakes.find(overrides, loader_for(flags), flags.config_name or config_name, flags.multirun)
        return found
