"""Options that do not go together: what a recipe sets for one may be unknown to another, what one reads off another absent."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.default_element import GroupDefault
from omegaconf import OmegaConf

from .files import dotted, keys_of

__all__ = ["lacking", "unfit"]

GROUP = "experiment"
READ = re.compile(r"\$\{(\w+)\.(\w+)\}")  # a value that an option reads off another group's


def unfit(
    loader: ConfigLoader, choices: Mapping[str, str | None], said: Sequence[str], keys: Sequence[str]
) -> str | None:
    """Keys that a recipe sets of a node whose option was chosen otherwise, and that this option has not; in a sentence.

    Arguments:
        loader: reads the configuration files.
        choices: option of every group.
        said: keys and groups that were typed.
        keys: of the composed configuration.
    """
    if choices.get(GROUP) is None:
        return None
    file = loader.repository.load_config(f"{GROUP}/{choices[GROUP]}")
    sets = [*dotted(OmegaConf.to_container(file.config, resolve=False))]
    own = {part.group.lstrip("/"): part.value for part in file.defaults_list if isinstance(part, GroupDefault)}
    for group in said:
        if group not in choices or choices[group] is None or choices[group] == own.get(group):
            continue
        parts = {place: name for place, name in choices.items() if name and f"{place}/".startswith(f"{group}/")}
        known = {
            key for place, name in parts.items() for key in keys_of(loader, f"{place}/{name}", place.replace("/", "."))
        }
        odd = [key for key in sets if key.startswith(f"{group}.") and key in keys and key not in known]
        odd = [key for key in odd if key.rpartition(".")[0] not in odd]  # a list, and not its elements too
        if odd:
            of = f", for {group}={own[group]}" if group in own else ""
            return (
                f"{GROUP}={choices[GROUP]} sets {' and '.join(odd)}{of}, and {group}={choices[group]} has no such key: leave "
                f"{group} as the experiment has it, or take out what it sets, {' '.join(f'~{key}' for key in odd)}"
            )
    return None


def lacking(loader: ConfigLoader, choices: Mapping[str, str | None], tree: Mapping[str, Any]) -> str | None:
    """A value that an option reads off another group, whose option has none of that name; in a sentence.

    Arguments:
        loader: reads the configuration files.
        choices: option of every group.
        tree: the composed configuration, its references as they are written.
    """
    for group, node in tree.items():
        for name, value in node.items() if isinstance(node, dict) and choices.get(group) else ():
            found = READ.fullmatch(value) if isinstance(value, str) else None
            if found is None or choices.get(found[1]) is None or not absent(tree.get(found[1]), found[2]):
                continue
            other = found[1]
            files = {
                option: loader.repository.load_config(f"{other}/{option}") for option in loader.get_group_options(other)
            }
            nodes = {option: OmegaConf.to_container(file.config, resolve=False) for option, file in files.items()}
            having = [option for option, node in nodes.items() if not absent(node, found[2])]
            return (
                f"{group}.{name} of {group}={choices[group]} is {other}.{found[2]}, which {other}={choices[other]} does not "
                f"have: take another {group}, or {other}={', '.join(having)}"
            )
    return None


def absent(node: Any, key: str) -> bool:
    """Whether a node has no plain value of that name."""
    return not isinstance(node, Mapping) or key not in node or isinstance(node[key], Mapping)
