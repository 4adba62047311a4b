"""Optimisers that treat parameters by their shape."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..runtime.ranges import check_range

__all__ = ["Muon"]


class Muon(torch.optim.Optimizer):
    """Muon for matrices and AdamW for all other parameters, at one learning rate.

    A matrix W [A, B] with gradient G follows  M = momentum M + (1 - momentum) G,  W = (1 - lr weight_decay) W - s O  with
    s = 0.2 sqrt(max(A, B)) lr. O is near the orthogonal matrix nearest to momentum M + (1 - momentum) G, by five
    Newton-Schulz steps: directions that the loss rarely asks for move as fast as the others. The factor gives an update
    the root mean square of AdamW's, so that both share the rate. Both are torch's own.

    Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024, https://kellerjordan.github.io/posts/muon;
    the factor: Liu et al., "Muon is Scalable for LLM Training", 2025, arXiv 2502.16982, section 2.2.

    Arguments:
        params: of the network, all that is trained.
        lr: learning rate of both, at least 0.
        momentum: of matrices, in [0, 1).
        betas: decay of AdamW's moments, for the other parameters.
        weight_decay: of all parameters; multiplied by the learning rate in each step.
        fused: whether AdamW takes one kernel for all its parameters.

    Raises:
        ValueError: an argument out of its range, or no parameters.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 0.004,
        momentum: float = 0.95,
        betas: Sequence[float] = (0.9, 0.99),
        weight_decay: float = 0.01,
        fused: bool = True,
    ):
        check_range("momentum", momentum, "[0, 1)")
        kinds = torch.optim.Muon, torch.optim.AdamW
        every = list(params)
        parts = [value for value in every if value.ndim == 2], [value for value in every if value.ndim != 2]
        first, second = betas
        given: list[dict[str, Any]] = [
            {"momentum": momentum, "adjust_lr_fn": "match_rms_adamw"},
            {"betas": (first, second), "fused": fused},
        ]
        self.parts = [
            kind(values, lr=lr, weight_decay=weight_decay, **options)
            for kind, values, options in zip(kinds, parts, given)
            if values
        ]
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self.link()

    def link(self) -> None:
        """Gives each optimiser its group and the common state: loading a state replaces both."""
        for part, group in zip(self.parts, self.param_groups):
            part.param_groups, part.state = [group], self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; the loss of `closure`, which computes the gradients first, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.link()
        for part in self.parts:
            part.step()
        return loss
