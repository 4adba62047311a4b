"""Records without the paths of this machine, for files that leave it."""

import re
from typing import Any

__all__ = ["shorten_paths"]

PRIVATE_KEYS = ("path", "output_root", "resume", "checkpoint", "init_from", "adapter", "folder", "root")
NAME_KEYS = ("class_names", "name")
ABSOLUTE = re.compile(r"(/|~|\.\.[/\\]|[A-Za-z]:[/\\]|\\\\|file:)")  # the start of a path outside of the working folder


def shorten_paths(value: Any, key: str = "") -> Any:
    """A configuration or record whose paths are shortened to their last name.

    Paths are texts that begin as an absolute path does, or at a key of `PRIVATE_KEYS`. Names of runs and classes stay.
    """
    if isinstance(value, dict):
        return {name: shorten_paths(part, str(name)) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [shorten_paths(part, key) for part in value]
    if isinstance(value, str) and key not in NAME_KEYS and (key in PRIVATE_KEYS or ABSOLUTE.match(value)):
        return re.split(r"[/\\]", value.rstrip("/\\"))[-1]
    return value
