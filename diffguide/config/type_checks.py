"""Types of a configuration: every argument of every node is checked against the annotation of what it is for."""

import difflib
import logging
import sys
from collections.abc import Callable, Collection
from typing import Any

from hydra.utils import get_object
from omegaconf import MISSING

from ..class_names import ClassLabel
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
from ..nodes.user_modules import import_hint, importing
from ..nodes.walk import Place, call_hints, walk_node
from .diagnose import no_key
from .errors import ConfigError
from .options import choice_for

__all__ = ["check_types", "import_callable"]


def check_types(node: Any, key: str, given: int = 0, by_name: Collection[str] = ()) -> None:
    """Checks a node, and the nodes in it, against the signatures of what they call.

    Arguments:
        given: number of first arguments that are given by position.
        by_name: arguments that are given by name.

    Raises:
        ConfigError: naming the key, what it must be and what it is.
    """
    walk_node(node, key, Place(None, given, by_name, partial=None), TypeCheck())


class TypeCheck:
    """A `Visitor` that raises ConfigError where an argument is unknown, missing or of another type."""

    def enter(self, node: Any, where: str, place: Place) -> dict[str, Any] | None:
        if not isinstance(node, dict) or not isinstance(node.get("_target_"), str):
            raise ConfigError(
                f"{where} must be a node with a _target_, got {node!r}; choose one with {where}=<option>, see --help"
            )
        partial = node.get("_partial_") is True
        if place.partial is True and not partial:
            raise ConfigError(f"{where} is completed later: its node needs _partial_: true")
        target = import_callable(node["_target_"], f"{where}._target_")
        hints = None if partial and not place.given else call_hints(target, place)
        if hints is None:
            return None
        for name in node:
            if not str(name).startswith("_") and name not in hints:
                known = [f"{where}.{argument}" for argument in hints]
                raise ConfigError(f"{no_key(f'{where}.{name}', known)}; {node['_target_']} takes no such argument")
        for name in required_names(target, [*hints]) if "_args_" not in node else ():
            if name not in node:
                self.visit(MISSING, f"{where}.{name}", hints[name])
        return hints

    def enter_mapping(self, mapping: dict[str, Any], where: str) -> None:
        """Any names."""

    def visit(self, value: Any, where: str, hint: Any) -> None:
        if value == MISSING:
            what = "" if hint is Any else f" ({describe_value(hint, where)})"
            raise ConfigError(f"{where} must be given{what}: it has no default, say {where}=...")
        if fits(value, hint):
            return
        tip = "; on the command line infinity is inf" if ".inf" in str(value) else ""
        if isinstance(value, float) and value.is_integer() and fits(int(value), hint):
            tip = f"; write {int(value)}"
        raise ConfigError(f"{where} must be {describe_value(hint, where, value)}, got {value!r}{tip}")


def import_callable(name: str, where: str) -> Callable[..., Any]:
    """The class or function of a dotted name.

    Raises:
        ConfigError: nothing that can be imported, or called.
    """
    log = logging.getLogger("hydra.utils")  # which would print the error too
    before, log.disabled = log.disabled, True
    try:
        with importing(name):
            target = get_object(name)
    except Exception as error:  # whatever importing a user's module may raise
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
    """An annotation in words, and how an option for it, or a node, is given on the command line."""
    if hint == ClassLabel:
        return "a class, by name or index"
    if not takes_node(value_hint(hint) or element_hint(hint) or hint) or is_stored_model(hint):
        return describe_hint(hint)
    choice, options = choice_for(hint, where) or (None, [])
    if choice is not None:
        way = f"an option: {choice}={value if value in options else '<name>'}"
    else:
        partial = ",_partial_:true" if takes_callable(hint) else ""
        way = f"'~{where}' '+{where}={{_target_:<module.Class>{partial}}}'"
    return describe_hint(hint, f"a node with a _target_ ({way})")
