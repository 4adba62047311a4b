"""Adapters in checkpoints: their weights are apart there, and part of the network in a loaded model."""

import math
from typing import Any

from torch import nn

from ..backbones.lora import LoRA, merge_adapters
from ..files.safetensors import CheckpointError

__all__ = ["check_scale", "merge_adapter"]


def check_scale(scale: float | None) -> None:
    """Raises CheckpointError for a strength of an adapter that is no finite number."""
    if scale is not None and not math.isfinite(scale):
        raise CheckpointError(
            f"adapter_scale must be a finite number, 0 = without the adapter, 1 = as trained, got {scale}"
        )


def merge_adapter(config: dict[str, Any], model: nn.Module, scale: float | None = 1.0) -> dict[str, Any]:
    """Adds the adapter of a model, if it has one, to the weights of its network, in place.

    Arguments:
        scale: factor of its matrices; None = they stay apart, and so does the configuration.

    Returns:
        the configuration with the network in place of the one with an adapter, whose arguments are the node `adapter`.
    """
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, LoRA) or scale is None:
        return config
    model.backbone = merge_adapters(backbone, scale)
    adapter = dict(config["backbone"])
    network = adapter.pop("network")
    return {**config, "backbone": network, "adapter": adapter if scale == 1 else {**adapter, "scale": scale}}
