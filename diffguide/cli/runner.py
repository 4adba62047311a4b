"""Running a command: reading its words, reporting errors in one line, ending with an exit code."""

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
from omegaconf import DictConfig

from ..config.build import ConfigError, config_dir, fill_label_dropout
from ..config.composed import check_composed, resolve_config
from ..config.diagnose import explain
from ..config.files import ConfigFiles, to_plain
from ..config.quoting import quote, quote_odd
from ..files.run_folders import lock_run_dir, remove_leftovers
from ..nodes.user_modules import search_user_modules
from ..runtime.errors import InputError, convert_input_errors
from ..runtime.signals import Stopped
from .arguments import files_of, read_flags, task_overrides
from .help import help_text
from .multirun import record_job, remove_notes
from .spelling import rename_options, respell
from .stray_words import explain_stray_word, name_plain_words

__all__ = ["clean_finished_run", "exit_stopped", "resolved_config", "run_command"]

FULL_ERROR = "HYDRA_FULL_ERROR"  # 1: no exception is caught
COMPOSING = ExitStack()  # holds back stderr while Hydra composes; closed when the task begins
UNEXPECTED: list[Exception] = []  # of a single run; raised again after Hydra, which would print it, has returned


@contextmanager
def resolved_config(name: str, cfg: DictConfig) -> Iterator[dict[str, Any]]:
    """Around a command: yields its configuration, resolved and plain, and reports errors in one line.

    An InputError is one line on stderr and exit code 1. HYDRA_FULL_ERROR=1 lets the traceback through. In a multirun the
    other jobs continue, and `Sweep` exits with code 1 at the end.

    Arguments:
        name: of the console script.
        cfg: as Hydra composed it.
    """
    COMPOSING.close()
    hydra = HydraConfig.get()
    try:
        tree = to_plain(cfg)
        with search_user_modules(find_targets(tree), user_folders()):
            check_composed(tree, hydra.runtime.choices, task_overrides(), ConfigFiles.of_this_run())
            fill_label_dropout(cfg)
            yield resolve_config(cfg)
    except Stopped as stopped:
        exit_stopped(name, stopped)
    except InputError as error:
        if os.environ.get(FULL_ERROR) == "1":
            raise
        print(f"{name}: {error}", file=sys.stderr)
        if hydra.mode != RunMode.MULTIRUN:
            raise SystemExit(1) from error
        record_job({"error": str(error)})
    except Exception as error:
        if hydra.mode == RunMode.MULTIRUN or os.environ.get(FULL_ERROR) == "1":
            raise
        UNEXPECTED.append(error)


def find_targets(tree: Any) -> Iterator[str]:
    """The dotted names of classes in a composed configuration, and those in its `trust`."""
    for key, part in tree.items() if isinstance(tree, dict) else enumerate(tree):
        if key in ("_target_", "trust"):
            yield from (name for name in (part if isinstance(part, list) else [part]) if isinstance(name, str))
        elif isinstance(part, dict | list):
            yield from find_targets(part)


def user_folders() -> list[str]:
    """The folders in which a user's modules are searched: the working folder and those of the user's configuration files."""
    sources = HydraConfig.get().runtime.config_sources
    return [".", *(part.path for part in sources if part.schema == "file" and part.path != config_dir())]


def exit_stopped(name: str, stopped: Stopped) -> NoReturn:
    """Exits after a signal: prints the command that continues on stderr, the run folder on stdout; code 128 + signal."""
    command = "the same command" if stopped.again else f"{name} {quote(f'resume={stopped.folder}')}"
    print(f"{stopped.name} after {stopped}; continue with: {command}", file=sys.stderr)
    print(stopped.folder)
    raise SystemExit(stopped.code) from stopped


def clean_finished_run(folder: Path, result: str, remove: Callable[[], None]) -> None:
    """Reports that a resumed run is finished, and removes temporary files that a killed process may have left.

    Arguments:
        folder: of the run.
        result: what the run has computed, for the message.
        remove: removes the temporary files of this kind of run.
    """
    with convert_input_errors("resume"), lock_run_dir(folder):
        remove_leftovers(folder)
        remove()
    print(f"nothing is left to do: {folder} has {result}", file=sys.stderr)
    print(folder)


def run_command(
    command: Callable[[], None],
    name: str,
    argv: Sequence[str] | None = None,
    config_name: str | None = None,
    plain_words: Sequence[str] = (),
) -> None:
    """Runs a Hydra entry point as its console script does.

    Errors of the command line are reported in one line. Unexpected exceptions keep their traceback; with
    HYDRA_FULL_ERROR=1 all do.

    Arguments:
        command: the function that Hydra decorates.
        name: of the console script.
        argv: arguments, None = those of the process.
        config_name: of the primary configuration; None = the name of the script without diffguide-.
        plain_words: keys of the first words that are neither flags nor key=value.

    Raises:
        SystemExit: code 1 after an error in the input, 130 after an interrupt.
    """
    warnings.filterwarnings("ignore", r"`torch\.jit", FutureWarning)  # raised by calls inside torch
    config_name = config_name or name.removeprefix("diffguide-")
    saved = sys.argv
    words = respell(quote_odd(name_plain_words(saved[1:] if argv is None else argv, plain_words)))
    sys.argv = [name if argv is not None else saved[0], *words]
    try:
        reporting = nullcontext(lambda: None) if os.environ.get(FULL_ERROR) == "1" else report_errors(name, config_name)
        with reporting as hold_stderr:
            if read_words(words, config_name):
                hold_stderr()
                command()
    finally:
        sys.argv = saved
        remove_notes()


def read_words(words: Sequence[str], config_name: str) -> bool:
    """Sets `sys.argv` for Hydra; prints the help and returns False where the words have --help.

    Raises:
        ConfigError: a word that is neither a flag nor key=value.
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


@contextmanager
def report_errors(name: str, config_name: str) -> Iterator[Callable[[], None]]:
    """Around a command: reports an error that Hydra raises, and an interrupt, in one line.

    Hydra prints an error and exits; that output is replaced by one line about the same exception. Yields a function that
    holds back stderr until the task begins.
    """
    held: io.StringIO | None = None

    def hold_stderr() -> None:
        nonlocal held
        held = text = io.StringIO()
        COMPOSING.callback(lambda: sys.stderr.write(text.getvalue()))
        COMPOSING.enter_context(redirect_stderr(text))

    try:
        yield hold_stderr
        if UNEXPECTED:
            raise UNEXPECTED.pop()
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:  # --help | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(128 + signal.SIGPIPE) from None
    except (Exception, SystemExit) as raised:
        is_hydras_exit = isinstance(raised, SystemExit) and raised.__cause__ is None
        error = raised.__context__ if is_hydras_exit else raised
        has_begun = held is not None and sys.stderr is not held
        if has_begun or not isinstance(error, Exception):
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
    """The message for an exception raised before the task began; None where the input is not its cause."""
    if isinstance(error, InputError):
        return str(error)
    flags, _ = read_flags(sys.argv[1:])
    overrides = [word for word in flags.overrides if "=" in word or not flags.help]
    return explain(error, overrides, files_of(flags, config_name))
