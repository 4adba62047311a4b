"""Intervals of noise levels."""

import math
from collections.abc import Sequence
from typing import NamedTuple, overload

from torch import Tensor

__all__ = ["EVERYWHERE", "Interval"]


class Interval(NamedTuple("Interval", [("low", float), ("high", float)])):
    """The noise levels sigma / alpha in (low, high].

    Raises:
        ValueError: not 0 <= low < high.
    """

    def __new__(cls, low: float = 0.0, high: float = math.inf) -> "Interval":
        return cls.of((low, high))

    @classmethod
    def of(cls, pair: Sequence[float], name: str = "interval") -> "Interval":
        """The interval of a pair; an error names the caller's argument `name`.

        Raises:
            ValueError: not a pair 0 <= low < high.
        """
        if len(pair) != 2 or not 0 <= pair[0] < pair[1]:
            raise ValueError(f"{name} must be noise levels sigma/alpha with 0 <= low < high, got {list(pair)}")
        return super().__new__(cls, float(pair[0]), float(pair[1]))

    @overload
    def contains(self, level: Tensor) -> Tensor: ...

    @overload
    def contains(self, level: float) -> bool: ...

    def contains(self, level):
        """Whether each noise level lies in the interval, in the shape of `level`."""
        return (self.low < level) & (level <= self.high)


EVERYWHERE = Interval()
