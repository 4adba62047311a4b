"""The noise of a sampling run: a row per sample, a function of its seed alone."""

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..schedules import Schedule, as_time
from .brownian import BrownianPath
from .counters import fold_in, normals, states_of

__all__ = ["Noise"]

NORMAL, PATH, SHORT = 1, 2, 3  # purposes, so that independent draws and the Brownian path never share a number
LEVEL_BITS = 40  # a level is rounded to 2^-40: the last bits of a float may differ between machines


class Noise:
    """The noise of one run, a row per sample; row i is a function of seeds[i] alone.

    Arguments:
        seeds: one non-negative integer per sample.
        shape: of one sample.
        schedule: gives the clock of the Brownian path, c = sigma^2 / (alpha^2 + sigma^2).
        device: where it is drawn; the numbers are the same on every device, up to rounding.
        dtype: of what is returned.
        depth: of the path's tree over the angle atan(sigma / alpha) / (pi / 2), see `BrownianPath`.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        shape: Sequence[int],
        schedule: Schedule | None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        depth: int = 6,
    ):
        self.states = states_of(seeds).to(device)
        self.shape, self.schedule, self.dtype, self.depth = tuple(shape), schedule, dtype, depth
        self.path = self._begin_path()

    @property
    def device(self) -> torch.device:
        return self.states.device

    def _begin_path(self) -> BrownianPath:
        exact = torch.float64 if self.dtype == torch.float64 else torch.float32
        return BrownianPath(fold_in(self.states, PATH), math.prod(self.shape), self.depth, exact)

    def normal(self, level: Tensor | float, draw: int) -> Tensor:
        """Independent standard normals [B, *shape] for one use: the `draw`-th at time `level`."""
        return self._draw(NORMAL, level, draw)

    def of(self, shape: Sequence[int]) -> "Noise":
        """The noise of the same samples for something of another shape."""
        other = copy.copy(self)
        other.shape = tuple(shape)
        other.path = other._begin_path()
        return other

    def increment(self, t: Tensor | float, s: Tensor | float) -> Tensor:
        """(W(c_t) - W(c_s)) / sqrt(c_t - c_s) [B, *shape], standard normal, of one Brownian path W per sample.

        Increments over disjoint intervals are independent, and those over the parts of an interval add up to that
        over the whole: halving the steps refines the same path.

        Raises:
            ValueError: s not before t.
        """
        if not float(s) < float(t):
            raise ValueError(
                f"a noise increment needs a step from a time to an earlier one, got {float(t)} to {float(s)}"
            )
        later, earlier = self._point(t), self._point(s)
        if later == earlier:  # shorter than the path's resolution, near exact data: nothing there to refine
            return self._draw(SHORT, t, 0)
        difference = self.path.value(later) - self.path.value(earlier)
        return self._shaped(difference.div_(math.sqrt(self.path.clock(later) - self.path.clock(earlier))))

    def _draw(self, purpose: int, level: Tensor | float, draw: int) -> Tensor:
        key = round(float(level) * 2**LEVEL_BITS)
        return self._shaped(normals(fold_in(fold_in(fold_in(self.states, purpose), key), draw), math.prod(self.shape)))

    def _shaped(self, values: Tensor) -> Tensor:
        return values.reshape(-1, *self.shape).to(self.dtype)

    def _point(self, t: Tensor | float) -> int:
        assert self.schedule is not None
        return self.path.locate(float(self.schedule.noise_level(as_time(t))))
