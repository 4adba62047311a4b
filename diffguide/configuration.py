"""Where the configuration lies, how its nodes become objects, and how a mistake in it is told."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra.errors import CompactHydraException, InstantiationException
from omegaconf import DictConfig

__all__ = ["ConfigError", "build", "config_dir", "run_command", "run_parent"]


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
