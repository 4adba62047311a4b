"""Noise that is a function of (seed, level) per sample, independent of batch and device.

Normals come from a counter-based generator, so that no state is stored and every device gets the same numbers: SplitMix64
(Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014) keyed by seed, purpose and level, whose
64 bits are two uniforms for Box-Muller. It is vectorised over samples, since one library generator per sample and tree node
would cost a third of an evaluation of a small network at batch 64.
"""

import copy
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy
import torch
from torch import Tensor

from .schedules import Schedule, as_time

__all__ = ["Noise", "Share", "fold", "normal", "uniform"]

GOLDEN_GAMMA = numpy.uint64(0x9E3779B97F4A7C15)
NORMAL, PATH, SHORT = 1, 2, 3  # purposes, with independent numbers


def scramble(z: numpy.ndarray) -> numpy.ndarray:
    """The finaliser of SplitMix64 on uint64, modulo 2^64."""
    z = z ^ (z >> numpy.uint64(30))
    z *= numpy.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> numpy.uint64(27)
    z *= numpy.uint64(0x94D049BB133111EB)
    return z ^ (z >> numpy.uint64(31))


def fold_in(state: numpy.ndarray, word: int | numpy.ndarray) -> numpy.ndarray:
    """A new uint64 state from a state and a 64-bit word; broadcasts."""
    # an array, since NumPy warns of the intended overflow in scalars
    word = numpy.array(word, dtype=numpy.uint64, ndmin=1)
    return scramble((state ^ scramble(word + GOLDEN_GAMMA)) * numpy.uint64(2) + GOLDEN_GAMMA)


def fold(*words: int) -> int:
    """One seed in [0, 2^63) from several non-negative integers, e.g. (seed, rank, step)."""
    state = numpy.zeros(1, dtype=numpy.uint64)
    for word in words:
        state = fold_in(state, word % 2**64)
    return int(state[0] >> numpy.uint64(1))


