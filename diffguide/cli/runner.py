"""Running a command line: how its words are read, how its mistakes are reported, how it ends."""

import io
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stderr
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict

from ..config.build import ConfigError, config_dir
from ..config.composed import check_composed
from ..config.diagnose import explain
from ..config.files import ConfigFiles, plain
from ..config.quoting import quote, quote_odd
from ..files.run_folders import lock_run_dir, remove_leftovers
from ..nodes.old_names import stated
from ..nodes.user_modules import searching
from ..runtime.errors import InputError, input_errors
from ..runtime.signals import Stopped
from .arguments import files_of, read_flags, typed
from .help import help_text
from .multirun import record_job, remove_notes
from .spelling import rename_options, respell
from .stray_words import explain_stray_word

__all__ = ["leave", "one_line_errors", "run_command", "tidy", "typed"]

FULL = "HYDRA_FULL_ERROR"  # 1: nothing is caught
COMPOSING = ExitStack()  # open until the task begins; holds back what Hydra prints about what it cannot compose
UNFORESEEN: list[Exception] = []  # of a single run, raised again when Hydra, which would print them, has ended


@contextmanager
def one_line_errors(name: str, cfg: DictConfig) -> Iterator[None]:
    """Around a whole command: reports a ConfigError in one line on stderr and exits with code 1.

    HYDRA_FULL_ERROR=1 lets the traceback through. In a multirun the other jobs go on, and the whole exits with code 1
    at its end (`Sweep`).
    """
    COMPOSING.close()
    hydra = HydraConfig.get()
    try:
        with searching(find_targets(plain(cfg)), own_folders()):
            check_composed(cfg, hydra.runtime.choices, typed(), ConfigFiles.of_this_run())
            state_added_keys(cfg)
            yield
    except Stopped as stopped:
        leave(name, stopped)
    except InputError as error:
        if os.environ.get(FULL) == "1":
            raise
        print(f"{name}: {error}", file=sys.stderr)
        if hydra.mode != RunMode.MULTIRUN:
            raise SystemExit(1) from error
        record_job({"error": str(error)})
    except Exception as error:
        if hydra.mode == RunMode.MULTIRUN or os.environ.get(FULL) == "1":
            raise
        UNFORESEEN.append(error)


def find_targets(tree: Any) -> Iterator[str]:
    """The dotted names in what was composed: ours, and those that the user typed or wrote into a file, trust among them.

    A saved configuration has not been read yet: what it names is not among them.
    """
    for key, part in tree.items() if isinstance(tree, dict) else enumerate(tree):
        if key in ("_target_", "trust"):
            yield from (name for name in (part if isinstance(part, list) else [part]) if isinstance(name, str))
        elif isinstance(part, dict | list):
            yield from find_targets(part)


def own_folders() -> list[str]:
    """Where modules of the user's own may lie: the working folder, and those of the configuration files that are not ours."""
    sources = HydraConfig.get().runtime.config_sources
    return [".", *(part.path for part in sources if part.schema == "file" and part.path != config_dir())]


def state_added_keys(cfg: DictConfig) -> None:
    """Writes into a composed configuration what a file of the user's, of an earlier version, leaves out or names otherwise."""
    with open_dict(cfg):
        for key, node in plain(cfg).items():
            if isinstance(node, dict) and (now := stated(node)) != node:
                cfg[key] = now


def leave(name: str, stopped: Stopped) -> NoReturn:
    """Ends a command that a signal stopped: how to go on on stderr, the run folder on stdout, the code that a shell expects."""
    resume = quote(f"resume={stopped.folder}")
    print(f"{stopped.name} after {stopped}; continue with: {name} {resume}", file=sys.stderr)
    print(stopped.folder)
    raise SystemExit(stopped.code) from stopped


def tidy(folder: Path, has: str, remove: Callable[[], None]) -> None:
    """Says that a finished run `has` everything, and removes what a process that was killed then may have left."""
    with input_errors("resume"), lock_run_dir(folder):
        remove_leftovers(folder)
        remove()
    print(f"nothing is left to do: {folder} has {has}", file=sys.stderr)
    print(folder)


