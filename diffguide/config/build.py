"""Where the configuration lies, and how its nodes become objects."""

import difflib
import logging
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hydra.errors import CompactHydraException, InstantiationException
from omegaconf import MISSING, DictConfig, OmegaConf

from ..class_names import ClassLabel
from ..nodes.type_checks import (
    completed,
    describe,
    element,
    fits,
    named,
    parameters,
    required,
    stored,
    takes_callable,
    takes_node,
)
from ..nodes.user_modules import hint as module_hint
from ..nodes.user_modules import importing
from ..runtime.errors import InputError
from .diagnose import no_key
from .options import choice_for

__all__ = ["ConfigError", "build", "check_whole", "config_dir", "needs_null", "run_parent", "takes", "telling"]


TOO_LARGE = (
    "can't allocate memory",
    "Storage size calculation overflowed",
    "out of memory",
)  # of torch's RuntimeErrors
NO_MEMORY = "what it asks for does not fit into memory; make it smaller"


class ConfigError(CompactHydraException, InputError):
    """A mistake of the user's, told in one sentence: what, where, what would be right."""


def config_dir() -> str:
    """The folder of the YAML files: inside the package from a wheel, beside it in a checkout or editable install."""
    here = Path(__file__).resolve().parent
    for candidate in (here.parent / "configs", here.parent.parent / "configs"):
        if (candidate / "train.yaml").is_file():
            return str(candidate)
    raise RuntimeError(f"diffguide: no configs/train.yaml in or beside {here}")


def build(cfg: DictConfig, key: str, *args: Any, handed: Mapping[str, Any] | None = None) -> Any:
    """The object that the node `cfg[key]` describes, with `args` handed to its constructor by position, `handed` by name.

    Raises:
        ConfigError: an argument of the wrong type, or what the constructor said, behind the name of the node.
    """
    from hydra.utils import instantiate

    node = OmegaConf.to_container(cfg[key], resolve=True) if OmegaConf.is_config(cfg[key]) else cfg[key]
    check_types(node, key, len(args), handed or ())
    if args and node.get("_partial_"):
        raise ConfigError(f"{key}._partial_: leave it out, the first argument of {node.get('_target_')} is given here")
    try:
        if handed is None:
            return instantiate(cfg[key], *args, _convert_="all")
        constructor = instantiate(cfg[key], *args, _convert_="all", _partial_=True)
        with telling(key):
            return constructor(**handed)  # not through Hydra, which would copy what it is given
    except (MemoryError, RuntimeError) as error:  # of what was called without Hydra
        if too_large(error):
            raise ConfigError(f"{key}: {NO_MEMORY}") from error
        raise
    except InstantiationException as error:
        if isinstance(error.__cause__, ValueError | TypeError):
            raise ConfigError(f"{place(error, key)}: {error.__cause__}") from error
        if too_large(error.__cause__):
            raise ConfigError(f"{key}: {NO_MEMORY}") from error
        if error.__cause__ is None:  # Hydra's own: a target that it does not call
            raise ConfigError(f"{key}: {str(error).splitlines()[0]}") from error
        raise


def place(error: InstantiationException, key: str) -> str:
    """The node that could not be built: Hydra tells it in its last line, from the root or from the node `key`."""
    found = re.search(r"^full_key: (\S+)$", str(error), re.MULTILINE)
    inside = found[1] if found else ""
    return inside if inside.split(".")[0] == key else f"{key}.{inside}".rstrip(".")


def too_large(error: BaseException | None) -> bool:
    """Whether an exception says that something does not fit into memory."""
    return isinstance(error, MemoryError) or any(text in str(error) for text in TOO_LARGE)


def takes(cfg: DictConfig, key: str, name: str) -> bool:
    """Whether the constructor that the node `cfg[key]` names has an argument of this name, as far as that can be seen."""
    from hydra.utils import get_object

    with suppress(Exception):  # whatever importing a user's module may raise: `build` tells it
        target = cfg[key]._target_
        with importing(target):
            return name in (parameters(get_object(target)) or ())
    return False


def needs_null(node: Any) -> bool:
    """Whether a guidance, or one of those that a node is composed of, needs training to drop labels."""
    if isinstance(node, list):
        return any(map(needs_null, node))
    if not isinstance(node, dict):
        return False
    with suppress(ConfigError):  # a target that cannot be imported: building it tells
        if "_target_" in node and getattr(imported(node["_target_"], "guidance"), "needs_null", False):
            return True
    return any(map(needs_null, node.values()))


