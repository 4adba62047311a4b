"""Trained models that an objective learns from, and the inputs that an objective needs of its network."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..checkpoints.references import check_guides, with_guides
from ..config.build import ConfigError
from ..config.type_checks import import_callable
from ..datasets import Dataset

__all__ = ["give_inputs", "load_teachers"]


def give_inputs(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration whose network has the `further_inputs` of its objective.

    Raises:
        ConfigError: a network that has none.
    """
    count = getattr(import_callable(config["objective"]["_target_"], "objective"), "further_inputs", 0)
    backbone = dict(config["backbone"])
    if not count or backbone.get("further_inputs") == count:
        return dict(config)
    if "further_inputs" not in backbone and not backbone["_target_"].endswith((".UNet", ".DiT", ".MLP")):
        name = backbone["_target_"].rpartition(".")[2]
        raise ConfigError(
            f"this objective needs backbone=unet, dit or mlp (of any size): {name} takes a noise level alone"
        )
    return {**config, "backbone": backbone | {"further_inputs": count}}


def load_teachers(
    node: Mapping[str, Any], device: Any, trust: Sequence[str], data: Dataset
) -> tuple[Mapping[str, Any], list[str]]:
    """The node of an objective with its trained models loaded, and a line for the log of each.

    Raises:
        ConfigError: a missing or invalid model, or one of other data.
    """
    try:
        loaded, guides = with_guides(dict(node), "objective", device, trust)
        check_guides(guides, data.shape, data.class_names)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return loaded, [f"learns from {guide.file} (sha256 {guide.sha256[:12]})" for guide in guides]
