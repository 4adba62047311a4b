"""The joint energy of JEM: class logits as an unnormalised density of clean data."""

import torch
from torch import Tensor, nn

from ..backbones import Backbone
from ..backbones.conditions import Condition, RowCondition
from .noisy_classifier import check_outputs
from .parameterizations import at_least_float32
from .protocols import Classifier, Energy

__all__ = ["JointEnergy"]


class JointEnergy(nn.Module, Energy, Classifier):  # type: ignore[misc]  # without noise levels it has no schedule
    """log p(x, y) = f(x)[y], log p(x) = logsumexp f(x), both up to one constant; log p(y | x) = log softmax f(x).

    Grathwohl, Wang, Jacobsen, Duvenaud, Norouzi, Swersky, "Your Classifier is Secretly an Energy Based Model and You Should
    Treat it Like One", 2020, arXiv 1912.03263, eq. 5 to 7.

    Arguments:
        backbone: network (x, None, None) -> f [B, number of classes], without noise input.

    Raises:
        ValueError: a backbone with noise input, with a condition input, or without one output per class.
    """

    normalized = False
    has_null = True

    def __init__(self, backbone: Backbone):
        super().__init__()
        check_outputs(backbone, "a joint energy", "convnet")
        if backbone.noise_conditioned:
            raise ValueError("a joint energy has no noise levels: set backbone.noise_conditioned=false")
        self.backbone, self.num_classes = backbone, backbone.out_features

    def logits(self, x: Tensor) -> Tensor:
        """f(x), [B, num_classes], float32 at least."""
        x = at_least_float32(x)
        return self.backbone(x, None, None).to(x.dtype)

    def log_density(self, x: Tensor, t: Tensor | None = None, y: Condition | None = None) -> Tensor:
        """log p(x, y), or log p(x) in rows with y = -1 and for y None, up to one constant: [B] nats; t is ignored."""
        return joint_log_density(self.logits(x), y)

    def log_prob(self, x_t: Tensor, t: Tensor | None = None) -> Tensor:
        """log p(y | x), [B, num_classes]; t is ignored."""
        return self.logits(x_t).log_softmax(1)


def joint_log_density(logits: Tensor, y: Condition | None) -> Tensor:
    """logits[y] of every row, [B], and their logsumexp where y is -1 or None.

    Raises:
        ValueError: a condition that is no class indices.
    """
    if isinstance(y, RowCondition):
        raise ValueError(f"the condition of an energy is class indices [B], got {type(y).__name__}")
    whole = logits.logsumexp(1)
    if y is None:
        return whole
    return torch.where(y < 0, whole, logits.gather(1, y.clamp(min=0)[:, None])[:, 0])
