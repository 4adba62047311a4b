"""Type checks of configuration nodes, by the annotations of their constructors."""

import difflib
import logging
import sys
from collections.abc import Callable, Collection
from typing import Any

from hydra.utils import get_object
from omegaconf import MISSING

from ..class_names import ConditionValue, ConditionValues
from ..nodes.annotations import (
    describe_hint,
    element_hint,
    fits,
    is_stored_model,
    required_names,
    takes_callable,
    takes_node,
    value_hint,
)
from ..nodes.user_modules import allow_neighbour_imports, import_hint
from ..nodes.walk import Place, call_hints, walk_node
from .diagnose import no_key
from .errors import ConfigError
from .options import choice_for

__all__ = ["check_types", "import_callable"]


def check_types(node: Any, key: str, given: int = 0, by_name: Collection[str] = ()) -> None:
    """Checks the arguments of a node, and of the nodes in it, against the signatures of their constructors.

    Arguments:
        given: number of first arguments that the caller gives by position.
        by_name: arguments that the caller gives by name.

    Raises:
        ConfigError: an unknown or missing argument, or one of another type; names its key.
    """
    walk_node(node, key, Place(None, given, by_name, partial=None), TypeCheck())


class TypeCheck:
    """A `Visitor` that raises ConfigError where an argument is unknown, missing or of another type."""

    def enter(self, node: Any, where: str, place: Place) -> dict[str, Any] | None:
        if not isinstance(node, dict) or not isinstance(node.get("_target_"), str):
            raise ConfigError(
                f"{where} must be a node with a _target_, got {node!r}; choose {where}=<option>, see --help"
            )
        partial = node.get("_partial_") is True
        if place.partial is True and not partial:
            raise ConfigError(f"{where} needs _partial_: true, because its first argument is given later")
        target = import_callable(node["_target_"], f"{where}._target_")
        hints = None if partial and not place.given else call_hints(target, place)
        if hints is None:
            return None
        for name in node:
            if not str(name).startswith("_") and name not in hints:
                known = [f"{where}.{argument}" for argument in hints]
                key = f"{where}.{name}"
                raise ConfigError(f"{no_key(key, known)}; {node['_target_']} does not take it: remove it with ~{key}")
        for name in required_names(target, [*hints]) if "_args_" not in node else ():
            if name not in node:
                self.visit(MISSING, f"{where}.{name}", hints[name])
        return hints

    def enter_mapping(self, mapping: dict[str, Any], where: str) -> None:
        """Every name is valid."""

    def visit(self, value: Any, where: str, hint: Any) -> None:
        if value == MISSING:
            what = "" if hint is Any else f" ({describe_value(hint, where)})"
            raise ConfigError(f"{where} must be given{what}: it has no default, set {where}=...")
        if fits(value, hint):
            return
        tip = "; on the command line infinity is inf" if ".inf" in str(value) else ""
        if isinstance(value, float) and value.is_integer() and fits(int(value), hint):
            tip = f"; write {int(value)}"
        raise ConfigError(f"{where} must be {describe_value(hint, where, value)}, got {value!r}{tip}")


def import_callable(name: str, where: str) -> Callable[..., Any]:
    """The class or function of a dotted name.

    Raises:
        ConfigError: it cannot be imported, or is not callable.
    """
    log = logging.getLogger("hydra.utils")  # prints the error a second time
    before = log.disabled
    log.disabled = True
    try:
        with allow_neighbour_imports(name):
            target = get_object(name)
    except Exception as error:  # importing a user's module may raise anything
        module, _, last = name.rpartition(".")
        near = difflib.get_close_matches(last, vars(sys.modules[module]), 3) if module in sys.modules else []
        nearest = f"; nearest: {', '.join(near)}" if near else ""
        reason = " ".join(str(error).split())
        raise ConfigError(f"{where}: cannot import {name}: {reason}{nearest}{import_hint(name)}") from error
    finally:
        log.disabled = before
    if not callable(target):
        raise ConfigError(f"{where} must name a function or a class, {name} is {target!r:.80}")
    return target


def describe_value(hint: Any, where: str, value: Any = None) -> str:
    """An annotation in words, with the way to give such an option or node on the command line."""
    if hint == ConditionValue:
        return "a class, by name or index, or a text"
    if hint == ConditionValues:
        return "a list of classes, by name or index, or of texts"
    if not takes_node(value_hint(hint) or element_hint(hint) or hint) or is_stored_model(hint):
        return describe_hint(hint)
    choice, options = choice_for(hint, where) or (None, [])
    if choice is not None:
        way = f"an option: {choice}={value if value in options else '<name>'}"
    else:
        partial = ",_partial_:true" if takes_callable(hint) else ""
        way = f"'~{where}' '+{where}={{_target_:<module.Class>{partial}}}'"
    return describe_hint(hint, f"a node with a _target_ ({way})")
