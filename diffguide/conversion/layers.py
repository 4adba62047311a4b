"""Layers of published networks under our names."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..backbones.edm_layers import as_bits
from .weights import ConversionError, PublishedWeights

__all__ = ["Layers", "take_network"]


class Layers:
    """Collects tensors of ours, taken from a published file layer by layer.

    Attributes:
        weights: of the file.
        tensors: collected, by our names.
    """

    def __init__(self, weights: PublishedWeights):
        self.weights = weights
        self.tensors: dict[str, Tensor] = {}

    def take(self, theirs: str, ours: str, *shape: int) -> None:
        """Weight and bias of a layer, and of a convolution over a sequence for our convolution over images.

        Arguments:
            theirs, ours: names of the layer.
            shape: of our weight; a published weight may lack axes of length 1 at its end.

        Raises:
            ConversionError: a tensor that is missing or has another shape.
        """
        self.tensors[f"{ours}.weight"] = self.take_weight(theirs, *shape)
        self.tensors[f"{ours}.bias"] = self.weights.take(f"{theirs}.bias", shape[0])

    def take_weight(self, theirs: str, *shape: int) -> Tensor:
        """The weight of a layer in our shape."""
        name, given = f"{theirs}.weight", shape
        axes = len(self.weights.shape(name))
        while len(given) > max(axes, 1) and given[-1] == 1:
            given = given[:-1]
        given += (1,) * (axes - len(given))
        return self.weights.take(name, *given).reshape(shape)


def take_network(
    weights: PublishedWeights, network: type[nn.Module], node: Mapping[str, Any], prefix: str, embedding: str
) -> dict[str, Tensor]:
    """The tensors of a network of ours, which the file has by the same names, but for the embedding's.

    Arguments:
        network, node: its class and arguments.
        prefix: of every name in the file.
        embedding: what stands there for our "embedding.".

    Raises:
        ConversionError: arguments that the network refuses, or a tensor that is missing or has another shape.
    """
    arguments = {name: value for name, value in node.items() if name != "_target_"}
    try:
        with torch.device("meta"):
            wanted = network(**arguments).state_dict()
    except (ValueError, TypeError) as error:
        raise ConversionError(f"its tensors and arguments are no network: {error}") from error
    tensors = {}
    for name, like in wanted.items():
        value = weights.take(prefix + name.replace("embedding.", embedding, 1), *like.shape)
        tensors[name] = as_bits(value) if like.dtype == torch.int32 else value
    return tensors
