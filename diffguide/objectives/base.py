"""The base of objectives, label dropout, and shared checks."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..backbones.conditions import Condition, remove_condition
from ..randomness import Share, uniform
from .levels import NoiseLevels

__all__ = [
    "Diverged",
    "LevelObjective",
    "Loss",
    "Objective",
    "check_weights",
    "drop_condition",
    "label_log_prob",
    "require_labels",
]


class Diverged(ValueError):
    """Training diverged: a loss or gradient is not finite, or energies drift apart. The message says where."""


class Loss(NamedTuple):
    """The loss of a batch.

    per_example: [B], to be averaged and differentiated.
    terms: named parts for the log, detached, [B] each.
    log_snr: noise level of each example for messages, [B]; None without noise levels.
    """

    per_example: Tensor
    terms: dict[str, Tensor]
    log_snr: Tensor | None = None


class Objective(nn.Module):
    """objective(x_0, y, rng) -> Loss: x_0 [B, ...] in [-1, 1]; y [B] class indices, an Embedding or None.

    rng is a generator on the device of x_0, or the `Share` of a divided batch; draw with `randomness.normal` and `uniform`.

    Attributes:
        model: what training yields (a denoiser, a classifier, an energy); its parts are registered here only.
        compilable: whether torch.compile may compile the backbone: not if the objective needs gradients of gradients.
        divisible: whether a batch may be divided among devices and micro-steps.
        max_restores: how often a diverged run restarts from its last checkpoint, with new randomness.
        further_inputs: numbers that its network takes beside the noise level.
    """

    model: nn.Module
    further_inputs = 0
    compilable = True
    divisible = True
    max_restores = 0

    def forward(self, x_0: Tensor, y: Condition | None, rng: torch.Generator | Share) -> Loss:
        raise NotImplementedError

    def check(self, x_0: Tensor) -> None:
        """Raises ValueError for examples [B, ...] that this objective cannot train on."""

    def figures(self, loss: Loss) -> dict[str, float]:
        """Figures of a held-out split for metrics.jsonl, beside the mean loss.

        Arguments:
            loss: of all examples of the split.
        """
        return {}

    def finish_step(self, gather: Callable[[Tensor], Tensor]) -> None:
        """Updates state that has no gradients, after every optimiser step on every device.

        Arguments:
            gather: stacks a tensor over the devices, as Fabric's `all_gather`; a single device may return it unchanged.

        Raises:
            Diverged: training diverged.
        """

    def memory(self) -> dict[str, Tensor]:
        """State for the checkpoint beside parameters and buffers."""
        return {}

    def remember(self, memory: dict[str, Tensor], shape: Sequence[int]) -> None:
        """Restores the `memory` of a checkpoint.

        Arguments:
            shape: of one example.

        Raises:
            ValueError: the memory of another objective.
        """
        if memory:
            raise ValueError(f"the checkpoint holds {min(memory)}, which {type(self).__name__} does not use")


class LevelObjective(Objective):
    """An objective that draws noise levels from `levels`."""

    levels: NoiseLevels

    def finish_step(self, gather: Callable[[Tensor], Tensor]) -> None:
        self.levels.finish_step(gather)


def check_weights(ce_weight: float, mse_weight: float) -> None:
    """Raises ValueError for a negative or infinite weight, or two weights of 0."""
    if not (ce_weight >= 0 and mse_weight >= 0 and 0 < ce_weight + mse_weight < float("inf")):
        raise ValueError(
            f"ce_weight and mse_weight must be at least 0 and not both 0, got {ce_weight} and {mse_weight}"
        )


def drop_condition(y: Condition | None, probability: float, rng: torch.Generator | Share) -> Condition | None:
    """Drops the condition (-1, or keep=False) of each row independently with the given probability.

    Ho & Salimans, "Classifier-Free Diffusion Guidance", 2022, arXiv 2207.12598, algorithm 1.
    """
    if y is None or probability == 0:
        return y
    return remove_condition(y, uniform((len(y),), rng, torch.float32) < probability)


def require_labels(y: Condition | None) -> Tensor:
    """The class labels [B] of a batch; raises ValueError for None and for an embedding."""
    if not isinstance(y, Tensor):
        raise ValueError(f"this objective needs class labels [B], got {type(y).__name__}; take a data set with classes")
    return y


def label_log_prob(log_prob: Tensor, y: Tensor) -> Tensor:
    """log p(y | .) of each row [B] from log-probabilities [B, K]; rows of y = -1 take class 0."""
    return log_prob.gather(1, y.clamp(min=0)[:, None])[:, 0]
