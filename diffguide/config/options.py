"""Which options of the configuration files fit an argument: those whose class is one that its annotation asks for."""

import re
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from ..nodes.annotations import callable_result, object_types, value_hint
from .files import config_dir

__all__ = ["choice_for"]

TARGET = re.compile(r"^_target_: (\S+)", re.MULTILINE)  # of a file; its inner nodes are indented


def choice_for(hint: Any, where: str) -> tuple[str, list[str]] | None:
    """What chooses an option for an argument on the command line, schedule@schedule.schedule, and the options; or None.

    Arguments:
        hint: annotation of the argument.
        where: its key.
    """
    later = callable_result(value_hint(hint) or hint)
    wanted = object_types(hint) or ((later[1],) if later else ())
    if not wanted:
        return None
    folder = Path(config_dir())
    fitting = [
        group for group in groups(folder) if any(issubclass(target, wanted) for target in targets(folder, group))
    ]

    def rank(group: str) -> tuple[bool, bool, int]:
        return group.replace("/", ".") != where, group.split("/")[-1] != where.split(".")[-1], group.count("/")

    if not fitting:
        return None
    group = min(fitting, key=rank)
    place = group if group.replace("/", ".") == where else f"{group}@{where}"
    return place, sorted(path.stem for path in folder.joinpath(group).glob("*.yaml"))


def groups(folder: Path) -> Iterator[str]:
    """The groups, sampler/grid and the like too, that hold constructors."""
    for path in sorted(path for path in folder.rglob("*") if path.is_dir()):
        if any(path.glob("*.yaml")) and path.name != "experiment":
            yield path.relative_to(folder).as_posix()


def targets(folder: Path, group: str) -> Iterator[type]:
    """The classes that the options of a group build."""
    for path in sorted(folder.joinpath(group).glob("*.yaml")):
        with suppress(Exception):  # an extra that is not installed
            for target in TARGET.findall(path.read_text(encoding="utf-8")):
                module, _, name = target.rpartition(".")
                if isinstance(target := getattr(import_module(module), name), type):
                    yield target
