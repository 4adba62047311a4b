"""Where the configuration lies, how its nodes become objects, and how a mistake in it is told."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.errors import CompactHydraException, InstantiationException
from omegaconf import DictConfig

__all__ = ["ConfigError", "build", "check_whole", "config_dir", "one_line_errors", "run_command", "run_parent"]


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
        ConfigError: what the constructor said, behind the name of the node.
    """
    from hydra.utils import instantiate

    try:
        return instantiate(cfg[key], *args, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, (ValueError, TypeError)):
            where = getattr(error, "full_key", "") or key
            raise ConfigError(f"{where}: {cause}") from error
        raise


def check_whole(cfg: DictConfig, key: str, least: int) -> None:
    """Raises ConfigError where cfg[key] is no whole number of at least `least`."""
    if not isinstance(cfg[key], int) or isinstance(cfg[key], bool) or cfg[key] < least:
        raise ConfigError(f"{key} must be a whole number of at least {least}, got {cfg[key]!r}")


@contextmanager
def one_line_errors(name: str) -> Iterator[None]:
    """Tells a ConfigError in one line on stderr and leaves with code 1; HYDRA_FULL_ERROR=1 lets the traceback through."""
    try:
        yield
    except ConfigError as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print(f"{name}: {error}", file=sys.stderr)
        raise SystemExit(1) from error


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


def run_parent(cfg: DictConfig, job: str, name: str) -> Path:
    """The folder that holds the versions of a run: <output_root>/<job>/<name>."""
    return Path(cfg.output_root).expanduser() / job / str(name)
