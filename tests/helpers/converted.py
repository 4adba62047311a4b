"""Published weights as models, without the command."""

from collections.abc import Mapping

from torch import Tensor

from diffguide.checkpoints.assembly import assemble
from diffguide.conversion.architecture import Architecture
from diffguide.conversion.weights import PublishedWeights


def convert(architecture: Architecture, tensors: Mapping[str, Tensor]):
    """The model of published tensors, which must all have a place."""
    weights = PublishedWeights(tensors, architecture.family)
    network = architecture.convert(weights)
    weights.finish()
    nodes = {"dataset": network.dataset, "backbone": network.backbone, "schedule": network.schedule}
    objective = assemble(nodes | {"objective": network.objective}, (), "cpu")
    objective.load_state_dict({f"model.backbone.{name}": value for name, value in network.tensors.items()})
    return objective.model.eval().requires_grad_(False)


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """The largest error of an element, in units of the largest element."""
    return float((ours - theirs).abs().max() / theirs.abs().max())
