"""Which classes a saved configuration may build: diffguide's own in their roles, and those that the caller trusts by name.

A file from somebody else names classes. A name is valid if its module is a file of this package (checked before anything
is imported), if the class has exactly this `__module__` and `__qualname__`, and if it is a subclass of what its place
requires: at the top the class of the role, below it the annotation of the argument.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..files.safetensors import CheckpointError
from ..nodes.annotations import describe_hint, fits
from ..nodes.old_names import current_name
from ..nodes.user_modules import allow_neighbour_imports
from ..nodes.walk import Place, call_hints, named_parts, walk_node

__all__ = ["MAX_SIZE", "ROLES", "construct", "validate_config", "validate_values"]

PACKAGE = Path(__file__).resolve().parents[1]
MAX_SIZE = 2**20  # of numbers that set a size: steps, channels, blocks
MAX_INTEGER = 2**62  # of other whole numbers
MAX_DEPTH = 16  # nesting of a configuration
MAX_CONFIG_VALUES = 2**14  # in a configuration


class Role(NamedTuple):
    """What a top-level node may be.

    Arguments:
        base: dotted name of its base class, or of the one function that it may name. A name, because some of these
            modules import this one.
        given: number of first arguments that the caller gives by position.
        largest: bound on its whole numbers.
    """

    base: str
    given: int = 0
    largest: int = MAX_INTEGER


ROLES = {
    "backbone": Role("diffguide.backbones.base.Backbone", 0, MAX_SIZE),
    "schedule": Role("diffguide.schedules.base.Schedule", 0, MAX_SIZE),
    "objective": Role("diffguide.objectives.base.Objective", 2, MAX_SIZE),
    "dataset": Role("diffguide.datasets.base.Dataset"),
    "first_stage": Role("diffguide.first_stages.sources.FirstStageSource"),
    "oracle": Role("diffguide.oracles.base.Oracle"),
    "guidance": Role("diffguide.models.protocols.DenoiserWrapper", 1),
    "sampler": Role("diffguide.samplers.base.Sampler"),
    "metric": Role("diffguide.evaluation.metric.Metric"),
    "architecture": Role("diffguide.conversion.architecture.Architecture"),
    "to": Role("diffguide.export.formats.Format"),
    "grid": Role("diffguide.samplers.grids.Grid"),
    "condition": Role("diffguide.backbones.conditioning.Conditioning", 0, MAX_SIZE),
    "training": Role("diffguide.training.loop.Training"),
    "engine": Role("diffguide.runtime.engine.build_fabric"),
}

NETWORKS = (ROLES["backbone"].base, "diffguide.backbones.conditioning.Conditioning")


def validate_config(node: Any, role: str, trust: Sequence[str] = ()) -> Any:
    """Checks that a node of a saved configuration, with all nodes in it, may be built.

    Returns the class (or function) that it names.

    Raises:
        CheckpointError: a target that is neither diffguide's own for its place nor trusted, an unknown argument, a value
            of another type, an interpolation, `_args_`, ...
    """
    if not fits(list(trust) if isinstance(trust, tuple) else trust, Sequence[str]):  # `in` would match parts of a text
        raise CheckpointError(f"trust must be a list of dotted names of classes, got {trust!r}")
    trust = [*trust, *map(current_name, trust)]  # classes of this package may be trusted by their old names
    base, given, largest = ROLES[role]
    validate_values(node, role, largest)
    module, _, name = base.rpartition(".")
    base_class = getattr(import_module(module), name)
    walk_node(node, role, Place((base_class,), given), TrustCheck(trust))
    return resolve(node["_target_"], role)


def validate_values(value: Any, where: str, largest: int = MAX_INTEGER) -> None:
    """Checks for values that no configuration of diffguide has, and that are unsafe to read.

    Raises:
        CheckpointError: interpolations, YAML tags, keys that Hydra interprets, whole numbers above `largest`, too many
            values or too deep nesting.
    """
    for count, (key, part, depth) in enumerate(walk_values(value, where, 0)):
        if count > MAX_CONFIG_VALUES or depth > MAX_DEPTH:
            raise CheckpointError(f"{where} has too many values or too deep nesting for a configuration")
        if isinstance(part, dict):
            for name in part:
                if not isinstance(name, str) or name in ("hydra", "defaults") or "${" in name:
                    raise CheckpointError(f"{key} has the key {name!r}, which no saved configuration has")
        elif isinstance(part, str) and ("${" in part or part.lstrip().startswith("!!")):
            raise CheckpointError(f"{key} holds an interpolation or a YAML tag: {part!r}")
        elif isinstance(part, int) and not -largest <= part <= largest:
            raise CheckpointError(f"{key} is {str(part)[:24]}, which is too large")


def walk_values(value: Any, key: str, depth: int) -> Iterator[tuple[str, Any, int]]:
    """(key, value, depth) of a value and of everything in it, down to one level below MAX_DEPTH."""
    yield key, value, depth
    if depth > MAX_DEPTH:
        return
    for name, part in named_parts(value):
        yield from walk_values(part, f"{key}.{name}", depth + 1)


class TrustCheck:
    """A `Visitor` that raises CheckpointError for a node that may not be built, or a value of another type.

    Arguments:
        trust: dotted names of classes outside diffguide that may be built.
    """

    def __init__(self, trust: Sequence[str]):
        self.trust = trust

    def enter(self, node: Any, where: str, place: Place) -> dict[str, Any] | None:
        if not isinstance(node, dict) or not isinstance(node.get("_target_"), str):
            raise CheckpointError(f"{where} has no _target_")
        if place.classes == ():
            raise CheckpointError(f"{where} is a node, where a file may have only plain values")
        target = node["_target_"]
        trusted = target in self.trust
        resolved = resolve(target, where) if trusted else resolve_own(target, where, place.classes or ())
        if getattr(resolved, "foreign", False) and not trusted:
            raise CheckpointError(
                f"{where} names {target}, which runs the program in a file; if you trust it, set trust=[{target}]"
            )
        hints = call_hints(resolved, place)
        for key, value in node.items():
            if key == "_target_" or (key == "_partial_" and value is True and place.partial is not False):
                continue
            if key.startswith("_") or (hints is not None and key not in hints):
                raise CheckpointError(f"{where}.{key} is not an argument of {target}")
        return hints

    def enter_mapping(self, mapping: dict[str, Any], where: str) -> None:
        for name in mapping:
            if name.startswith("_"):
                raise CheckpointError(f"{where}.{name} is not an argument of a mapping")

    def visit(self, value: Any, where: str, hint: Any) -> None:
        if isinstance(value, dict):
            why = "is a node, where a file may have only plain values" if "_target_" in value else "has no _target_"
            raise CheckpointError(f"{where} {why}")
        if not fits(value, hint):
            raise CheckpointError(f"{where} must be {describe_hint(hint)}, got {value!r}")


def resolve_own(target: str, where: str, base: tuple[Any, ...]) -> Any:
    """The class or function of a name of diffguide; imports no other package."""
    package, *inner, _ = target.split(".") if target.count(".") else ("", "")
    if package != "diffguide" or not all(part.isidentifier() for part in target.split(".")):
        raise CheckpointError(
            f"{where} names {target}, which is not diffguide's; if you trust it, set trust=[{target}]"
        )
    path = PACKAGE.joinpath(*inner)
    if not (path.with_name(f"{path.name}.py").is_file() or (path / "__init__.py").is_file()):
        raise CheckpointError(f"{where} names {target}, which does not exist here")
    resolved = resolve(target, where)
    own_name = f"{getattr(resolved, '__module__', None)}.{getattr(resolved, '__qualname__', None)}"
    classes = tuple(part for part in base if isinstance(part, type))
    if own_name != target or not (resolved in base or (isinstance(resolved, type) and issubclass(resolved, classes))):
        wanted = " or ".join(part.__name__ for part in base) or "object"
        raise CheckpointError(f"{where} names {target}, which is no {wanted} of diffguide")
    return resolved


def resolve(target: str, where: str) -> Any:
    """The class or function of a dotted name."""
    module, _, name = target.rpartition(".")
    try:
        with allow_neighbour_imports(target):
            return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise CheckpointError(f"{where} names {target}, which does not exist here") from error


def construct(node: Any, role: str, trust: Sequence[str], *args: Any, device: str = "cpu") -> Any:
    """The object that a node of a saved configuration describes, after `validate_config`.

    Arguments:
        args: first arguments of its constructor, by position.
        device: `meta` = shapes without memory, for a class of diffguide.

    Raises:
        CheckpointError: see `validate_config`.
    """
    validate_config(node, role, trust)
    return build_node(node, args, device)


def build_node(node: dict, args: Sequence[Any], device: str) -> Any:
    """The object of a validated node."""
    target = node["_target_"]
    arguments = {key: build_value(value, device) for key, value in node.items() if key != "_target_"}
    with torch.device("meta") if device == "meta" and target.startswith("diffguide.") else nullcontext():
        return resolve(target, "node")(*args, **arguments)


def build_value(value: Any, device: str) -> Any:
    """An argument, with an object in place of each node in it; of these only networks are on the device."""
    if isinstance(value, dict) and "_target_" in value:
        kind, networks = resolve(value["_target_"], "node"), tuple(resolve(name, "node") for name in NETWORKS)
        return build_node(value, (), device if isinstance(kind, type) and issubclass(kind, networks) else "cpu")
    if isinstance(value, dict):
        return {name: build_value(part, device) for name, part in value.items()}
    return [build_value(part, device) for part in value] if isinstance(value, list) else value
