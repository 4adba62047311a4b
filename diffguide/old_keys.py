"""Configurations that runs before wrote, read as this version writes them: keys that are new, and keys that were renamed.

A run keeps what it was: where a saved node lacks a key that its class has got since, the key has the value that says what
the class did then. New runs state every such key.
"""

from typing import Any

__all__ = ["renamed_key", "stated", "updated"]

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


def renamed_key(key: str) -> str:
    """A dotted key as it was typed, by its name of today."""
    parent, _, name = key.rpartition(".")
    names = {before: now for names in RENAMED.values() for before, now in names.items()}
    return f"{parent}.{names[name]}" if parent.split(".")[-1] == "dataset" and name in names else key


def completed(value: Any, column: int) -> Any:
    """A configuration with today's keys in all its nodes, and those that they lack from a column of ADDED."""
    if isinstance(value, list):
        return [completed(part, column) for part in value]
    if not isinstance(value, dict):
        return value
    target = str(value.get("_target_"))
    names, added = RENAMED.get(target, {}), ADDED.get(target, {})
    node = {names.get(key, key): completed(part, column) for key, part in value.items()}
    return node | {key: pair[column] for key, pair in added.items() if key not in node}


def updated(config: Any) -> Any:
    """A saved configuration, or one node of it, as this version would have written it."""
    return completed(config, 0)


def stated(config: Any) -> Any:
    """A configuration of a new run, in which a file of the user's may leave out what a class has a default for."""
    return completed(config, 1)
