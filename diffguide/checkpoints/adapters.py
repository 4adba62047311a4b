"""Adapters in checkpoints: their weights are apart there, and part of the network in a loaded model."""

from typing import Any

from torch import nn

from ..backbones.lora import LoRA, merge_adapters

__all__ = ["merge_adapter"]


def merge_adapter(config: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """Adds the adapter of a model, if it has one, to the weights of its network, in place.

    Returns:
        the configuration with the network in place of the one with an adapter, whose arguments are the node `adapter`.
    """
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, LoRA):
        return config
    model.backbone = merge_adapters(backbone)
    adapter = dict(config["backbone"])
    return {**config, "backbone": adapter.pop("network"), "adapter": adapter}
