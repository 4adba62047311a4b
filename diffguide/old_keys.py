"""Configurations that runs before wrote, read as this version writes them: keys that are new, and keys that were renamed.

A run keeps what it was: where a saved node lacks a key that its class has got since, the key has the value that says what
the class did then. New runs state every such key.
"""

from collections.abc import Mapping
from typing import Any

__all__ = ["ROLES", "renamed", "renamed_key", "stated", "updated"]

FOLDER = "diffguide.datasets.image_folder.ImageFolder"
DOWNLOADS = [f"diffguide.datasets.downloads.{name}" for name in ("MNIST", "FashionMNIST", "CIFAR10", "CIFAR100")]
ADDED: dict[str, dict[str, tuple[Any, Any]]] = {  # class: key: what it did before, and what a new run does
    FOLDER: {
        "suffixes": ([".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"], None),
        "class_order": ("names", "numbers"),
        "split_by": ("path", "contents"),
    },
}
RENAMED: dict[str, dict[str, str]] = {target: {"root": "path"} for target in DOWNLOADS}
ROLES = {"dataset"}  # nodes that have such keys


def renamed_key(key: str) -> str:
    """A dotted key as it was typed, by its name of today."""
    role, _, name = key.partition(".")
    names = {before: now for names in RENAMED.values() for before, now in names.items()}
    return f"{role}.{names[name]}" if role in ROLES and name in names else key


def renamed(node: Mapping[str, Any]) -> dict[str, Any]:
    """A node with the keys of today."""
    names = RENAMED.get(str(node.get("_target_")), {})
    return {names.get(key, key): value for key, value in node.items()}


def completed(node: Mapping[str, Any], column: int) -> dict[str, Any]:
    """A node with today's keys, and those that it lacks from a column of ADDED."""
    values = ADDED.get(str(node.get("_target_")), {})
    return renamed(node) | {key: pair[column] for key, pair in values.items() if key not in node}


def updated(config: Mapping[str, Any]) -> dict[str, Any]:
    """A saved configuration as this version would have written it."""
    return {key: completed(value, 0) if key in ROLES and isinstance(value, dict) else value
            for key, value in config.items()}  # fmt: skip


def stated(node: Mapping[str, Any]) -> dict[str, Any]:
    """A node of a new run, in which a file of the user's may leave out what the class has a default for."""
    return completed(node, 1)
