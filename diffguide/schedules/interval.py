"""Intervals of noise levels."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

__all__ = ["EVERYWHERE", "Interval"]


class Interval(NamedTuple("Interval", [("low", float), ("high", float)])):
    """The noise levels sigma / alpha in (low, high].

    Raises:
        ValueError: not 0 <= low < high.
    """

    def __new__(cls, low: float = 0.0, high: float = math.inf) -> "Interval":
        if not 0 <= low < high:
            raise ValueError(f"need noise levels sigma/alpha 0 <= low < high, got {low} and {high}")
        return super().__new__(cls, float(low), float(high))

    @classmethod
    def of(cls, pair: Sequence[float], name: str = "interval") -> "Interval":
        """The interval of a pair; `name` is what the caller calls it.

        Raises:
            ValueError: no pair, or not 0 <= low < high.
        """
        if len(pair) != 2:
            raise ValueError(f"{name} must be a pair of noise levels sigma/alpha, got {list(pair)}")
        try:
            return cls(*pair)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None

    def contains(self, level: Tensor) -> Tensor:
        """Whether noise levels lie in the interval, in their shape."""
        return (self.low < level) & (level <= self.high)


EVERYWHERE = Interval()
