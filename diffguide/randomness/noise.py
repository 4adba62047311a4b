"""The noise of a sampling run: a row per sample, a function of its seed alone."""

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..schedules import Schedule, as_time
from .brownian import BrownianPath
from .counters import create_states, fold_in, normals

__all__ = ["Noise"]

NORMAL, PATH, SHORT, PARTICLE = 1, 2, 3, 4  # purposes, with independent numbers


class Noise:
    """The noise of one run, a row per sample; row i is a function of seeds[i] alone.

    Arguments:
        seeds: one non-negative integer per sample.
        shape: shape of one sample.
        schedule: defines the clock of the Brownian path, c = sigma^2 / (alpha^2 + sigma^2).
        device: device on which the numbers are drawn; they are the same on every device, to rounding.
        dtype: dtype of the results.
        depth: depth of the path's binary tree, see `BrownianPath`.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        shape: Sequence[int],
        schedule: Schedule | None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        depth: int = 4,
    ):
        self.states = create_states(seeds, device)
        self.shape, self.schedule, self.depth = tuple(shape), schedule, depth
        self.device, self.dtype = device, dtype
        self.path = self._begin_path()

    def _begin_path(self) -> BrownianPath:
        exact = torch.float64 if self.dtype == torch.float64 else torch.float32
        return BrownianPath(fold_in(self.states, PATH), math.prod(self.shape), self.depth, exact)

    def normal(self, level: Tensor | float, draw: int) -> Tensor:
        """Standard normals [B, *shape], independent for every time `level` and number `draw`."""
        return self._draw(NORMAL, level, draw)

    def of(self, shape: Sequence[int]) -> "Noise":
        """The noise of the same samples in another shape."""
        other = copy.copy(self)
        other.shape = tuple(shape)
        other.path = other._begin_path()
        return other

    def split(self, count: int) -> "Noise":
        """The noise of `count` particles per sample, [B count, *shape], those of a sample together: the first has its noise."""
        other = copy.copy(self)
        numbers = torch.arange(count, dtype=torch.int64, device=self.states.device)
        states = fold_in(fold_in(self.states, PARTICLE)[:, None], numbers)
        states[:, 0] = self.states
        other.states = states.flatten()
        other.path = other._begin_path()
        return other

    def increment(self, t: Tensor | float, s: Tensor | float) -> Tensor:
        """(W(c_t) - W(c_s)) / sqrt(c_t - c_s) [B, *shape], standard normal, of one Brownian path W per sample.

        Increments over disjoint intervals are independent, and those over the parts of an interval add up to that of the
        interval. Smaller steps refine the same path: it has equal values at the 2^depth + 1 angles of its tree, whatever
        the steps.

        Raises:
            ValueError: s that is not below t.
        """
        if not float(s) < float(t):
            raise ValueError(f"s must be below t in a noise increment, got t = {float(t)} and s = {float(s)}")
        high, low = self._locate(t), self._locate(s)
        if high == low:  # below the resolution of the path, near exact data
            return self._draw(SHORT, t, 0)
        return self._reshape(self.path.increment(high, low))

    def _draw(self, purpose: int, level: Tensor | float, draw: int) -> Tensor:
        key = round(float(level) * 2**40)  # rounded, since the last bits differ between machines
        state = fold_in(fold_in(fold_in(self.states, purpose), key), draw)
        return self._reshape(normals(state, math.prod(self.shape)))

    def _reshape(self, values: Tensor) -> Tensor:
        return values.reshape(-1, *self.shape).to(self.dtype)

    def _locate(self, t: Tensor | float) -> int:
        assert self.schedule is not None
        return self.path.locate(float(self.schedule.noise_level(as_time(t))))
