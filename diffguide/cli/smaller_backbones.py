"""Backbone options that could stand in the chosen one's place."""

from collections.abc import Iterator
from typing import Any

import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from ..config.build import ConfigError, build
from ..datasets import Dataset
from ..datasets.base import fetch_examples
from ..objectives import Objective
from .arguments import typed

__all__ = ["smaller_backbones"]


def smaller_backbones(config_name: str, objective: Objective, data: Dataset) -> Iterator[tuple[str, Objective]]:
    """The options of the group backbone with fewer parameters than an objective's network that fit the data, largest first.

    Each is what `backbone=<option>` in place of this command line's own choice would train.

    Arguments:
        config_name: the primary configuration.
        objective: with the network that they are smaller than.
        data: two of whose examples they must take.
    """
    loader, most = GlobalHydra.instance().config_loader(), count(objective.model.backbone)
    others = [text for text in typed() if not text.lstrip("+~").startswith(("backbone=", "backbone.", "resume="))]
    sizes: dict[str, tuple[int, DictConfig]] = {}
    for name in loader.get_group_options("backbone"):
        try:
            cfg = loader.load_configuration(config_name, [*others, f"backbone={name}"], RunMode.RUN)
            with torch.device("meta"):
                sizes[name] = count(build(cfg, "backbone")), cfg
        except (ConfigError, HydraException, OmegaConfBaseException, NotImplementedError):
            continue  # an option for other data
    x, y = fetch_examples(data.train, torch.tensor([0, 0]))
    for name, (size, cfg) in sorted(sizes.items(), key=lambda item: -item[1][0]):
        if size >= most:
            continue
        try:
            other = build(cfg, "objective", build(cfg, "backbone"), build(cfg, "schedule"))
            with torch.no_grad():
                other(data.preprocess(x), y, torch.Generator().manual_seed(0))
        except (ConfigError, RuntimeError, ValueError):
            continue
        yield name, other


def count(network: Any) -> int:
    """The parameters of a network."""
    return sum(parameter.numel() for parameter in network.parameters())
