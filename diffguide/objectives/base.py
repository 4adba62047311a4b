"""The contract of every objective, and the label dropout they share."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..backbones.conditions import Condition, remove_condition
from ..randomness import Share, uniform

__all__ = ["Diverged", "Loss", "Objective", "check_dropout", "check_weights", "drop_condition"]


class Diverged(ValueError):
    """Training that came to nothing: a loss or gradient that is not finite, energies that run away; the message says where."""


class Loss(NamedTuple):
    """per_example [B], to be averaged and differentiated; terms: its named parts, detached, each [B], for the log.

    log_snr [B]: the noise level of each example, for messages; None where there is none.
    """

    per_example: Tensor
    terms: dict[str, Tensor]
    log_snr: Tensor | None = None


class Objective(nn.Module):
    """objective(x_0, y, rng) -> Loss: x_0 [B, ...] in [-1, 1]; y [B] class indices, an Embedding or None; rng on its device.

    Its random numbers come from `randomness.normal` and `uniform`, so that rng may be the share of a divided batch.

    Attributes:
        model: what survives training (a denoiser, a classifier, an energy). Everything that the model owns is
            registered there and nowhere else.
        compilable: whether the backbone may go through torch.compile, which has no gradients of gradients, and computes those
            by the input with those by all parameters.
        divisible: whether a batch may be divided among devices and micro-steps.
        max_restores: how often a run that diverged goes back to its last checkpoint, and on from there with other randomness.
    """

    model: nn.Module
    compilable = True
    divisible = True
    max_restores = 0

    def forward(self, x_0: Tensor, y: Condition | None, rng: torch.Generator | Share) -> Loss:
        raise NotImplementedError

    def check(self, x_0: Tensor) -> None:
        """
        Raises:
            ValueError: examples [B, ...] that it cannot learn from; most can from all.
        """

    def figures(self, loss: Loss) -> dict[str, float]:
        """What metrics.jsonl says of a held-out split beside its mean loss; most have nothing to say.

        Arguments:
            loss: of all examples of the split.
        """
        return {}

    def finish_step(self, gather: Callable[[Tensor], Tensor]) -> None:
        """After every optimiser step, on every device, for what an objective learns beside its gradient.

        Arguments:
            gather: stacks a tensor of every device, as Fabric's `all_gather` does; one device may return it as it is.

        Raises:
            Diverged: training that came to nothing.
        """

    def memory(self) -> dict[str, Tensor]:
        """What training goes on from beside parameters and buffers, for its checkpoint; most have none."""
        return {}

    def remember(self, memory: dict[str, Tensor], shape: Sequence[int]) -> None:
        """Goes on from the `memory` of a checkpoint.

        Arguments:
            shape: of one example.

        Raises:
            ValueError: a memory that is not this objective's.
        """
        if memory:
            raise ValueError(f"it holds {min(memory)}, which {type(self).__name__} has no use for")


def check_dropout(p_uncond: float) -> None:
    """
    Raises:
        ValueError: a probability of training without condition that is none.
    """
    if not 0 <= p_uncond <= 1:
        raise ValueError(f"p_uncond must be in [0, 1], got {p_uncond}")


def check_weights(ce_weight: float, mse_weight: float) -> None:
    """
    Raises:
        ValueError: weights of a cross-entropy and a squared error that leave nothing to learn, or its opposite.
    """
    if not (ce_weight >= 0 and mse_weight >= 0 and 0 < ce_weight + mse_weight < float("inf")):
        raise ValueError(
            f"ce_weight and mse_weight must be at least 0 and not both 0, got {ce_weight} and {mse_weight}"
        )


def drop_condition(y: Condition | None, probability: float, rng: torch.Generator | Share) -> Condition | None:
    """y without its condition (-1, or keep=False) in every row independently with the given probability.

    Ho & Salimans, "Classifier-Free Diffusion Guidance", 2022, arXiv 2207.12598, algorithm 1.
    """
    if y is None or probability == 0:
        return y
    return remove_condition(y, uniform((len(y),), rng, torch.float32) < probability)