def normals(state: numpy.ndarray, size: int) -> Tensor:
    """Standard normals [..., size] in float32, a function of each uint64 in `state` [...]."""
    counters = numpy.arange(1, (size + 1) // 2 + 1, dtype=numpy.uint64) * GOLDEN_GAMMA
    bits = scramble(state[..., None] + counters)
    halves = bits.astype("<u8", copy=False).view("<u4")  # low, high, low, ... on every machine
    angle, radius = (torch.from_numpy(halves[..., k::2].astype(numpy.float32)) for k in (0, 1))
    radius = radius.add_(0.5).mul_(2.0**-32).log_().mul_(-2).sqrt_()
    angle = angle.mul_(2 * math.pi * 2.0**-32)
    return torch.cat([angle.cos().mul_(radius), angle.sin_().mul_(radius)], dim=-1)[..., :size]


class Share(NamedTuple):
    """The rows first, first + 1, ... of a batch of `total`, for an objective on one of several devices or micro-steps.

    Every share draws the numbers of the whole batch from a generator in the same state and takes its rows, so that the
    numbers do not depend on the division of the batch, and no two rows get the same numbers.
    """

    generator: torch.Generator
    first: int
    total: int

    @property
    def device(self) -> torch.device:
        return self.generator.device


def normal(shape: Sequence[int], rng: torch.Generator | Share, dtype: torch.dtype) -> Tensor:
    """Standard normals [B, ...], a row per example; for a `Share` those of its rows."""
    return draw_rows(torch.randn, shape, rng, dtype)


def uniform(shape: Sequence[int], rng: torch.Generator | Share, dtype: torch.dtype) -> Tensor:
    """Uniform numbers in [0, 1), [B, ...] a row per example; shape () is one number for the whole batch."""
    return draw_rows(torch.rand, shape, rng, dtype)


def draw_rows(sample, shape: Sequence[int], rng: torch.Generator | Share, dtype: torch.dtype) -> Tensor:
    """sample(shape) from rng, on its device; for a `Share` its rows of the draw of the whole batch."""
    if not isinstance(rng, Share) or not len(shape):
        generator = rng.generator if isinstance(rng, Share) else rng
        return sample(shape, generator=generator, device=rng.device, dtype=dtype)
    whole = sample((rng.total, *shape[1:]), generator=rng.generator, device=rng.device, dtype=dtype)
    return whole[rng.first : rng.first + shape[0]]


class Noise:
    """The noise of one run, a row per sample; row i is a function of seeds[i] alone.

    Arguments:
        seeds: one non-negative integer per sample.
        shape: shape of one sample.
        schedule: defines the clock of the Brownian path, c = sigma^2 / (alpha^2 + sigma^2).
        device, dtype: device and dtype of the results.
        depth: depth of the binary tree of the path over the angle atan(sigma / alpha) / (pi / 2); a step within one of its
            2^depth cells gets an independent increment.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        shape: Sequence[int],
        schedule: Schedule | None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        depth: int = 20,
    ):
        self.states = fold_in(numpy.zeros(len(seeds), dtype=numpy.uint64), numpy.asarray(seeds, dtype=numpy.uint64))
        self.shape, self.schedule, self.depth = tuple(shape), schedule, depth
        self.device, self.dtype = device, dtype
        self.path: dict[int, Tensor] = {}  # values at the nodes around the last query

    def normal(self, level: Tensor | float, draw: int) -> Tensor:
        """Standard normals [B, *shape], independent for every time `level` and number `draw`."""
        return self._draw(NORMAL, level, draw)

    def of(self, shape: Sequence[int]) -> "Noise":
        """The noise of the same samples in another shape."""
        other = copy.copy(self)
        other.shape, other.path = tuple(shape), {}
        return other

    def increment(self, t: Tensor | float, s: Tensor | float) -> Tensor:
        """(W(c_t) - W(c_s)) / sqrt(c_t - c_s) [B, *shape], standard normal, of one Brownian path W per sample.

        Increments over disjoint intervals are independent, and those over the parts of an interval add up to that of the
        interval, so that smaller steps refine the same path.

        Raises:
            ValueError: s that is not below t.
        """
        node_t, node_s = self._node(t), self._node(s)
        if not float(s) < float(t):
            raise ValueError(f"s must be below t in a noise increment, got t = {float(t)} and s = {float(s)}")
        if node_t == node_s:  # below the resolution of the path, near exact data
            return self._draw(SHORT, t, 0)
        difference = self._walk(node_t) - self._walk(node_s)
        return self._reshape(difference / math.sqrt(self._clock(node_t) - self._clock(node_s)))

    def _draw(self, purpose: int, level: Tensor | float, draw: int) -> Tensor:
        key = round(float(level) * 2**40)  # rounded, since the last bits differ between machines
        state = fold_in(fold_in(fold_in(self.states, purpose), key), draw)
        return self._reshape(normals(state, math.prod(self.shape)))

    def _reshape(self, values: Tensor) -> Tensor:
        return values.reshape(-1, *self.shape).to(self.dtype).to(self.device)

    def _node(self, t: Tensor | float) -> int:
        assert self.schedule is not None
        level = float(self.schedule.noise_level(as_time(t)))
        return round(2 / math.pi * math.atan(level) * 2**self.depth)

    def _clock(self, node: int) -> float:
        return math.sin(math.pi / 2 * node / 2**self.depth) ** 2

    def _walk(self, node: int) -> Tensor:
        """W at a node, [B, D] float64, by Levy's midpoint construction from the root down."""
        if node in self.path:
            return self.path[node]
        low, high, brackets = 0, 2**self.depth, []
        while low < node < high:
            middle = (low + high) // 2
            brackets.append((low, middle, high))
            if node >= middle:
                low = middle
            if node <= middle:
                high = middle
        missing = [middle for _, middle, _ in brackets if middle not in self.path]
        if 0 not in self.path:
            missing.append(2**self.depth)
        state = fold_in(fold_in(self.states, PATH), numpy.asarray(missing, dtype=numpy.uint64)[:, None])
        draws = dict(zip(missing, normals(state, math.prod(self.shape)).double()))
        ends = 0, 2**self.depth
        if 0 not in self.path:
            self.path.update({0: torch.zeros_like(draws[ends[1]]), ends[1]: draws[ends[1]]})
        path = {end: self.path[end] for end in ends}
        for low, middle, high in brackets:
            if middle in self.path:
                path[middle] = self.path[middle]
                continue
            a, b, c = self._clock(low), self._clock(middle), self._clock(high)
            mean = (path[low] * ((c - b) / (c - a))).add_(path[high], alpha=(b - a) / (c - a))
            path[middle] = mean.add_(draws[middle], alpha=math.sqrt((b - a) * (c - b) / (c - a)))
        self.path = path
        return path[node]