def if_needs_null(node: DictConfig, needed: float, otherwise: float) -> float:
    """`${if_needs_null:${guidance},a,b}`: a where guidance of this node needs training to drop labels, else b."""
    return needed if needs_null(OmegaConf.to_container(node, resolve=True)) else otherwise


OmegaConf.register_new_resolver("if_needs_null", if_needs_null, replace=True)


def check_types(node: Any, key: str, given: int = 0, handed: Collection[str] = ()) -> None:
    """Holds a node's keys and values, and those of the nodes in it, against the signature of what it names.

    Arguments:
        given: number of first arguments that are handed over by position.
        handed: names of those that are handed over by name.

    Raises:
        ConfigError: naming the key, what it must be and what it is.
    """
    if not isinstance(node, dict) or not isinstance(node.get("_target_"), str):
        raise ConfigError(
            f"{key} must be a node with a _target_, got {node!r}; choose one with {key}=<option>, see --help"
        )
    target = imported(node["_target_"], f"{key}._target_")
    taken = None if node.get("_partial_") and not given else parameters(target)
    taken = taken and {name: hint for name, hint in list(taken.items())[given:] if name not in handed}
    for name, value in node.items():
        if taken is not None and not name.startswith("_") and name not in taken:
            names = [f"{key}.{argument}" for argument in taken]
            raise ConfigError(f"{no_key(f'{key}.{name}', names)}; {node['_target_']} takes no such argument")
        if not name.startswith("_"):
            check_value(value, f"{key}.{name}", Any if taken is None else taken[name])
    for name in required(target, [*(taken or {})]) if "_args_" not in node else ():
        if name not in node:
            check_value(MISSING, f"{key}.{name}", taken[name])


def imported(name: str, where: str) -> Callable:
    """What a dotted name stands for.

    Raises:
        ConfigError: nothing that can be imported, or called.
    """
    from hydra.utils import get_object

    log = logging.getLogger("hydra.utils")  # which would print what we tell
    before, log.disabled = log.disabled, True
    try:
        with importing(name):
            target = get_object(name)
    except Exception as error:  # whatever importing a user's module may raise
        module, _, last = name.rpartition(".")
        near = difflib.get_close_matches(last, vars(sys.modules[module]), 3) if module in sys.modules else []
        nearest = f"; nearest: {', '.join(near)}" if near else ""
        raise ConfigError(
            f"{where}: cannot import {name}: {' '.join(str(error).split())}{nearest}{module_hint(name)}"
        ) from error
    finally:
        log.disabled = before
    if not callable(target):
        raise ConfigError(f"{where} must name a function or a class, {name} is {target!r:.80}")
    return target


def check_value(value: Any, where: str, hint: Any) -> None:
    """`check_types` for one argument with its annotation."""
    if isinstance(value, dict) and "_target_" in value and (rest := completed(hint)) is not None:
        if value.get("_partial_") is not True:
            raise ConfigError(f"{where} is completed later: its node needs _partial_: true")
        check_types(value, where, rest[0])
    elif isinstance(value, dict) and "_target_" in value and (hint is Any or takes_node(hint)):
        check_types(value, where)
    elif isinstance(value, list) and any(isinstance(part, dict) for part in value) and element(hint) is not None:
        for index, part in enumerate(value):
            check_value(part, f"{where}.{index}", element(hint))
    elif isinstance(value, dict) and "_target_" not in value and named(hint) is not None:
        for name, part in value.items():
            check_value(part, f"{where}.{name}", named(hint))
    elif value == MISSING:
        what = "" if hint is Any else f" ({wanted(hint, where)})"
        raise ConfigError(f"{where} must be given{what}: it has no default, say {where}=...")
    elif not fits(value, hint):
        tip = "; on the command line infinity is inf" if ".inf" in str(value) else ""
        if isinstance(value, float) and value.is_integer() and fits(int(value), hint):
            tip = f"; write {int(value)}"
        raise ConfigError(f"{where} must be {wanted(hint, where, value)}, got {value!r}{tip}")


def wanted(hint: Any, where: str, value: Any = None) -> str:
    """An annotation in words, and how an option for it, or a node, is said on the command line."""
    if hint == ClassLabel:
        return "a class, by name or index"
    if not takes_node(named(hint) or element(hint) or hint) or stored(hint):
        return describe(hint)
    choice, options = choice_for(hint, where, config_dir()) or (None, [])
    if choice is not None:
        way = f"an option: {choice}={value if value in options else '<name>'}"
    else:
        partial = ",_partial_:true" if takes_callable(hint) else ""
        way = f"'~{where}' '+{where}={{_target_:<module.Class>{partial}}}'"
    return describe(hint, f"a node with a _target_ ({way})")


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
