"""The configuration of a saved run with the changes of a command line.

The values of the run are the defaults of every key. `set_keys` writes what the command line sets.
"""

import copy
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from hydra.core.hydra_config import HydraConfig

from ..checkpoints.allowlist import ROLES, validate_config
from ..config.build import ConfigError
from ..config.diagnose import no_key
from ..config.files import ABSENT, ConfigFiles, dotted_keys, select_key
from ..files.safetensors import CheckpointError
from ..files.text import escape_unprintable
from .arguments import changed_keys
from .resume_policy import resume_error, today_keys

__all__ = ["inherit_config", "inherit_node", "take_shape"]

FOLDERS = {  # the data that have the side and channels one asks for
    "diffguide.datasets.image_folder.ImageFolder",
    "diffguide.datasets.captioned.Captioned",
}


def inherit_config(
    config: Mapping[str, Any], saved: dict[str, Any], policy: Mapping[str, str], ignored: Collection[str] = ()
) -> dict[str, Any]:
    """The configuration of a saved run, with every key that the command line sets.

    A group whose option is that of the run keeps the values of the run; with another option it has the values of that one.

    Arguments:
        config: composed from the command line.
        saved: of the run.
        policy: table of `resume_policy`.
        ignored: keys that count as not set.

    Raises:
        ConfigError: a key that the run does not have, or a node that may not be built from a file.
    """
    keys = {key: override.is_force_add() for key, override in changed_keys().items() if key not in ignored}
    if "experiment" in keys:  # it sets keys of every group: the whole configuration is that of the command line
        return dict(config)
    choices = HydraConfig.get().runtime.choices
    for role in ROLES.keys() & keys.keys() & saved.keys():
        if isinstance(choices.get(role), str) and is_option_of(role, choices[role], saved[role]):
            del keys[role]
    merged = set_keys(saved, config, {key: False for key in today_keys(policy) if key in config} | keys)
    optimizer = select_key(config, "training.optimizer")
    if optimizer is not ABSENT:  # it may be any class, so it is never built from a file
        merged["training"]["optimizer"] = optimizer
    validate_inherited(config, merged)
    return merged


def take_shape(dataset: Mapping[str, Any], shape: Sequence[int]) -> dict[str, Any]:
    """The node of a folder of images with the channels and side of a model, where the command line does not set them.

    Other data, and examples that are no square pictures, stay. So do the data where an experiment, or an option that was
    composed for their side, is chosen.
    """
    changed, node = changed_keys(), dict(dataset)
    is_picture = len(shape) == 3 and shape[0] in (1, 3) and shape[1] == shape[2]
    is_shifted = "schedule" in changed and changed["schedule"].value() == "resolution_shift"
    if (
        node.get("_target_") not in FOLDERS
        or not is_picture
        or is_shifted
        or {"experiment", "backbone"} & changed.keys()
    ):
        return node
    facts = {"channels": shape[0], "size": shape[1]}
    return node | {name: value for name, value in facts.items() if f"dataset.{name}" not in changed}


def inherit_node(
    group: str, chosen: dict[str, Any] | None, option: str | None, node: Mapping[str, Any]
) -> dict[str, Any]:
    """The node of one group: that of a saved run, with the keys that the command line sets.

    It is the node of the command line where that chooses another option, or has a whole node of a resumed run.

    Arguments:
        chosen: node of the command line, None = none.
        option: that the command line chooses, None = none.
        node: of the saved run.

    Raises:
        ConfigError: a key that the node does not have.
    """
    if chosen is None:
        return dict(node)
    if "_target_" in chosen if option is None else not is_option_of(group, option, node):
        return chosen
    keys = {key: True for key in changed_keys() if key.startswith(f"{group}.")}
    return set_keys({group: dict(node)}, {group: chosen}, keys)[group]


def is_option_of(group: str, option: str, node: Mapping[str, Any]) -> bool:
    """Whether an option is the one that a saved node was composed from: the one with the fewest different values."""
    files = ConfigFiles.of_this_run()
    counts = {name: count_differences(files.read(f"{group}/{name}").tree, node) for name in files.options(group)}
    same_class = {name: count for name, count in counts.items() if count is not None}
    return option in same_class and same_class[option] == min(same_class.values())


def count_differences(option: Mapping[str, Any], node: Mapping[str, Any]) -> int | None:
    """How many values of an option's file differ from a node; None where they are of different classes."""
    if option.get("_target_") != node.get("_target_"):
        return None
    count = 0
    for key, value in option.items():
        if isinstance(value, dict):
            inner = count_differences(value, node[key]) if isinstance(node.get(key), dict) else None
            count += len(value) if inner is None else inner
        elif not (isinstance(value, str) and (value == "???" or "${" in value)):
            count += node.get(key) != value
    return count


def set_keys(saved: dict[str, Any], config: Mapping[str, Any], keys: Mapping[str, bool]) -> dict[str, Any]:
    """A copy of a saved configuration with keys set, or deleted, as in the configuration of the command line.

    Arguments:
        keys: dotted, and whether the run must have each.

    Raises:
        ConfigError: a key that the run does not have.
    """
    merged = copy.deepcopy(saved)
    for key, is_required in keys.items():
        parent, _, name = key.rpartition(".")
        node = select_key(merged, parent)
        if not isinstance(node, dict):
            raise resume_error(f"this run has no {parent}, so {key} cannot be set")
        if is_required and name not in node:
            root = key.partition(".")[0]
            known = list(dotted_keys(merged[root], root))
            target = escape_unprintable(str(merged[root].get("_target_")))
            raise ConfigError(f"{no_key(key, known)}; {root} of this run is {target}")
        value = select_key(config, key)
        if value is ABSENT:
            node.pop(name, None)
        else:
            node[name] = value
    return merged


def validate_inherited(config: Mapping[str, Any], merged: Mapping[str, Any]) -> None:
    """Raises ConfigError for a node that differs from the one of the command line, and may not be built from a file."""
    for role in ROLES.keys() & merged.keys():
        if merged[role] != config.get(role):
            node = {key: value for key, value in merged[role].items() if key != "optimizer"}
            try:
                validate_config(node, role, config["trust"])
            except CheckpointError as error:
                raise resume_error(str(error)) from error
