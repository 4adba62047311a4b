"""From the nodes of a configuration to objects."""

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from ..nodes.annotations import fits, parameter_hints
from ..nodes.user_modules import importing
from ..runtime.errors import input_errors
from .errors import ConfigError
from .files import config_dir
from .type_checks import check_types, import_callable

__all__ = [
    "ConfigError",
    "build",
    "check_whole",
    "config_dir",
    "needs_null",
    "run_parent",
    "accepts_argument",
    "to_dict",
]

TOO_LARGE = ("can't allocate memory", "Storage size calculation overflowed", "out of memory")  # torch's RuntimeErrors
NO_MEMORY = "what it asks for does not fit into memory; make it smaller"


def to_dict(node: DictConfig) -> dict[str, Any]:
    """A configuration node as a plain dictionary with every interpolation resolved."""
    return cast(dict[str, Any], OmegaConf.to_container(node, resolve=True))


def build(cfg: DictConfig | Mapping[str, Any], key: str, *args: Any, kwargs: Mapping[str, Any] | None = None) -> Any:
    """The object that the node `cfg[key]` describes, its constructor given `args` by position and `kwargs` by name.

    Raises:
        ConfigError: an argument of the wrong type, or what the constructor said, behind the name of the node.
    """
    node: Any = OmegaConf.to_container(cfg[key], resolve=True) if OmegaConf.is_config(cfg[key]) else cfg[key]
    check_types(node, key, len(args), kwargs or ())
    if args and node.get("_partial_"):
        raise ConfigError(f"{key}._partial_: leave it out, the first argument of {node.get('_target_')} is given here")
    try:
        if kwargs is None:
            return instantiate(cfg[key], *args, _convert_="all")
        constructor = instantiate(cfg[key], *args, _convert_="all", _partial_=True)
        with input_errors(key):
            return constructor(**kwargs)  # not through Hydra, which would copy what it is given
    except (MemoryError, RuntimeError) as error:  # of what was called without Hydra
        if exceeds_memory(error):
            raise ConfigError(f"{key}: {NO_MEMORY}") from error
        raise
    except InstantiationException as error:
        if isinstance(error.__cause__, ValueError | TypeError):
            raise ConfigError(f"{failed_node(error, key)}: {error.__cause__}") from error
        if exceeds_memory(error.__cause__):
            raise ConfigError(f"{key}: {NO_MEMORY}") from error
        if error.__cause__ is None:  # Hydra's own: a target that it does not call
            raise ConfigError(f"{key}: {str(error).splitlines()[0]}") from error
        raise


def failed_node(error: InstantiationException, key: str) -> str:
    """The node that could not be built: Hydra names it in its last line, from the root or from the node `key`."""
    named = re.search(r"^full_key: (\S+)$", str(error), re.MULTILINE)
    inside = named[1] if named else ""
    return inside if inside.split(".")[0] == key else f"{key}.{inside}".rstrip(".")


def exceeds_memory(error: BaseException | None) -> bool:
    """Whether an exception says that something does not fit into memory."""
    return isinstance(error, MemoryError) or any(text in str(error) for text in TOO_LARGE)


def accepts_argument(cfg: DictConfig, key: str, name: str) -> bool:
    """Whether the constructor that the node `cfg[key]` names has an argument of this name, as far as that can be seen."""
    with suppress(Exception):  # whatever importing a user's module may raise: `build` reports it
        target = cfg[key]._target_
        with importing(target):
            return name in (parameter_hints(get_object(target)) or ())
    return False


def needs_null(node: Any) -> bool:
    """Whether a guidance, or one of those that a node is composed of, needs training to drop labels."""
    if isinstance(node, list):
        return any(map(needs_null, node))
    if not isinstance(node, dict):
        return False
    with suppress(ConfigError):  # a target that cannot be imported: building it reports it
        if "_target_" in node and getattr(import_callable(node["_target_"], "guidance"), "needs_null", False):
            return True
    return any(map(needs_null, node.values()))


def if_needs_null(node: DictConfig, needed: float, otherwise: float) -> float:
    """`${if_needs_null:${guidance},a,b}`: a where guidance of this node needs training to drop labels, else b."""
    return needed if needs_null(OmegaConf.to_container(node, resolve=True)) else otherwise


OmegaConf.register_new_resolver("if_needs_null", if_needs_null, replace=True)


def check_whole(cfg: DictConfig, key: str, least: int) -> None:
    """Raises ConfigError where cfg[key] is no whole number from `least` to 2^62."""
    if not fits(cfg[key], int) or not least <= cfg[key] <= 2**62:
        raise ConfigError(f"{key} must be a whole number of at least {least} and at most 2^62, got {cfg[key]!r}")


def run_parent(cfg: DictConfig, job: str, name: Any) -> Path:
    """The folder that holds the versions of a run: <output_root>/<job>/<name>.

    Raises:
        ConfigError: a name or root that is no folder's.
    """
    if not isinstance(cfg.output_root, str) or not cfg.output_root:
        raise ConfigError(f"output_root must be a folder, got {cfg.output_root!r}")
    if not isinstance(name, str) or name in ("", ".", "..") or "/" in name:
        raise ConfigError(f"name must be a folder's name, a text without slashes, got {name!r}")
    return Path(cfg.output_root).expanduser() / job / name
