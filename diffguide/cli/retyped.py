"""Options and keys that are typed again for a run that has its own: the run's values are their defaults."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..checkpoints.allowlist import ROLES, validate_config
from ..config.build import ConfigError
from ..config.diagnose import no_key
from ..config.files import ConfigFiles, dotted, plain
from ..files.safetensors import CheckpointError, escape_unprintable
from .arguments import typed
from .resume_policy import refusal, today_keys

__all__ = ["again", "inherit", "overridden", "trusted", "value_of"]


def trusted(cfg: DictConfig) -> list[str]:
    """The names in trust=[...].

    Raises:
        ConfigError: it is no list of texts.
    """
    names = value_of(cfg, "trust") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"trust must be a list of dotted names, trust=[my.module.Net], got {names!r}")
    return names


def overridden() -> dict[str, bool]:
    """The keys and groups of this command line, dotted, and whether each was forced (++)."""
    overrides = OverridesParser.create().parse_overrides(typed())
    return {str(override.key_or_group).replace("/", "."): override.is_force_add() for override in overrides}


def value_of(cfg: DictConfig, key: str) -> Any:
    """A value of the composed configuration, plain and resolved; None where there is none.

    Raises:
        ConfigError: it refers to a key that has no value.
    """
    try:
        value = OmegaConf.select(cfg, key)
        return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    except OmegaConfBaseException as error:
        raise ConfigError(f"{key}: {str(error).splitlines()[0]}; give {key}=<value>") from error


def is_own(group: str, option: str, node: Mapping[str, Any]) -> bool:
    """Whether an option is the one that a run's node was made from: no option of its group has more values of the node."""
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


def again(cfg: DictConfig, group: str, choice: str | None, node: Mapping[str, Any]) -> dict[str, Any]:
    """The node of a group for a run that has its own: that one, with the keys that this command line sets.

    Where the command line takes another option of the group, or has a whole node (of a resumed run), that one.

    Arguments:
        cfg: as the command line composes it.
        choice: the option that was typed, None = none.
        node: of the run.

    Raises:
        ConfigError: a key that the node does not have.
    """
    if group not in cfg:
        return dict(node)
    if "_target_" in cfg[group] if choice is None else not is_own(group, choice, node):
        return value_of(cfg, group)
    merged = OmegaConf.create({group: dict(node)})
    set_keys(merged, cfg, {key: True for key in overridden() if key.startswith(f"{group}.")})
    return plain(merged[group])


def inherit(cfg: DictConfig, saved: dict[str, Any], policy: Mapping[str, str]) -> DictConfig:
    """The saved configuration, with every key that this command line sets as it is composed today.

    An option that is typed again takes the run's values; another option of its group takes its own.

    Arguments:
        policy: table of `resume_policy`, whose keys of today are never taken from the run.

    Raises:
        ConfigError: a key that the run does not have, or a node that may not be built from a file.
    """
    keys = overridden()
    if "experiment" in keys:  # a recipe sets keys everywhere: then the command line has to say it all
        return OmegaConf.create({str(key): value_of(cfg, str(key)) for key in cfg})
    choices = HydraConfig.get().runtime.choices
    for role in ROLES.keys() & keys.keys() & saved.keys():
        if isinstance(choices.get(role), str) and is_own(role, choices[role], saved[role]):
            del keys[role]
    merged = OmegaConf.create(saved)
    set_keys(merged, cfg, {key: False for key in today_keys(policy) if key in cfg} | keys)
    if "training" in merged:
        merged.training.optimizer = value_of(cfg, "training.optimizer")
    validate_inherited(cfg, merged)
    return merged


def set_keys(merged: DictConfig, cfg: DictConfig, keys: Mapping[str, bool]) -> None:
    """Sets keys of a run's configuration to their values on this command line, or deletes them where they were deleted.

    Arguments:
        keys: whether the run must have each.

    Raises:
        ConfigError: a key that the run does not have.
    """
    for key, required in keys.items():
        value = value_of(cfg, key)
        parent, _, name = key.rpartition(".")
        node = OmegaConf.select(merged, parent) if parent else merged
        if not isinstance(node, DictConfig):
            raise refusal(f"this run has no {parent}, so {key} cannot be set")
        if required and name not in node:
            root = key.partition(".")[0]
            known = list(dotted(plain(merged[root]), root))
            raise ConfigError(
                f"{no_key(key, known)}; {root} of this run is {escape_unprintable(str(merged[root].get('_target_')))}"
            )
        if value is None and name not in (OmegaConf.select(cfg, parent) if parent else cfg):
            node.pop(name, None)
        else:
            node[name] = value


def validate_inherited(cfg: DictConfig, merged: DictConfig) -> None:
    """Raises ConfigError for a node that is not as this command line composes it, and may not be built from a file."""
    for role in ROLES.keys() & merged.keys():
        today = None
        with suppress(ConfigError):  # incomplete without the run
            today = value_of(cfg, role)
        if merged[role] != today:
            node = plain(merged[role])
            node.pop("optimizer", None)
            try:
                validate_config(node, role, trusted(cfg))
            except CheckpointError as error:
                raise refusal(str(error)) from error
