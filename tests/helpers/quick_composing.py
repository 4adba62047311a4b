"""Hydra in this process without what it repeats; the configurations that it composes are the same.

A command reads some forty YAML files and composes twice, the first time for `hydra.mode` alone. Hundreds of tests call
commands in this process. Here the text of a file is parsed once, the options that a command line chooses are merged
once, and the first composition is left out where neither a word nor a file can set `hydra.mode`. What a command line
sets inside the options is set each time. Processes that tests start have Hydra as it is.
"""

import dataclasses
import io
import pickle
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.defaults_list import DefaultsList, Overrides
from hydra._internal.hydra import Hydra
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, _utils

from diffguide.config.build import config_dir

__all__ = ["compose_quickly"]

LOADER = _utils.get_yaml_loader()
OURS = ("pkg://hydra.conf", config_dir(), "structured://")  # none of these files sets hydra.mode, or changes
SOURCES = {"hydra.conf", config_dir(), ""}  # the same
READ: dict[str, bytes] = {}  # by the text of a file
LISTS: dict[Hashable, DefaultsList] = {}  # by what a command line chooses
MERGED: dict[int, bytes] = {}  # by the identity of the defaults in LISTS, which stay there


def compose_quickly() -> None:
    """From now on, for this process."""
    OmegaConf.load = load
    _utils.get_yaml_loader = lambda: LOADER
    Hydra.get_mode = get_mode
    config_loader_impl.create_defaults_list = create_defaults_list
    ConfigLoaderImpl._compose_config_from_defaults_list = merge_defaults


def remembered(kept: dict[Any, bytes], key: Hashable, make: Callable[[], Any]) -> Any:
    """A copy of what `make` returned for this key at first."""
    if key not in kept:
        kept[key] = pickle.dumps(make())
    return pickle.loads(kept[key])


def load(file: Any, whole: Callable = OmegaConf.load) -> Any:
    """As `OmegaConf.load`."""
    text = file.read() if hasattr(file, "read") else Path(file).read_text(encoding="utf-8")
    return remembered(READ, text, lambda: whole(io.StringIO(text)))


def get_mode(self: Hydra, config_name: str | None, overrides: Sequence[str], whole=Hydra.get_mode) -> Any:
    """As `Hydra.get_mode`, which returns None for every exception."""
    ours = all(part.path in OURS for part in self.config_loader.get_search_path().get_path())
    if ours and not any(word.lstrip("+~").startswith("hydra") for word in overrides):
        return None
    return whole(self, config_name, overrides)


def create_defaults_list(
    repo: Any,
    config_name: str | None,
    overrides_list: list[Override],
    prepend_hydra: bool,
    skip_missing: bool,
    whole=config_loader_impl.create_defaults_list,
) -> DefaultsList:
    """As Hydra's, which names the files that are merged; only choices of options matter to it."""
    options = (prepend_hydra, skip_missing)
    if any(source.path not in SOURCES for source in repo.get_sources()):
        return whole(repo, config_name, overrides_list, *options)
    read = Overrides(repo, overrides_list)
    choices = (read.override_choices, read.append_group_defaults, read.deletions)
    key = (config_name, *options, repr(choices))
    if key not in LISTS:
        LISTS[key] = whole(repo, config_name, overrides_list, *options)
    return dataclasses.replace(LISTS[key], config_overrides=read.config_overrides)


def merge_defaults(
    self: ConfigLoaderImpl, defaults: list, repo: Any, whole=ConfigLoaderImpl._compose_config_from_defaults_list
) -> DictConfig:
    """As Hydra's."""
    if not any(defaults is known.defaults for known in LISTS.values()):  # files of a user, which tests change
        return whole(self, defaults, repo)
    return remembered(MERGED, id(defaults), lambda: whole(self, defaults, repo))
