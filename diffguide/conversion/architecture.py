"""What a published family of networks is here: nodes of a configuration, and the place of every tensor."""

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from .weights import PublishedWeights

__all__ = ["Architecture", "Network"]


class Network(NamedTuple):
    """A published network as a model of diffguide.

    Arguments:
        dataset, backbone, schedule, objective: nodes of a run's configuration.
        tensors: of the backbone, by its names, float32.
        shape: of one example, such as [3, 64, 64].
        classes: number of classes, 0 = none.
        notes: sentences for the user, such as about tensors that are left out.
    """

    dataset: dict[str, Any]
    backbone: dict[str, Any]
    schedule: dict[str, Any]
    objective: dict[str, Any]
    tensors: dict[str, Tensor]
    shape: list[int]
    classes: int
    notes: Sequence[str] = ()


class Architecture:
    """Base of the families: architecture.convert(weights) -> Network.

    What the tensors tell (widths, depths, classes) is read from them; the arguments of a subclass are what they do not tell,
    with the values of the published models as defaults.

    Attributes:
        family: name in messages and in the origin of the run.
    """

    family: ClassVar[str]

    def convert(self, weights: PublishedWeights) -> Network:
        """The network of these weights.

        Raises:
            ConversionError: a tensor that is missing or has another shape; names it. The caller refuses what was not taken.
            ValueError: arguments that do not fit the tensors.
        """
        raise NotImplementedError
