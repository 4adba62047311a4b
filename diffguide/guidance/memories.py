"""What guidance remembers of a run, by noise level."""

import math

from torch import Tensor

__all__ = ["LevelMemory"]


class LevelMemory:
    """Tensors of the previous noise level of one run.

    A level at which the network is evaluated counts as a step. The memory advances when t falls, is computed again at equal
    t, so that the two evaluations of Heun's method at one level count once, and is cleared when t rises or the number of
    rows changes (outer guidance may stack several conditions).
    """

    def __init__(self) -> None:
        self.t = math.inf
        self.before: tuple[Tensor, ...] | None = None
        self.now: tuple[Tensor, ...] | None = None

    def recall(self, t: Tensor, rows: int) -> tuple[Tensor, ...] | None:
        """What was stored at the previous level; None at the first level and for another number of rows."""
        time = float(t)
        if time != self.t:
            self.before = self.now if time < self.t else None
            self.t = time
        return self.before if self.before is not None and len(self.before[0]) == rows else None

    def store(self, *values: Tensor) -> None:
        """Stores the values of this level, detached; the first one has one entry per row."""
        self.now = tuple(value.detach() for value in values)
