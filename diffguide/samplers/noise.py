"""The noise of the steps of a run."""

from typing import Protocol

from torch import Tensor

__all__ = ["SharedIncrement", "StepNoise", "VisitNoise"]

DRAWS_PER_VISIT = 2**20  # no two visits share a draw; visits within a visit are DRAWS_PER_VISIT^2 apart


class StepNoise(Protocol):
    """What a step uses of `randomness.Noise`."""

    def normal(self, level: Tensor, draw: int) -> Tensor: ...

    def increment(self, t: Tensor, s: Tensor) -> Tensor: ...


class SharedIncrement:
    """Noise that draws each increment once: a step and its first-order replacement share it."""

    def __init__(self, noise: StepNoise):
        self.noise = noise
        self.drawn: dict[tuple[float, float], Tensor] = {}

    def normal(self, level: Tensor, draw: int) -> Tensor:
        return self.noise.normal(level, draw)

    def increment(self, t: Tensor, s: Tensor) -> Tensor:
        key = float(t), float(s)
        if key not in self.drawn:
            self.drawn[key] = self.noise.increment(t, s)
        return self.drawn[key]


class VisitNoise:
    """The noise of the `number`-th repetition of steps: independent of the run's and of all other repetitions, nested ones
    included."""

    def __init__(self, noise: StepNoise, number: int):
        self.noise = noise
        self.depth: int = noise.depth + 1 if isinstance(noise, VisitNoise) else 1
        self.offset = (number + 1) * DRAWS_PER_VISIT**self.depth

    def normal(self, level: Tensor, draw: int) -> Tensor:
        return self.noise.normal(level, self.offset + 1 + draw)

    def increment(self, t: Tensor, s: Tensor) -> Tensor:
        return self.noise.normal(t, self.offset - 1)
