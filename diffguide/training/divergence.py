"""Whether training still makes sense: its losses and gradients are finite."""

from collections import deque

import torch
from torch import Tensor

from ..objectives import Diverged, Loss

__all__ = ["DivergenceWatch"]


class DivergenceWatch:
    """Stops a run whose loss or gradient is not finite.

    Arguments:
        lag: steps by which the look is late, so that an accelerator's queue never runs empty for it.
    """

    def __init__(self, lag: int):
        self.lag, self.waiting = lag, deque()

    def check(self, images: int, step: int, losses: list[Loss], norm: Tensor | None) -> None:
        """Notes a step, and judges the one that is `lag` steps old."""
        finite = torch.stack([loss.per_example.isfinite().all() for loss in losses]).all()
        self.waiting.append((finite if norm is None else finite & norm.isfinite(), images, step, losses))
        if len(self.waiting) > self.lag:
            self.raise_if_not_finite(*self.waiting.popleft())

    def flush(self) -> None:
        """Judges what is left."""
        while self.waiting:
            self.raise_if_not_finite(*self.waiting.popleft())

    def raise_if_not_finite(self, finite: Tensor, images: int, step: int, losses: list[Loss]) -> None:
        if finite:
            return
        bad = torch.cat([~loss.per_example.isfinite() for loss in losses])
        what = f"the loss of {int(bad.sum())} of {len(bad)} examples is" if bad.any() else "the loss's gradient is"
        where = ""
        if all(loss.log_snr is not None for loss in losses):
            levels = torch.cat([torch.exp(-0.5 * loss.log_snr) for loss in losses])
            levels = sorted(levels[bad if bad.any() else slice(None)].tolist())
            shown = levels if len(levels) <= 4 else [*levels[:2], "...", *levels[-2:]]
            where = ", noise level sigma/alpha " + ", ".join(x if x == "..." else f"{x:.4g}" for x in shown)
        raise Diverged(f"{what} not finite at step {step} ({images} images){where}")
