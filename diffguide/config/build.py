"""From the nodes of a configuration to objects."""

import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from ..nodes.annotations import parameter_hints
from ..nodes.user_modules import allow_neighbour_imports
from ..runtime.errors import convert_input_errors
from .errors import ConfigError
from .files import config_dir
from .type_checks import check_types, import_callable

__all__ = [
    "ConfigError",
    "accepts_argument",
    "build",
    "config_dir",
    "fill_label_dropout",
    "lacks_argument",
    "needs_null",
]

LABEL_DROPOUT = 0.1  # probability, where the guidance needs an unconditional model and p_uncond is null

# torch's RuntimeErrors
MEMORY_ERRORS = ("can't allocate memory", "Storage size calculation overflowed", "out of memory")
NO_MEMORY = "it does not fit into memory; make it smaller"


def build(node: Mapping[str, Any], key: str, *args: Any, kwargs: Mapping[str, Any] | None = None) -> Any:
    """The object that a configuration node describes.

    Arguments:
        node: `_target_` and its arguments, plain or an OmegaConf node.
        key: dotted name of the node, for messages.
        args: first arguments of the constructor, by position.
        kwargs: further arguments of the constructor, by name.

    Raises:
        ConfigError: an argument of the wrong type, or an error of the constructor; names the node.
    """
    plain: Any = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    check_types(plain, key, len(args), kwargs or ())
    if args and plain.get("_partial_"):
        raise ConfigError(f"{key}._partial_: remove it, the first argument of {plain.get('_target_')} is given here")
    root = OmegaConf.create({key: plain}, flags={"allow_objects": True})
    try:
        if kwargs is None:
            return instantiate(root[key], *args, _convert_="all")
        constructor = instantiate(root[key], *args, _convert_="all", _partial_=True)
        with convert_input_errors(key):
            return constructor(**kwargs)  # Hydra would copy them
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, ValueError | TypeError):
            raise ConfigError(f"{failed_node(error, key)}: {cause}") from error
        if exceeds_memory(cause):
            raise ConfigError(f"{key}: {NO_MEMORY}") from error
        if cause is None:  # a target that Hydra does not call
            raise ConfigError(f"{key}: {str(error).splitlines()[0]}") from error
        raise
    except (MemoryError, RuntimeError) as error:
        if exceeds_memory(error):
            raise ConfigError(f"{key}: {NO_MEMORY}") from error
        raise


def failed_node(error: InstantiationException, key: str) -> str:
    """The dotted name of the node that Hydra could not build: the last line of its message."""
    named = re.search(r"^full_key: (\S+)$", str(error), re.MULTILINE)
    return named[1] if named else key


def exceeds_memory(error: BaseException | None) -> bool:
    """Whether an exception says that memory cannot be allocated."""
    return isinstance(error, MemoryError) or any(text in str(error) for text in MEMORY_ERRORS)


def accepts_argument(node: Mapping[str, Any], name: str) -> bool:
    """Whether the constructor of a node has an argument of this name; False where it cannot be imported."""
    with suppress(Exception):  # importing a user's module may raise anything: `build` reports it
        with allow_neighbour_imports(node["_target_"]):
            return name in (parameter_hints(get_object(node["_target_"])) or ())
    return False


def lacks_argument(node: Mapping[str, Any], name: str) -> bool:
    """Whether the constructor of a node has no argument of this name, and no **kwargs; False where it cannot be imported."""
    with suppress(Exception):  # as above
        with allow_neighbour_imports(node["_target_"]):
            hints = parameter_hints(get_object(node["_target_"]))
        return hints is not None and name not in hints
    return False


def needs_null(node: Any) -> bool:
    """Whether the guidance of a node, or one in it, needs label dropout in training."""
    if isinstance(node, list):
        return any(map(needs_null, node))
    if not isinstance(node, dict):
        return False
    with suppress(ConfigError):  # a target that cannot be imported: `build` reports it
        if "_target_" in node and getattr(import_callable(node["_target_"], "guidance"), "needs_null", False):
            return True
    return any(map(needs_null, node.values()))


def fill_label_dropout(cfg: DictConfig) -> None:
    """Replaces p_uncond: null by what the guidance needs: LABEL_DROPOUT, or 0 where it needs no unconditional model."""
    if "p_uncond" in cfg and cfg.p_uncond is None:
        cfg.p_uncond = LABEL_DROPOUT if needs_null(OmegaConf.to_container(cfg.guidance)) else 0.0