def run_command(
    command: Callable[[], None], name: str, argv: Sequence[str] | None = None, config_name: str | None = None
) -> None:  # fmt: skip
    """Runs a Hydra entry point on `argv` (None = the process's own arguments), as the console script does.

    Hydra's mistakes are reported in one line; what a command itself did not foresee keeps its traceback. Where the user
    has set HYDRA_FULL_ERROR=1, nothing is caught.

    Arguments:
        name: of the console script.
        config_name: of the primary configuration; None = what follows diffguide- in the name.

    Raises:
        SystemExit: with code 1 and a message on stderr where the input is wrong, with 130 after an interrupt.
    """
    warnings.filterwarnings("ignore", r"`torch\.jit", FutureWarning)  # torch warns of what torch itself calls
    saved, config_name = sys.argv, config_name or name.removeprefix("diffguide-")
    words = respell(quote_odd(saved[1:] if argv is None else argv))
    sys.argv = [name if argv is not None else saved[0], *words]
    try:
        reporting = nullcontext(hold_nothing) if os.environ.get(FULL) == "1" else report_errors(name, config_name)
        with reporting as hold_stderr:
            if read_words(words, config_name):
                hold_stderr()
                command()
    finally:
        sys.argv = saved
        remove_notes()


def read_words(words: Sequence[str], config_name: str) -> bool:
    """Sets the process's arguments for Hydra; False where help was asked for, which is printed.

    Raises:
        ConfigError: words that are neither a flag nor key=value.
    """
    try:
        files = files_of(read_flags(words)[0], config_name)
    except ConfigError as error:
        files = ConfigFiles(config_name, [config_dir()])
        raise ConfigError(explain_stray_word(words, files) or f"{error}; see --help") from error
    words = rename_options(words, files.folders)
    flags, sys.argv[1:] = read_flags(words)
    if flags.help:
        print(help_text(files, flags.overrides, flags.resolve), end="", flush=True)
        return False
    if mistake := explain_stray_word(words, files):
        raise ConfigError(mistake)
    return True


def hold_nothing() -> None:
    """Lets Hydra print what it has to say."""


@contextmanager
def report_errors(name: str, config_name: str) -> Iterator[Callable[[], None]]:
    """Around a command: reports a mistake, and an interrupt, in one line.

    Hydra prints a mistake and exits: its message is replaced by ours, about the exception that it exits for. What is
    yielded holds back stderr from then on, until the task begins.
    """
    held: io.StringIO | None = None

    def hold_stderr() -> None:
        nonlocal held
        held = text = io.StringIO()
        COMPOSING.callback(lambda: sys.stderr.write(text.getvalue()))
        COMPOSING.enter_context(redirect_stderr(text))

    try:
        yield hold_stderr
        if UNFORESEEN:
            raise UNFORESEEN.pop()
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:  # --help | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(128 + signal.SIGPIPE) from None
    except (Exception, SystemExit) as raised:
        hydras = isinstance(raised, SystemExit) and raised.__cause__ is None
        error = raised.__context__ if hydras else raised
        began = held is not None and sys.stderr is not held
        if began or not isinstance(error, Exception):
            raise
        if held is not None:
            held.seek(held.truncate(0))
        mistake = explain_error(error, config_name)
        if mistake is None:
            raise error from None
        print(f"{name}: {' '.join(mistake.split())}", file=sys.stderr)
        raise SystemExit(1) from error
    finally:
        COMPOSING.close()


def explain_error(error: Exception, config_name: str) -> str | None:
    """A sentence about what was raised before the task began; None where it is not the user's mistake."""
    if isinstance(error, InputError):
        return str(error)
    flags, _ = read_flags(sys.argv[1:])
    overrides = [word for word in flags.overrides if "=" in word or not flags.help]
    return explain(error, overrides, files_of(flags, config_name))
