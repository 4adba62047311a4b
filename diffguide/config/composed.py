"""A composed configuration: mistakes that Hydra accepts, and its conversion to plain containers.

Hydra accepts added keys that nothing reads, options that do not go together and references to missing values.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

from ..nodes.old_names import complete_new_config
from .build import lacks_argument
from .diagnose import no_key, parse_words, wrong_choice
from .errors import ConfigError
from .files import ConfigFiles, dotted_keys

__all__ = ["check_composed", "resolve_config"]

CROSS_REFERENCE = re.compile(r"\$\{(\w+)\.(\w+)\}")  # a value that an option reads from another group


def resolve_config(cfg: DictConfig) -> dict[str, Any]:
    """A composed configuration as plain containers, with every `${...}` resolved and renamed or new keys filled in.

    A reference to a value that is missing is itself missing.

    Raises:
        ConfigError: a reference to a key that does not exist.
    """
    return complete_new_config(drop_nulls(resolve_node(cfg, "")))


def drop_nulls(value: Any) -> Any:
    """A configuration without null arguments that a class of the user does not take.

    They come from the option whose class it replaces, and a null value cannot be deleted on the command line.
    """
    if isinstance(value, list):
        return [drop_nulls(part) for part in value]
    if not isinstance(value, dict):
        return value
    target = value.get("_target_")
    is_own = isinstance(target, str) and not target.startswith("diffguide.")
    return {
        key: drop_nulls(part)
        for key, part in value.items()
        if not (is_own and part is None and lacks_argument(value, key))
    }


def resolve_node(node: Any, parent: str) -> Any:
    """A node as plain containers, see `resolve_config`."""
    is_mapping = isinstance(node, DictConfig)
    values = {}
    for name in node if is_mapping else range(len(node)):
        key = f"{parent}.{name}" if parent else str(name)
        try:
            value = MISSING if OmegaConf.is_missing(node, name) else node[name]
        except InterpolationToMissingValueError:
            value = MISSING
        except OmegaConfBaseException as error:
            raise ConfigError(f"{key}: {str(error).splitlines()[0]}; give {key}=<value>") from error
        values[name] = resolve_node(value, key) if OmegaConf.is_config(value) else value
    return values if is_mapping else list(values.values())


def check_composed(
    tree: Mapping[str, Any], choices: Mapping[str, str | None], words: Sequence[str], files: ConfigFiles
) -> None:
    """Raises ConfigError for a mistake in a configuration that Hydra has composed.

    Arguments:
        tree: the configuration, its references as written.
        choices: option of every group.
        words: overrides of the command line.
    """
    keys = list(dotted_keys(tree))
    mistakes = [explain_override(override, tree, keys, words, files) for override in parse_words(words)]
    for mistake in filter(None, [*mistakes, explain_absent_value(files, choices, tree)]):
        raise ConfigError(mistake)


def explain_override(
    override: Override, tree: Mapping[str, Any], keys: Sequence[str], words: Sequence[str], files: ConfigFiles
) -> str | None:
    """The mistake in one override: an invalid choice, a deleted key of the root, or an added key that nothing reads."""
    if mistake := wrong_choice(override, files):
        return mistake
    key = override.key_or_group or ""
    root = key.partition(".")[0]
    if override.is_delete() and root == key and key not in tree and key not in files.groups:
        return f"{key} cannot be removed: give it a value, {key}=<value>"
    if not (override.is_add() or override.is_force_add()):
        return None
    if root in {"hydra", *files.read(files.name).tree, *(group.partition("/")[0] for group in files.groups)}:
        return None
    reference = re.compile(rf"\$\{{[^}}]*\b{re.escape(root)}\b")
    if any(map(reference.search, [str(tree), *words])):
        return None
    return no_key(key, [name for name in (*keys, *files.groups) if name.partition(".")[0] != root])


def explain_absent_value(files: ConfigFiles, choices: Mapping[str, str | None], tree: Mapping[str, Any]) -> str | None:
    """The value that an option reads from another group, where the option of that group has no such key.

    Arguments:
        choices: option of every group.
        tree: the composed configuration, its references as written.
    """
    for group, node in tree.items():
        for name, value in node.items() if isinstance(node, dict) and choices.get(group) else ():
            reference = CROSS_REFERENCE.fullmatch(value) if isinstance(value, str) else None
            if reference is None:
                continue
            other, key = reference.groups()
            if choices.get(other) is None or has_value(tree.get(other), key):
                continue
            having = [option for option in files.options(other) if has_value(files.read(f"{other}/{option}").tree, key)]
            return (
                f"{group}.{name} of {group}={choices[group]} is {other}.{key}, which {other}={choices[other]} does not have: "
                f"use another {group}, or {other}={', '.join(having)}"
            )
    return None


def has_value(node: Any, key: str) -> bool:
    """Whether a node has a plain value of that name."""
    return isinstance(node, Mapping) and key in node and not isinstance(node[key], Mapping)
