"""Smaller options of the group backbone, for the report of a dry run."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..conditions.examples import Examples
from ..config.build import ConfigError, build
from ..datasets import Dataset
from ..objectives import Objective
from ..training.dry_run import count_parameters
from .arguments import task_overrides
from .conditions import place_condition

__all__ = ["smaller_backbones"]


def smaller_backbones(
    objective: Objective, node: Mapping[str, Any], schedule: Mapping[str, Any], data: Dataset
) -> Iterator[tuple[str, Objective]]:
    """The options of the group backbone that have fewer parameters and fit the data, with their objectives, largest first.

    Arguments:
        objective: with the larger network.
        node: of the objective.
        schedule: node of the schedule.
        data: two examples are the test input.
    """
    loader = GlobalHydra.instance().config_loader()
    ignored = ("backbone=", "backbone.", "resume=")
    overrides = [word for word in task_overrides() if not word.lstrip("+~").startswith(ignored)]
    network: Any = objective.model.backbone
    nodes: dict[str, dict[str, Any]] = {}
    sizes: dict[str, int] = {}
    for name in loader.get_group_options("backbone"):
        try:
            cfg = loader.load_configuration("train", [*overrides, f"backbone={name}"], RunMode.RUN)
            parts = {key: OmegaConf.to_container(cfg[key], resolve=True) for key in ("backbone", "condition")}
            nodes[name] = place_condition(parts)["backbone"]
            with torch.device("meta"):
                sizes[name] = count_parameters(build(nodes[name], "backbone"))
        except (ConfigError, HydraException, OmegaConfBaseException, NotImplementedError):
            continue  # an option for other data
    examples = Examples(data, data.train, objective.model)
    for name in sorted(sizes, key=sizes.__getitem__, reverse=True):
        if sizes[name] >= count_parameters(network):
            continue
        try:
            smaller = build(node, "objective", build(nodes[name], "backbone"), build(schedule, "schedule"))
            with torch.no_grad():
                smaller(*examples.fetch(torch.tensor([0, 0])), torch.Generator().manual_seed(0))
        except (ConfigError, RuntimeError, ValueError):
            continue
        yield name, smaller
