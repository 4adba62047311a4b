"""condition: what a network is conditioned on, as a part of its node."""

from collections.abc import Mapping
from typing import Any

from ..backbones.base import Backbone
from ..checkpoints.allowlist import ROLES
from ..config.build import ConfigError
from ..config.type_checks import check_types
from .arguments import changed_keys

__all__ = ["place_condition", "settle_conditioning"]

CLASS = "diffguide.conditions.classes.Classes"
NONE = "diffguide.conditions.none.NoCondition"


def place_condition(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with its condition as an argument of the network: `backbone.conditioning`, or `num_classes`.

    Raises:
        ConfigError: a network that takes classes alone, or a condition for a network that is already trained.
    """
    config = dict(config)
    node = config.pop("condition", None)
    chosen = [key for key in changed_keys() if key.partition(".")[0] == "condition"]
    given = next((key for key in ("resume", "init_from") if config.get(key) is not None), None)
    if given is not None:
        if chosen:
            raise ConfigError(f"{chosen[0]} cannot be set with {given}: the trained network has its own condition")
        return config
    if node is None or node["_target_"] == CLASS:
        return config
    check_types(node, "condition", ROLES["condition"].given)
    backbone = dict(config["backbone"])
    if "backbone.num_classes" not in changed_keys() and "num_classes" in backbone:
        backbone["num_classes"] = 0
    if node["_target_"] != NONE:
        if "conditioning" not in backbone:
            raise ConfigError(
                f"this condition needs backbone=unet or dit (of any size): {backbone['_target_'].rpartition('.')[2]} takes "
                "classes alone"
            )
        backbone["conditioning"] = node
    return config | {"backbone": backbone}


def settle_conditioning(config: Mapping[str, Any], backbone: Backbone) -> dict[str, Any]:
    """The configuration with what its conditioning read from other files, such as the hash of a text encoder.

    Arguments:
        backbone: that was built from it.
    """
    node = config["backbone"].get("conditioning")
    if node is None or backbone.conditioning is None:
        return dict(config)
    return {**config, "backbone": {**config["backbone"], "conditioning": backbone.conditioning.settle(node)}}
