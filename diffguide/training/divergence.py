"""Whether training still makes sense: losses and gradients must be finite."""

from collections import deque

import torch
from torch import Tensor

from ..objectives import Diverged, Loss

__all__ = ["DivergenceWatch"]


class DivergenceWatch:
    """Stops a run whose loss or gradient is not finite.

    Arguments:
        lag: steps by which the check is late, so that an accelerator's queue never waits for it.
    """

    def __init__(self, lag: int):
        self.lag = lag
        self.waiting: deque[tuple[Tensor, int, int, list[Loss]]] = deque()

    def check(self, images: int, step: int, losses: list[Loss], norm: Tensor | None) -> None:
        """Notes a step, and checks the one that is `lag` steps old.

        Arguments:
            norm: of the gradient, None = not checked.

        Raises:
            Diverged: that step was not finite.
        """
        finite = torch.stack([loss.per_example.isfinite().all() for loss in losses]).all()
        self.waiting.append((finite if norm is None else finite & norm.isfinite(), images, step, losses))
        if len(self.waiting) > self.lag:
            raise_if_not_finite(*self.waiting.popleft())

    def flush(self) -> None:
        """Checks every step that is left."""
        while self.waiting:
            raise_if_not_finite(*self.waiting.popleft())


def raise_if_not_finite(finite: Tensor, images: int, step: int, losses: list[Loss]) -> None:
    if finite:
        return
    bad = torch.cat([~loss.per_example.isfinite() for loss in losses])
    what = f"the loss of {int(bad.sum())} of {len(bad)} examples is" if bad.any() else "the loss's gradient is"
    where = ""
    log_snrs = [loss.log_snr for loss in losses if loss.log_snr is not None]
    if len(log_snrs) == len(losses):
        levels = torch.exp(-0.5 * torch.cat(log_snrs))
        shown = [f"{level:.4g}" for level in sorted(levels[bad if bad.any() else slice(None)].tolist())]
        if len(shown) > 4:
            shown[2:-2] = ["..."]
        where = ", noise level sigma/alpha " + ", ".join(shown)
    raise Diverged(f"{what} not finite at step {step} ({images} images){where}")
