"""The options of the configuration files that fit an argument, by its annotation."""

import re
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from typing import Any

from ..nodes.annotations import callable_result, object_types, value_hint
from .files import ConfigFiles, config_dir

__all__ = ["choice_for"]

TARGET = re.compile(r"^_target_: (\S+)", re.MULTILINE)  # of a file; its inner nodes are indented


def choice_for(hint: Any, where: str) -> tuple[str, list[str]] | None:
    """How to choose an option for an argument on the command line: (schedule@schedule.schedule, its options).

    None where no group fits.

    Arguments:
        hint: annotation of the argument.
        where: its key.
    """
    later = callable_result(value_hint(hint) or hint)
    wanted = object_types(hint) or ((later[1],) if later else ())
    files = ConfigFiles("", [config_dir()])

    def rank(group: str) -> tuple[bool, bool, int]:
        return group.replace("/", ".") != where, group.split("/")[-1] != where.split(".")[-1], group.count("/")

    for group in sorted(files.groups, key=rank):
        if wanted and any(issubclass(target, wanted) for target in option_classes(files, group)):
            place = group if group.replace("/", ".") == where else f"{group}@{where}"
            return place, files.options(group)
    return None


def option_classes(files: ConfigFiles, group: str) -> Iterator[type]:
    """The classes in the options of a group; those that cannot be imported are skipped."""
    for option in files.options(group):
        path = files.path(f"{group}/{option}")
        for name in TARGET.findall(path.read_text(encoding="utf-8")) if path else ():
            module, _, attribute = name.rpartition(".")
            with suppress(Exception):  # an extra that is not installed
                if isinstance(target := getattr(import_module(module), attribute), type):
                    yield target
