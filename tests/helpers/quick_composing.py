"""Hydra in this process without what it repeats; the configurations that it composes are the same.

A command reads some forty YAML files and composes twice, the first time for `hydra.mode` alone. Hundreds of tests call
commands in this process: here the text of a file is parsed once, and the first composition is left out where neither
a word nor a file can set `hydra.mode`. Processes that tests start have Hydra as it is.
"""

import pickle
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import omegaconf.omegaconf
import yaml
from hydra._internal.hydra import Hydra
from omegaconf import _utils

from diffguide.config.build import config_dir

__all__ = ["compose_quickly"]

LOADER = _utils.get_yaml_loader()
OURS = ("pkg://hydra.conf", config_dir(), "structured://")  # none of these files sets hydra.mode
PARSED: dict[str, bytes] = {}


def compose_quickly() -> None:
    """From now on, for this process."""
    omegaconf.omegaconf.yaml = SimpleNamespace(load=load, dump=yaml.dump)
    _utils.get_yaml_loader = lambda: LOADER
    Hydra.get_mode = get_mode


def load(stream: Any, Loader: type) -> Any:
    """As `yaml.load`."""
    text = stream if isinstance(stream, str) else stream.read()
    if text not in PARSED:
        PARSED[text] = pickle.dumps(yaml.load(text, Loader))
    return pickle.loads(PARSED[text])


def get_mode(self: Hydra, config_name: str | None, overrides: Sequence[str], whole=Hydra.get_mode) -> Any:
    """As `Hydra.get_mode`, which returns None for every exception."""
    ours = all(part.path in OURS for part in self.config_loader.get_search_path().get_path())
    if ours and not any(word.lstrip("+~").startswith("hydra") for word in overrides):
        return None
    return whole(self, config_name, overrides)
