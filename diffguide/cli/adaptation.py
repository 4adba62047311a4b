"""training/adapter: a training of an adapter beside the weights of a trained network."""

from collections.abc import Mapping
from typing import Any

from ..config.build import ConfigError, build
from ..config.type_checks import check_types
from ..objectives import Objective

__all__ = ["add_adapter", "check_adapter", "take_adapter"]

GROUP = "training/adapter"


def check_adapter(config: Mapping[str, Any]) -> None:
    """Raises ConfigError for an adapter without a trained network, or of a run that is resumed."""
    if "adapter" not in config["training"]:
        return
    if config["resume"] is not None:
        raise ConfigError(f"{GROUP} cannot be set for a run that is resumed: it has its own adapter, or none")
    if config["init_from"] is None:
        raise ConfigError(f"{GROUP} needs a trained network, whose weights stay: set init_from=<run or folder>")


def take_adapter(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """(The configuration without the adapter, its node or None); ConfigError for an invalid argument."""
    training = dict(config["training"])
    node = training.pop("adapter", None)
    if node is not None:
        check_types(node, "training.adapter", 1)
    return {**config, "training": training}, node


def add_adapter(config: Mapping[str, Any], node: Mapping[str, Any], objective: Objective) -> tuple[dict[str, Any], str]:
    """Adds an adapter to the network of an objective, in place.

    Returns:
        the configuration of the run, whose backbone is the network with the adapter, and a line for the log.
    """
    model = objective.model
    network = getattr(model, "backbone", None)
    if network is None:
        raise ConfigError(f"{GROUP} is for objectives with a network that predicts x_0 or eps, such as v, eps, flow")
    model.backbone = build(node, "training.adapter", network)
    counts = [sum(part.numel() for part in objective.parameters() if part.requires_grad or every) for every in (0, 1)]
    backbone = {"_target_": node["_target_"], "network": config["backbone"], **node}
    line = f"the adapter trains {counts[0]:,} of {counts[1]:,} parameters"
    if network.class_tables() and not node.get("trains_classes"):
        line += "; rows of classes stay as they are (training.adapter.trains_classes=true trains them)"
    return {**config, "backbone": backbone}, line
