"""A walk over a configuration node and all nodes in it, by the annotations of their targets."""

from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple, Protocol

from .annotations import callable_result, element_hint, object_types, parameter_hints, takes_callable, value_hint

__all__ = ["Place", "Visitor", "call_hints", "named_parts", "walk_node", "walk_value"]


class Place(NamedTuple):
    """The position of a node in a configuration.

    Arguments:
        classes: the classes allowed there; () = only a callable; None = anything.
        given: number of first arguments that the caller passes by position.
        by_name: arguments that the caller passes by name.
        partial: whether the node must have `_partial_: true`; None = it may.
    """

    classes: tuple[Any, ...] | None
    given: int = 0
    by_name: Collection[str] = ()
    partial: bool | None = False


class Visitor(Protocol):
    """Checks of a walk. Every method raises an error for an invalid value."""

    def enter(self, node: dict[str, Any], where: str, place: Place) -> dict[str, Any] | None:
        """Checks the target of a node and the names of its arguments; returns their annotations, None = any argument."""

    def enter_mapping(self, mapping: dict[str, Any], where: str) -> None:
        """Checks the names of a mapping without `_target_`; its values are visited next."""

    def visit(self, value: Any, where: str, hint: Any) -> None:
        """Checks a value that is not a node, or a node whose annotation `hint` is a plain type."""


def walk_node(node: dict[str, Any], where: str, place: Place, visitor: Visitor) -> None:
    """Visits a node, then all its arguments."""
    hints = visitor.enter(node, where, place)
    for name, value in node.items():
        if not str(name).startswith("_"):
            walk_value(value, f"{where}.{name}", Any if hints is None else hints[name], visitor)


def walk_value(value: Any, where: str, hint: Any, visitor: Visitor) -> None:
    """Visits an argument: a node, a list or a mapping of nodes, or a plain value."""
    if isinstance(value, dict) and "_target_" in value and (place := place_of(hint)):
        walk_node(value, where, place, visitor)
    elif isinstance(value, dict) and "_target_" not in value and value_hint(hint) is not None:
        visitor.enter_mapping(value, where)
        for name, part in value.items():
            walk_value(part, f"{where}.{name}", value_hint(hint), visitor)
    elif isinstance(value, list) and holds_mapping(value) and element_hint(hint) is not None:
        for index, part in enumerate(value):
            walk_value(part, f"{where}.{index}", element_hint(hint), visitor)
    else:
        visitor.visit(value, where, hint)


def place_of(hint: Any) -> Place | None:
    """The place of an argument with a node; None for the annotation of a plain value."""
    partial = callable_result(hint)
    if partial is not None:
        given, result = partial
        return Place((result,), given, partial=True)
    if hint is Any:
        return Place(None)
    if object_types(hint) or takes_callable(hint):
        return Place(object_types(hint), partial=None if takes_callable(hint) else False)
    return None


def named_parts(value: Any) -> Iterable[tuple[Any, Any]]:
    """(name or index, part) of the parts of a mapping or list; none of any other value."""
    if isinstance(value, dict):
        return value.items()
    return enumerate(value) if isinstance(value, list) else ()


def holds_mapping(value: Any) -> bool:
    """Whether a value is a mapping or a list with a mapping at any depth."""
    return isinstance(value, dict) or (isinstance(value, list) and any(map(holds_mapping, value)))


def call_hints(target: Callable[..., Any], place: Place) -> dict[str, Any] | None:
    """The annotations of the arguments that a node must give to its target; None = any argument."""
    hints = parameter_hints(target)
    if hints is None:
        return None
    return {name: hint for name, hint in list(hints.items())[place.given :] if name not in place.by_name}
