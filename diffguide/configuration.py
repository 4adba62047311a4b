"""Where the configuration lies, how its nodes become objects, and how a mistake in it is told."""

import json
import os
import re
import shlex
import shutil
import sys
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException, InstantiationException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import MISSING, DictConfig, OmegaConf

__all__ = [
    "ConfigError",
    "Sweep",
    "build",
    "check_whole",
    "config_dir",
    "one_line_errors",
    "quoted",
    "record_job",
    "run_command",
    "run_parent",
    "telling",
]

NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", types.NoneType: "null"}


class ConfigError(CompactHydraException, ValueError):
    """A mistake of the user's, told in one sentence: what, where, what would be right."""


def config_dir() -> str:
    """The folder of the YAML files: inside the package from a wheel, beside it in a checkout or editable install."""
    here = Path(__file__).resolve().parent
    for candidate in (here / "configs", here.parent / "configs"):
        if (candidate / "train.yaml").is_file():
            return str(candidate)
    raise RuntimeError(f"diffguide: no configs/train.yaml in or beside {here}")


def build(cfg: DictConfig, key: str, *args: Any) -> Any:
    """The object that the node `cfg[key]` describes, with `args` handed to its constructor by position.

    Raises:
        ConfigError: an argument of the wrong type, or what the constructor said, behind the name of the node.
    """
    from hydra.utils import instantiate

    check_types(OmegaConf.to_container(cfg[key], resolve=True), key)
    try:
        return instantiate(cfg[key], *args, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, ValueError | TypeError):
            where = getattr(error, "full_key", "") or key
            raise ConfigError(f"{where}: {error.__cause__}") from error
        raise


def check_types(node: Any, key: str) -> None:
    """Compares a node's values, and those of the nodes in it, with the annotations of what it names.

    Raises:
        ConfigError: naming the key, what it must be and what it is.
    """
    from hydra.utils import get_object

    if not isinstance(node, dict) or "_target_" not in node:
        raise ConfigError(
            f"{key} must be a node with a _target_, got {node!r}; choose one with {key}=<option>, see --help"
        )
    try:
        target = get_object(node["_target_"])
    except Exception as error:  # whatever importing a user's module may raise
        raise ConfigError(f"{key}._target_: cannot import {node['_target_']}: {error}") from error
    hints = {}
    if not node.get("_partial_"):
        hints = typing.get_type_hints(target.__init__ if isinstance(target, type) else target)
    for name, value in node.items():
        where = f"{key}.{name}"
        if isinstance(value, dict) and "_target_" in value:
            check_types(value, where)
        elif value == MISSING:
            what = f" ({describe(hints[name], where)})" if name in hints else ""
            raise ConfigError(f"{where} must be given{what}: it has no default, say {where}=...")
        elif name in hints and not fits(value, hints[name]):
            tip = "; on the command line infinity is inf" if ".inf" in str(value) else ""
            raise ConfigError(f"{where} must be {describe(hints[name], where)}, got {value!r}{tip}")


def fits(value: Any, hint: Any) -> bool:
    """Whether a value from YAML is of an annotated type; true and false are no numbers."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, part) for part in arguments)
    if origin is Sequence:
        return isinstance(value, list) and all(fits(part, arguments[0]) for part in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint) if hint in NAMES else origin is Callable


def describe(hint: Any, where: str) -> str:
    """An annotation in words."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(part, where) for part in arguments)
    if origin is Sequence:
        return f"a list, each {describe(arguments[0], where)}"
    return NAMES.get(hint, f"a node with a _target_ (an option: {where.replace('.', '/')}=<name>)")


def check_whole(cfg: DictConfig, key: str, least: int) -> None:
    """Raises ConfigError where cfg[key] is no whole number from `least` to 2^62."""
    if not fits(cfg[key], int) or not least <= cfg[key] <= 2**62:
        raise ConfigError(f"{key} must be a whole number of at least {least} and at most 2^62, got {cfg[key]!r}")


@contextmanager
def telling(key: str) -> Iterator[None]:
    """Turns a library's ValueError (or a file's OSError) into a ConfigError behind the name of a key."""
    try:
        yield
    except ConfigError:
        raise
    except (ValueError, OSError) as error:
        raise ConfigError(f"{key}: {error}") from error


@contextmanager
def one_line_errors(name: str) -> Iterator[None]:
    """Tells a ConfigError in one line on stderr and leaves with code 1; HYDRA_FULL_ERROR=1 lets the traceback through.

    In a multirun the other jobs go on, and the whole leaves with code 1 at its end (`Sweep`).
    """
    try:
        yield
    except ConfigError as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print(f"{name}: {error}", file=sys.stderr)
        if HydraConfig.get().mode != RunMode.MULTIRUN:
            raise SystemExit(1) from error
        record_job({"error": str(error)})


def record_job(record: dict) -> None:
    """Leaves a note of this job of a multirun for the end of the sweep; nothing in a single run."""
    hydra = HydraConfig.get()
    if hydra.mode == RunMode.MULTIRUN:
        folder = Path(hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        swept = dict(override.lstrip("+").split("=", 1) for override in hydra.overrides.task if "=" in override)
        (folder / f"{hydra.job.num:05d}.json").write_text(json.dumps(record | {"overrides": swept}))


class Sweep(Callback):
    """The end of a multirun: what the finished jobs make together, the exit code, no stray files."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:  # the signature is Hydra's
        folder = Path(config.hydra.sweep.dir)
        jobs = [json.loads(file.read_text()) for file in sorted(folder.glob("[0-9]*.json"))]
        shutil.rmtree(folder, ignore_errors=True)
        for parent in (folder.parent, folder.parent.parent):  # .sweeps, and outputs where all went elsewhere
            with suppress(OSError):
                parent.rmdir()
        self.finish([job for job in jobs if "error" not in job])
        if failed := [job for job in jobs if "error" in job]:
            print(f"{len(failed)} of {len(jobs)} runs failed", file=sys.stderr)
            raise SystemExit(1)

    def finish(self, jobs: list[dict]) -> None:
        """Something from the records of the finished jobs."""


def run_command(command: Callable[[], None], name: str, argv: Sequence[str] | None) -> None:
    """Runs a Hydra entry point on `argv` (None = the process's own arguments), as the console script does.

    Raises:
        SystemExit: with code 1 and a message on stderr where the input is wrong.
    """
    saved = sys.argv
    if argv is not None:
        sys.argv = [name, *argv]
    try:
        command()
    finally:
        sys.argv = saved


def quoted(override: str) -> str:
    """`key=value` as one can type it into a shell, whatever characters the value has."""
    key, _, value = override.partition("=")
    if not re.fullmatch(r"[\w./:~+-]+", value, re.ASCII):
        value = "'" + re.sub(r"(\\*)'", r"\1\1\\'", value) + "'"
    return shlex.quote(f"{key}={value}")


def run_parent(cfg: DictConfig, job: str, name: Any) -> Path:
    """The folder that holds the versions of a run: <output_root>/<job>/<name>.

    Raises:
        ConfigError: a name or root that is no folder's.
    """
    if not isinstance(cfg.output_root, str) or not cfg.output_root:
        raise ConfigError(f"output_root must be a folder, got {cfg.output_root!r}")
    if name is None or str(name) in ("", ".", "..") or "/" in str(name):
        raise ConfigError(f"name must be a folder's name without slashes, got {name!r}")
    return Path(cfg.output_root).expanduser() / job / str(name)
