"""A Brownian path per sample, with values at any angle in any order; it stores only what brackets the last one."""

import math

import torch
from torch import Tensor

from .counters import add_normals_, fold_in, normals

__all__ = ["BrownianPath"]

RESOLUTION_BITS = 32  # points lie on a grid of 2^32 angles, so that the rounding of a schedule changes no point
TOP = 2**RESOLUTION_BITS
MAX_LEAF_POINTS = 4  # points of one leaf that are remembered; a step of any sampler needs at most three


class BrownianPath:
    """W(c) of independent elements on the clock c = sin^2(pi / 2 * angle), angle in [0, 1], W(0) = 0.

    W(c) = c W(1) + B(c). The Brownian bridge B is built by Levy's midpoint construction in a binary tree over the angle.
    The values at the ends of its 2^depth leaves are a function of the state alone. A value inside a leaf is drawn given
    the nearest known values (a Brownian bridge), from a normal that is a function of state and angle. So the values at
    the ends of the leaves are the same for every order of queries, and so are those in leaves with a single query.
    B is 0 at both ends, where steps are smallest: its float32 differences keep their precision there.

    Arguments:
        states: int64 [B], a state per sample.
        size: number of elements of a sample.
        depth: depth of the tree. Grids share more of a path in a deeper tree, which draws about
            depth - log2(steps) + 2 normals per element and step.
        dtype: dtype of the values.
    """

    def __init__(self, states: Tensor, size: int, depth: int = 4, dtype: torch.dtype = torch.float32):
        self.states, self.size, self.depth, self.dtype = states, size, depth, dtype
        self.clear()

    def clear(self) -> None:
        """Frees the stored values; those at the ends of leaves are drawn again as they were."""
        self.whole: Tensor | None = None  # W(1)
        self.nodes: dict[int, Tensor] = {}  # B at the nodes on the way to the last leaf
        self.inner: dict[int, Tensor] = {}  # B at points inside that leaf, the latest last

    @staticmethod
    def locate(noise_level: float) -> int:
        """The point, 0 to 2^32, of a noise level sigma / alpha = tan(pi / 2 * angle)."""
        return round(2 / math.pi * math.atan(noise_level) * TOP)

    @staticmethod
    def span(low: int, high: int) -> float:
        """c(high) - c(low) = sin(b - a) sin(b + a) for half turns a <= b, exact to rounding also where c is flat."""
        half_turn = math.pi / 2 / TOP
        return math.sin(half_turn * (high - low)) * math.sin(half_turn * (high + low))

    def increment(self, high: int, low: int) -> Tensor:
        """(W(c_high) - W(c_low)) / sqrt(c_high - c_low) [B, size], standard normal, for points low < high."""
        span = self.span(low, high)
        difference = self.visit(high) - self.visit(low)
        assert self.whole is not None
        return difference.add_(self.whole, alpha=span).mul_(1 / math.sqrt(span))

    def visit(self, point: int) -> Tensor:
        """B [B, size] at a point: draws the missing values on the way to it, and forgets those that are not on it."""
        if point in self.nodes or point in self.inner:
            return self.nodes[point] if point in self.nodes else self.inner[point]
        low, high = 0, TOP
        middles: list[int] = []
        while point not in (low, high) and len(middles) < self.depth:
            middles.append((low + high) // 2)
            low, high = (low, middles[-1]) if point < middles[-1] else (middles[-1], high)
        if not self.nodes:
            self.whole = normals(fold_in(self.states, TOP), self.size).to(self.dtype)
            self.nodes = dict.fromkeys((0, TOP), torch.zeros_like(self.whole))
        nodes = {end: self.nodes[end] for end in (0, TOP)}
        for middle in middles:
            nodes[middle] = self.nodes[middle] if middle in self.nodes else self.bridge(nodes, middle)
        self.nodes = nodes
        if point in nodes:
            return nodes[point]
        kept = [known for known in self.inner if low < known < high][1 - MAX_LEAF_POINTS :]
        self.inner = {known: self.inner[known] for known in kept}
        self.inner[point] = self.bridge(nodes | self.inner, point)
        return self.inner[point]

    def bridge(self, known: dict[int, Tensor], point: int) -> Tensor:
        """B at a point: a normal of its own around the line between the values at the nearest known points."""
        low, high = max(k for k in known if k < point), min(k for k in known if k > point)
        below, above, whole = self.span(low, point), self.span(point, high), self.span(low, high)
        mean = torch.lerp(known[low], known[high], below / whole)
        return add_normals_(mean, fold_in(self.states, point), math.sqrt(below * above / whole))
