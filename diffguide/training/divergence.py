"""Stops a training whose loss or gradient is not finite."""

from collections import deque

import torch
from torch import Tensor

from ..objectives import Diverged, Loss

__all__ = ["DivergenceWatch"]


class DivergenceWatch:
    """Stops a run whose loss or gradient is not finite.

    Arguments:
        lag: number of steps that may wait for the check. To read a result of an accelerator is to wait until it has done all
            its work, so the steps are checked together.
    """

    def __init__(self, lag: int):
        self.lag = lag
        self.waiting: deque[tuple[Tensor, int, int, list[Loss]]] = deque()

    def check(self, images: int, step: int, losses: list[Loss], norm: Tensor | None) -> None:
        """Adds a step, and checks all of them if there are more than `lag`.

        Arguments:
            norm: of the gradient, None = not checked.

        Raises:
            Diverged: a step was not finite.
        """
        finite = torch.stack([loss.per_example.isfinite().all() for loss in losses]).all()
        self.waiting.append((finite if norm is None else finite & norm.isfinite(), images, step, losses))
        if len(self.waiting) > self.lag:
            self.flush()

    def flush(self) -> None:
        """Checks all steps that wait; raises Diverged for the first that was not finite."""
        if self.waiting and torch.stack([finite for finite, *_ in self.waiting]).all():
            self.waiting.clear()
        while self.waiting:
            raise_if_not_finite(*self.waiting.popleft())


def raise_if_not_finite(finite: Tensor, images: int, step: int, losses: list[Loss]) -> None:
    if finite:
        return
    bad = torch.cat([~loss.per_example.isfinite() for loss in losses])
    subject = f"the loss of {int(bad.sum())} of {len(bad)} examples" if bad.any() else "the gradient of the loss"
    noise_levels = ""
    log_snrs = [loss.log_snr for loss in losses if loss.log_snr is not None]
    if len(log_snrs) == len(losses):
        levels = torch.exp(-0.5 * torch.cat(log_snrs))
        texts = [f"{level:.4g}" for level in sorted(levels[bad if bad.any() else slice(None)].tolist())]
        if len(texts) > 4:
            texts[2:-2] = ["..."]
        noise_levels = ", noise level sigma/alpha " + ", ".join(texts)
    raise Diverged(f"{subject} is not finite at step {step} ({images} images){noise_levels}")
