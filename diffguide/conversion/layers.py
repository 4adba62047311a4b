"""Layers of published networks under our names."""

from torch import Tensor

from .weights import PublishedWeights

__all__ = ["Layers"]


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
