"""The comments of the configuration files: every key and every default has one, on its line."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import yaml

__all__ = ["Described", "describe_file"]

COMMENT = re.compile(r"[\s,\]}]*#\s*(.*)")


class Described(NamedTuple):
    """The comments of a configuration file.

    Arguments:
        summary: the comment at its top, without the line of the package.
        keys: a.b -> comment, relative to the file.
        defaults: entry of the defaults list, such as sampler/grid -> (option, comment).
    """

    summary: str
    keys: dict[str, str]
    defaults: dict[str, tuple[str | None, str]]


def describe_file(path: Path | None) -> Described:
    """Reads the comments of a configuration file; path None = no comments."""
    text = path.read_text(encoding="utf-8") if path else ""
    lines = text.splitlines()
    count = next((row for row, line in enumerate(lines) if line and not line.startswith("#")), len(lines))
    above = [line.lstrip("# ") for line in lines[:count] if not line.startswith("# @package")]
    root = yaml.compose(text, yaml.CSafeLoader)
    keys: dict[str, str] = {}
    defaults: dict[str, tuple[str | None, str]] = {}
    for place, value, comment in commented_keys(root, lines) if isinstance(root, yaml.MappingNode) else ():
        if place[0] != "defaults":
            keys[".".join(place)] = comment
        elif len(place) == 2 and isinstance(value, yaml.ScalarNode):
            defaults[place[1].removeprefix("override ")] = None if value.tag.endswith(":null") else value.value, comment
    return Described(" ".join(above), keys, defaults)


def commented_keys(
    node: yaml.MappingNode, lines: list[str], above: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], yaml.Node, str]]:
    """(path, node, comment) of every key of a mapping, of the mappings in it, and of the defaults list."""
    for key, value in node.value:
        path = (*above, key.value)
        mark = key.end_mark if isinstance(value, yaml.CollectionNode) and not value.flow_style else value.end_mark
        rest = lines[mark.line][mark.column :].lstrip(":") if mark.line < len(lines) else ""
        comment = COMMENT.fullmatch(rest)
        yield path, value, comment[1] if comment else ""
        if isinstance(value, yaml.MappingNode):
            yield from commented_keys(value, lines, path)
        elif path == ("defaults",):
            for part in value.value:
                if isinstance(part, yaml.MappingNode):
                    yield from commented_keys(part, lines, path)
