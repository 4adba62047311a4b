"""The contract of every objective, and the label dropout they share."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..randomness import Share, uniform

__all__ = ["Loss", "Objective", "drop_condition"]


class Loss(NamedTuple):
    """per_example [B], to be averaged and differentiated; terms: its named parts, detached, each [B], for the log.

    log_snr [B]: the noise level of each example, for messages; None where there is none.
    """

    per_example: Tensor
    terms: dict[str, Tensor]
    log_snr: Tensor | None = None


class Objective(nn.Module):
    """objective(x_0, y, rng) -> Loss, with x_0 [B, ...] in [-1, 1], y [B] class indices or None, rng on x_0's device.

    Its random numbers come from `randomness.normal` and `uniform`, so that rng may be the share of a divided batch.

    Attributes:
        model: what survives training (a denoiser, a classifier, an energy). Everything that the model owns is
            registered there and nowhere else.
    """

    model: nn.Module

    def forward(self, x_0: Tensor, y: Tensor | None, rng: torch.Generator | Share) -> Loss:
        raise NotImplementedError


def drop_condition(y: Tensor | None, probability: float, rng: torch.Generator | Share) -> Tensor | None:
    """y with every row independently replaced by -1 (no condition) with the given probability.

    Ho & Salimans, "Classifier-Free Diffusion Guidance", 2022, arXiv 2207.12598, algorithm 1.
    """
    if y is None or probability == 0:
        return y
    return torch.where(uniform(y.shape, rng, torch.float32) < probability, -1, y)
