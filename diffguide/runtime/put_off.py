"""torch's compiler is imported when something is compiled, and not before.

Importing `torch._dynamo`, or sympy, takes as long as importing torch. Plain eager code imports them all the same: Lightning
Fabric for one `isinstance`, the optimisers of torch for a `graph_break` that does nothing outside of compilation, and the
shapes of tensors on the device `meta` for questions about symbolic sizes, whose answer for a plain number is known.
"""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["put_off_compiler", "use_optimizer"]

DYNAMO, SHAPES, SYMPY = "torch._dynamo", "torch.fx.experimental.symbolic_shapes", "sympy"


class InstancesElsewhere(type):
    """The type of a class that stands for one of the same name in a module: nothing is an instance before that is imported."""

    module = ""

    def __instancecheck__(cls, instance: Any) -> bool:
        found = sys.modules.get(cls.module)
        if found is None or isinstance(found, Placeholder):
            return False
        return isinstance(instance, vars(found).get(cls.__name__, ()))


class OptimizedModule(metaclass=InstancesElsewhere):
    """The modules that torch.compile made."""

    module = DYNAMO


class Basic(metaclass=InstancesElsewhere):
    """The expressions of sympy."""

    module = SYMPY


class Placeholder(ModuleType):
    """A module with a few names of another one, which is imported for every other name.

    Arguments:
        name: of the module.
        group: placeholders that make room together.
        own: the names.
    """

    def __init__(self, name: str, group: list["Placeholder"], **own: Any):
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)
        self.__dict__.update(own, group=group)
        group.append(self)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        leave(self.group)
        return getattr(importlib.import_module(self.__name__), name)


def leave(group: list[Placeholder]) -> None:
    """Makes room for the modules themselves."""
    for place in group:
        if sys.modules.get(place.__name__) is place:
            del sys.modules[place.__name__]


def is_plain(value: Any) -> bool:
    """Whether a value is a number, or a shape of numbers: nothing symbolic."""
    return all(map(is_plain, value)) if isinstance(value, tuple | list) else type(value) in (bool, int)


def answer(name: str, group: list[Placeholder], known: Callable[..., Any]) -> Callable:
    """A function of symbolic_shapes, which answers `known` for plain numbers and leaves all else to torch."""

    def function(*values: Any, **options: Any) -> Any:
        if all(map(is_plain, values)):
            return known(*values)
        leave(group)
        return getattr(importlib.import_module(SHAPES), name)(*values, **options)

    return function


ANSWERS: dict[str, Callable[..., Any]] = {
    "expect_true": lambda value, *_: value,
    "guard_or_false": lambda value: value,
    "guard_or_true": lambda value: value,
    "guard_size_oblivious": lambda value: value,
    "guarding_hint_or_throw": lambda value: value,
    "has_guarding_hint": lambda value: True,
    "is_concrete_int": lambda value: True,
    "is_nested_int": lambda value: False,
    "statically_known_true": lambda value: value,
    "sym_and": lambda *values: all(values),
    "sym_eq": lambda one, other: one == other if type(one) is int else list(one) == list(other),
    "sym_or": lambda *values: any(values),
}


@contextmanager
def put_off_compiler() -> Iterator[None]:
    """Eager code inside gets by without torch's compiler; what does need it imports it.

    Nothing changes where it is imported already. Afterwards `import torch._dynamo` imports it as ever.
    """
    group: list[Placeholder] = []
    undisabled: list[Callable] = []

    def disable(fn: Callable, *args: Any, **kwargs: Any) -> Callable:
        undisabled.append(fn)
        return fn

    if DYNAMO not in sys.modules:
        ignore = lambda *args, **kwargs: None  # noqa: E731
        Placeholder(DYNAMO, group, OptimizedModule=OptimizedModule, disable=disable, graph_break=ignore)
    if SHAPES not in sys.modules:
        Placeholder(SHAPES, group, **{name: answer(name, group, known) for name, known in ANSWERS.items()})
    if SYMPY not in sys.modules:
        Placeholder(SYMPY, group, Basic=Basic)
    sys.modules.update({place.__name__: place for place in group})
    try:
        yield
    finally:
        leave(group)
        for fn in undisabled:  # torch caches the answer there
            fn.__dict__.pop("__dynamo_disable", None)


def use_optimizer(optimizer: Any) -> AbstractContextManager[None]:
    """Where an optimiser, a wrapper of one, or its class is called: those of torch get by without the compiler."""
    inner = getattr(optimizer, "optimizer", optimizer)
    kind = inner if isinstance(inner, type) else type(inner)
    return put_off_compiler() if kind.__module__.startswith("torch.optim.") else nullcontext()
