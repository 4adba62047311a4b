"""The annotations of constructors, which are the types of a configuration."""

import functools
import inspect
import operator
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = [
    "callable_result",
    "describe_hint",
    "element_hint",
    "fits",
    "is_stored_model",
    "object_types",
    "parameter_hints",
    "required_names",
    "takes_callable",
    "takes_node",
    "value_hint",
]

NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", types.NoneType: "null"}


def parameter_hints(target: Callable) -> dict[str, Any] | None:
    """Annotation by name of the arguments of a class or function, Any without one; None for **kwargs.

    `self` and positional-only arguments are omitted.
    """
    call: Any = target.__init__ if isinstance(target, type) else target  # type: ignore[misc]
    try:
        signature, hints = inspect.signature(target), typing.get_type_hints(call)
    except (NameError, TypeError, ValueError):  # a built-in without signature, or annotations that cannot be evaluated
        return None
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    if inspect.Parameter.VAR_KEYWORD in kinds:
        return None
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: hints.get(name, Any) for name, part in signature.parameters.items() if part.kind in by_name}


def required_names(target: Callable, names: Sequence[str]) -> list[str]:
    """The arguments among `names` without default."""
    signature = inspect.signature(target).parameters
    return [name for name in names if signature[name].default is inspect.Parameter.empty]


def union_members(hint: Any) -> tuple[Any, ...]:
    """The members of a union; (hint,) for any other annotation."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def object_types(hint: Any) -> tuple[type, ...]:
    """The classes in an annotation; () for plain values."""
    plain = {*NAMES, Any, object}
    return tuple(part for part in union_members(hint) if isinstance(part, type) and part not in plain)


def is_stored_model(hint: Any) -> bool:
    """Whether an annotation is a class of models that training runs store, so that the folder of a run is a value."""
    return any(getattr(base, "loadable", False) is True for base in object_types(hint))


def takes_node(hint: Any) -> bool:
    """Whether an annotation is a class or a callable."""
    return bool(object_types(hint)) or takes_callable(hint)


def takes_callable(hint: Any) -> bool:
    """Whether an annotation allows a callable, and so a node with `_partial_`."""
    return any(typing.get_origin(part) is Callable for part in union_members(hint))


def callable_result(hint: Any) -> tuple[int, type] | None:
    """(n, class) of Callable[[n arguments], class]: a node whose first n arguments are given later; else None."""
    if object_types(hint):
        return None
    for part in union_members(hint):
        if typing.get_origin(part) is Callable and isinstance(typing.get_args(part)[0], list):
            arguments, result = typing.get_args(part)
            if isinstance(result, type):
                return len(arguments), result
    return None


def element_hint(hint: Any) -> Any:
    """The annotation of the elements of a list; None if the annotation allows no list."""
    for part in union_members(hint):
        if typing.get_origin(part) is Sequence:
            return typing.get_args(part)[0]
    return Any if hint is Any else None


def value_hint(hint: Any) -> Any:
    """The annotation of the values of a mapping; None if the annotation allows no mapping."""
    found = [typing.get_args(part)[1] for part in union_members(hint) if typing.get_origin(part) is Mapping]
    return functools.reduce(operator.or_, found) if found else None


def fits(value: Any, hint: Any) -> bool:
    """Whether a value from YAML or JSON has the annotated type; true and false are not numbers."""
    if hint is Any:
        return True
    if len(union_members(hint)) > 1:
        return any(fits(value, part) for part in union_members(hint))
    if is_stored_model(hint):
        return isinstance(value, str)  # the folder of a run
    if typing.get_origin(hint) is Sequence:
        return isinstance(value, list) and all(fits(part, typing.get_args(hint)[0]) for part in value)
    if typing.get_origin(hint) is Mapping:
        return isinstance(value, dict) and all(fits(part, typing.get_args(hint)[1]) for part in value.values())
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return hint in NAMES and isinstance(value, hint)


def describe_hint(hint: Any, node: str = "a node with a _target_") -> str:
    """An annotation in words; `node` is the phrase for an object."""
    if len(union_members(hint)) > 1:
        return " or ".join(dict.fromkeys(describe_hint(part, node) for part in union_members(hint)))
    if typing.get_origin(hint) is Sequence:
        return f"a list, each {describe_hint(typing.get_args(hint)[0], node)}"
    if typing.get_origin(hint) is Mapping:
        return f"names, each with {describe_hint(typing.get_args(hint)[1], node)}"
    if is_stored_model(hint):
        return "the folder of a training run such as outputs/train/digits/v001"
    return NAMES.get(hint, node)
