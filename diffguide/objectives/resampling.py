"""Importance sampling of noise levels by their losses."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..randomness import Share
from ..runtime.ranges import check_range, check_whole
from ..schedules import Schedule
from .levels import NoiseLevels, draw_uniform

__all__ = ["LossSecondMoment"]


class LossSecondMoment(nn.Module, NoiseLevels):
    """t drawn with p(t) ~ sqrt(E[L_t^2]), losses multiplied by 1 / p(t): the mean of uniform t, with less variance.

    Nichol & Dhariwal, "Improved Denoising Diffusion Probabilistic Models", 2021, arXiv 2102.09672, eq. 18, over bins of
    time in place of discrete steps. Times are uniform until every bin has its history, and in evaluation. The returned
    density is that of uniform t, for which the weights are defined.

    The losses lie in buffers: they are saved with the objective and equal on every device. A step adds its losses in the
    order of the whole batch, however devices and micro-steps share the batch.

    Arguments:
        bins: of time, at least 1.
        history: latest losses kept per bin, at least 1; 10 in the paper.
        floor: share of uniform times, in (0, 1]; 0.001 in the paper's code.
        stratified: as for `UniformTime`.
    """

    squares: Tensor
    count: Tensor

    def __init__(self, bins: int = 100, history: int = 10, floor: float = 0.001, stratified: bool = True):
        super().__init__()
        check_whole("bins", bins, 1)
        check_whole("history", history, 1)
        self.floor = check_range("floor", floor, "(0, 1]")
        self.stratified = bool(stratified)
        self.register_buffer("squares", torch.zeros(bins, history))  # of the latest losses, a ring for each bin
        self.register_buffer("count", torch.zeros(bins, dtype=torch.long))  # of all losses that a bin has had
        self.waiting: list[Tensor] = []  # (row in the batch, time, loss) of this step's examples so far

    def shares(self) -> Tensor:
        """p(t) of each bin, float64, of mean 1."""
        bins, history = self.squares.shape
        size = self.squares.double().mean(1).sqrt()
        known = (self.count >= history).all() & (size.sum() > 0) & self.training
        learned = size * bins / size.sum().clamp(min=torch.finfo(size.dtype).tiny)
        return torch.where(known, self.floor + (1 - self.floor) * learned, 1.0)

    def bin(self, t: Tensor) -> Tensor:
        """The bin of each time."""
        bins = len(self.count)
        return (t * bins).long().clamp(0, bins - 1)

    def __call__(self, schedule: Schedule, n: int, rng: torch.Generator | Share) -> tuple[Tensor, Tensor]:
        share = self.shares() / len(self.count)
        above = share.cumsum(0)
        place = draw_uniform(n, rng, self.stratified) * above[-1]
        k = torch.searchsorted(above, place, right=True).clamp(max=len(share) - 1)
        t = (k + ((place - above[k] + share[k]) / share[k]).clamp(0, 1)) / len(share)
        return t, 1 / schedule.rate(t).abs()

    def importance(self, t: Tensor) -> Tensor:
        return 1 / self.shares()[self.bin(t)]

    def observe(self, t: Tensor, loss: Tensor, rng: torch.Generator | Share) -> None:
        first = rng.first if isinstance(rng, Share) else 0
        row = torch.arange(first, first + len(t), device=t.device)
        self.waiting.append(torch.stack([row.to(t), t, loss.detach().to(t)]))

    def finish_step(self, gather: Callable[[Tensor], Tensor]) -> None:
        step = gather(torch.cat(self.waiting, 1)).reshape(-1, 3, sum(part.shape[1] for part in self.waiting))
        self.waiting = []
        row, t, loss = step.transpose(0, 1).flatten(1)
        order = row.argsort()
        self.remember(self.bin(t[order]), loss[order].square())

    def remember(self, bins: Tensor, squares: Tensor) -> None:
        """Appends squares [n] to the rings of their bins [n], in order."""
        history = self.squares.shape[1]
        own = nn.functional.one_hot(bins, len(self.count))
        rank = (own.cumsum(0) - 1).gather(1, bins[:, None])[:, 0]  # among those of the same bin
        new = own.sum(0)
        kept = new[bins] - rank <= history  # a ring that goes round twice keeps the later ones
        place = (self.count[bins] + rank) % history
        self.squares[bins[kept], place[kept]] = squares[kept].to(self.squares)
        self.count += new
