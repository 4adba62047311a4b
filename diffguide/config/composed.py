"""Mistakes that Hydra composes: keys that nothing reads, options that do not go together, broken references."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

from .diagnose import no_key, parse_words, wrong_choice
from .errors import ConfigError
from .files import ConfigFiles, dotted, plain

__all__ = ["check_composed", "check_references"]

GROUP = "experiment"
REFERENCE = re.compile(r"\$\{(\w+)\.(\w+)\}")  # a value that an option reads from another group's


def check_composed(
    cfg: DictConfig, choices: Mapping[str, str | None], words: Sequence[str], files: ConfigFiles
) -> None:
    """Raises ConfigError for a mistake in a configuration that Hydra has composed.

    Arguments:
        choices: option of every group.
        words: overrides as they were typed.
    """
    tree = plain(cfg)
    keys = list(dotted(tree))
    mistakes = [explain_override(override, tree, keys, words, files) for override in parse_words(words)]
    typed = [word.lstrip("+").partition("=")[0] for word in words]
    mistakes += [explain_unfit_recipe(files, choices, typed, keys), explain_absent_value(files, choices, tree)]
    for mistake in filter(None, mistakes):
        raise ConfigError(mistake)
    check_references(cfg, keys)


def check_references(cfg: DictConfig, keys: Sequence[str]) -> None:
    """Raises ConfigError for the first key whose `${...}` cannot be resolved."""
    for key in keys:
        try:
            with suppress(InterpolationToMissingValueError):  # building what has no value yet asks for it by name
                OmegaConf.select(cfg, key)
        except OmegaConfBaseException as error:
            raise ConfigError(f"{key}: {str(error).splitlines()[0]}; give {key}=<value>") from error


def explain_override(
    override: Override, tree: Mapping[str, Any], keys: Sequence[str], words: Sequence[str], files: ConfigFiles
) -> str | None:
    """A sentence about a choice that is none, a key of the root that was left out, or one that was added and nothing reads."""
    if mistake := wrong_choice(override, files):
        return mistake
    key = override.key_or_group or ""
    root = key.partition(".")[0]
    if override.is_delete() and root == key and key not in tree and key not in files.groups:
        return f"{key} cannot be left out: give it a value, {key}=<value>"
    known = {"hydra", *files.read(files.name).tree, *(group.partition("/")[0] for group in files.groups)}
    if root in known or not (override.is_add() or override.is_force_add()):
        return None
    reference = re.compile(rf"\$\{{[^}}]*\b{re.escape(root)}\b")
    if any(map(reference.search, [str(tree), *words])):
        return None
    others = [name for name in (*keys, *files.groups) if name.partition(".")[0] != root]
    return no_key(key, others)


def explain_unfit_recipe(
    files: ConfigFiles, choices: Mapping[str, str | None], words: Sequence[str], keys: Sequence[str]
) -> str | None:
    """A sentence about keys that a recipe sets for a group whose option was chosen otherwise, and that this option lacks.

    Arguments:
        choices: option of every group.
        words: keys and groups that were typed.
        keys: of the composed configuration.
    """
    recipe = choices.get(GROUP)
    if recipe is None:
        return None
    file = files.read(f"{GROUP}/{recipe}")
    own = {place: option for _, place, option, _ in file.choices}
    for group in words:
        option = choices.get(group)
        if option is None or option == own.get(group):
            continue
        parts = {place: name for place, name in choices.items() if name and f"{place}/".startswith(f"{group}/")}
        known = {key for place, name in parts.items() for key in files.keys(place, name)}
        odd = [key for key in dotted(file.tree) if key.startswith(f"{group}.") and key in keys and key not in known]
        odd = [key for key in odd if key.rpartition(".")[0] not in odd]  # a list, and not its elements too
        if odd:
            of = f", for {group}={own[group]}" if group in own else ""
            return (
                f"{GROUP}={recipe} sets {' and '.join(odd)}{of}, and {group}={option} has no such key: leave {group} as the "
                f"experiment has it, or take out what it sets, {' '.join(f'~{key}' for key in odd)}"
            )
    return None


def explain_absent_value(files: ConfigFiles, choices: Mapping[str, str | None], tree: Mapping[str, Any]) -> str | None:
    """A sentence about a value that an option reads from another group, whose option has none of that name.

    Arguments:
        choices: option of every group.
        tree: the composed configuration, its references as they are written.
    """
    for group, node in tree.items():
        for name, value in node.items() if isinstance(node, dict) and choices.get(group) else ():
            reference = REFERENCE.fullmatch(value) if isinstance(value, str) else None
            if reference is None:
                continue
            other, key = reference.groups()
            if choices.get(other) is None or has_value(tree.get(other), key):
                continue
            having = [option for option in files.options(other) if has_value(files.read(f"{other}/{option}").tree, key)]
            return (
                f"{group}.{name} of {group}={choices[group]} is {other}.{key}, which {other}={choices[other]} does not have: "
                f"take another {group}, or {other}={', '.join(having)}"
            )
    return None


def has_value(node: Any, key: str) -> bool:
    """Whether a node has a plain value of that name."""
    return isinstance(node, Mapping) and key in node and not isinstance(node[key], Mapping)
