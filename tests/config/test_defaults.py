"""A constructor's defaults are those of its YAML file: `Heun()` in a notebook is sampler=heun on the command line."""

import functools
import inspect
import re
from collections import defaultdict
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from diffguide.config.build import config_dir

ROOT = Path(config_dir())
FALLBACK = re.compile(r"\$\{oc\.select:\w+,(.*)\}")


def place(found: dict[str, Any], package: str, value: Any) -> None:
    """Merges a value into a nested dictionary at a dotted key."""
    for key in filter(None, package.split(".")):
        found = found.setdefault(key, {})
    for key, part in value.items():
        if isinstance(part, dict) and isinstance(found.get(key), dict):
            place(found[key], "", part)
        else:
            found[key] = part


def composed(path: Path) -> Any:
    """A YAML file with the options of its defaults list, without overrides of other groups."""
    node = yaml.safe_load(path.read_text())
    if not isinstance(node, dict):
        return node
    found: dict[str, Any] = {}
    for entry in node.pop("defaults", []):
        (group, option), *_ = entry.items() if isinstance(entry, dict) else [("", entry)]
        group, _, package = group.partition("@")
        if option in ("_self_", None) or group.startswith("override ") or package == "_global_":
            continue
        folder = ROOT / group[1:] if group.startswith("/") else path.parent / group
        place(found, package or group.rpartition("/")[2], composed(folder / f"{option}.yaml"))
    place(found, "", node)
    return found


@cache
def constructors() -> dict[str, list[dict[str, Any]]]:
    """The nodes of every class of diffguide that a YAML file builds, by dotted name."""
    nodes = defaultdict(list)
    for path in sorted(ROOT.rglob("*.yaml")):
        node = yaml.safe_load(path.read_text())
        if isinstance(node, dict) and str(node.get("_target_")).startswith("diffguide."):
            nodes[node["_target_"]].append(composed(path))
    nodes["diffguide.training.loop.Training"].append(yaml.safe_load((ROOT / "train.yaml").read_text())["training"])
    return nodes


def plain(value: Any) -> Any:
    """A value with lists for tuples, and with the fallbacks of optional interpolations, as YAML has them."""
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, tuple | list):
        return [plain(part) for part in value]
    optional = FALLBACK.fullmatch(value) if isinstance(value, str) else None
    return yaml.safe_load(optional[1]) if optional else value


def known(value: Any) -> bool:
    """Whether a YAML value states itself, rather than a fact of another node or that it must be given."""
    if isinstance(value, dict):
        return all(map(known, value.values()))
    if isinstance(value, list):
        return all(map(known, value))
    return not (isinstance(value, str) and ("${" in value or value == "???"))


def imported(target: str) -> Any:
    module, _, name = target.rpartition(".")
    return getattr(import_module(module), name)


def built(value: Any) -> Any:
    """A YAML value with the objects that its nodes build."""
    if isinstance(value, list):
        return [built(part) for part in value]
    if not isinstance(value, dict):
        return value
    arguments = {key: built(part) for key, part in value.items() if not key.startswith("_")}
    if "_target_" not in value:
        return arguments
    target = imported(value["_target_"])
    if value.get("_partial_") and (not value["_target_"].startswith("diffguide.") or lacks(target, arguments)):
        return functools.partial(target, **arguments)
    return target(**arguments)


def lacks(target: Any, arguments: dict[str, Any]) -> bool:
    """Whether a call needs further arguments."""
    required = {name for name, part in inspect.signature(target).parameters.items() if part.default is part.empty}
    return not required <= arguments.keys()


def same(one: Any, other: Any) -> bool:
    """Whether two values are of one type and hold the same."""
    one, other = plain(one), plain(other)
    if isinstance(one, bool) != isinstance(other, bool):
        return False
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, functools.partial) and isinstance(other, functools.partial):
        return one.func is other.func and same(one.keywords, other.keywords)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(part, other[key]) for key, part in one.items())
    if type(one) is type(other) and type(one).__module__.startswith("diffguide."):
        one, other = ({key: part for key, part in vars(value).items() if key != "key"} for value in (one, other))
        return same(one, other)  # a metric's key says where it stands
    return bool(one == other)


def differences(target: str, node: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """key: (default of the constructor, value of the file), where they differ."""
    constructor = imported(target)
    taken = inspect.signature(constructor).parameters
    found = {}
    for key, value in plain(node).items():
        if key.startswith("_") or key not in taken or not known(value):
            continue
        default = taken[key].default
        if default is None and isinstance(value, dict) and "_target_" in value:  # what None stands for is built inside
            if any(part.default is inspect.Parameter.empty for part in taken.values()):
                continue
            default = getattr(constructor(), key, None)
            if default is None:  # it keeps no such object
                continue
        if not same(default, built(value)):
            found[key] = (default, value)
    return found


@pytest.mark.parametrize("target", sorted(constructors()))
def test_constructors_have_the_defaults_of_their_files(target):
    """Several files may build one class: one of them states its defaults."""
    found = [differences(target, node) for node in constructors()[target]]
    assert {} in found, min(found, key=len)
