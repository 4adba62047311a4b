"""Where the steps of a run get their noise from."""

from typing import Protocol

from torch import Tensor

__all__ = ["NoNoise", "StepNoise", "SharedIncrement", "VisitNoise"]

DRAWS_PER_VISIT = 2**20  # so that no two visits share a draw; visits of visits have DRAWS_PER_VISIT^2


class StepNoise(Protocol):
    """The noise of a run, as `randomness.Noise` has it."""

    def normal(self, level: Tensor, draw: int) -> Tensor: ...

    def increment(self, t: Tensor, s: Tensor) -> Tensor: ...


class NoNoise:
    """The noise of a run without noise: drawing some is an error."""

    def normal(self, level: Tensor, draw: int) -> Tensor:
        raise ValueError("this run draws noise: pass noise=Noise(seeds, shape, schedule)")

    def increment(self, t: Tensor, s: Tensor) -> Tensor:
        return self.normal(t, 0)


class SharedIncrement:
    """The noise of a run with each increment drawn once: a step and its first order share it."""

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
    """The noise of one extra walk over an interval: independent of the main walk's and of every other visit's, also of
    visits within a visit."""

    def __init__(self, noise: StepNoise, number: int):
        self.noise = noise
        self.depth: int = noise.depth + 1 if isinstance(noise, VisitNoise) else 1
        self.offset = (number + 1) * DRAWS_PER_VISIT**self.depth

    def normal(self, level: Tensor, draw: int) -> Tensor:
        return self.noise.normal(level, self.offset + 1 + draw)

    def increment(self, t: Tensor, s: Tensor) -> Tensor:
        return self.noise.normal(t, self.offset - 1)
