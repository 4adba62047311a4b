"""Smaller options of the group backbone, for the report of a dry run."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..conditions.examples import ConditionedData
from ..config.build import ConfigError, build
from ..objectives import Objective
from ..training.dry_run import count_parameters
from .arguments import task_overrides

__all__ = ["smaller_backbones"]

CONDITION = ("num_classes", "conditioning")  # keys of a network with what the run is conditioned on


def smaller_backbones(
    objective: Objective, config: Mapping[str, Any], examples: ConditionedData
) -> Iterator[tuple[str, Objective]]:
    """The options of the group backbone that have fewer parameters and fit the data, with their objectives, largest first.

    Arguments:
        objective: with the larger network.
        config: of the run.
        examples: of which two are the test input.
    """
    loader = GlobalHydra.instance().config_loader()
    ignored = ("backbone=", "backbone.", "resume=")
    overrides = [word for word in task_overrides() if not word.lstrip("+~").startswith(ignored)]
    network: Any = objective.model.backbone
    given = {key: config["backbone"][key] for key in CONDITION if key in config["backbone"]}
    nodes: dict[str, dict[str, Any]] = {}
    sizes: dict[str, int] = {}
    for name in loader.get_group_options("backbone"):
        try:
            cfg = loader.load_configuration("train", [*overrides, f"backbone={name}"], RunMode.RUN)
            node: Any = OmegaConf.to_container(cfg.backbone, resolve=True)
            if given.get("conditioning") is not None and "conditioning" not in node:
                continue  # it takes classes alone
            nodes[name] = {**node, **{key: value for key, value in given.items() if key in node}}
            with torch.device("meta"):
                sizes[name] = count_parameters(build(nodes[name], "backbone"))
        except (ConfigError, HydraException, OmegaConfBaseException, NotImplementedError):
            continue  # an option for other data
    for name in sorted(sizes, key=sizes.__getitem__, reverse=True):
        if sizes[name] >= count_parameters(network):
            continue
        try:
            parts = build(nodes[name], "backbone"), build(config["schedule"], "schedule")
            smaller = build(config["objective"], "objective", *parts)
            with torch.no_grad():
                smaller(*examples.train.fetch(torch.tensor([0, 0])), torch.Generator().manual_seed(0))
        except (ConfigError, RuntimeError, ValueError):
            continue
        yield name, smaller
