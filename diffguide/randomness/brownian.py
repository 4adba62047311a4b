"""A Brownian path per sample that can be asked anywhere, in any order, and stores only what brackets the last questions."""

import math

import torch
from torch import Tensor

from .counters import fold_in, normals

__all__ = ["BrownianPath"]

RESOLUTION_BITS = 32  # points of the path lie on a grid of 2^32 angles, so that rounding in the schedule changes no point
TOP = 2**RESOLUTION_BITS
MAX_LEAF_POINTS = 4  # of the last leaf that was asked, remembered; a step of any solver asks for fewer


class BrownianPath:
    """W(c) of independent elements on the clock c = sin^2(pi / 2 * angle), angle in [0, 1], W(0) = 0.

    Levy's midpoint construction down to the leaves of a binary tree over the angle: the values at their ends are a
    function of the state alone. Inside a leaf a value is drawn given its nearest known neighbours (a Brownian bridge),
    keyed by its angle. So a path is the same at the ends of all leaves whatever is asked of it, and at every angle
    where no leaf holds two of the angles; its law is that of Brownian motion in any case.

    Arguments:
        states: int64 [B], a state per sample.
        size: elements of a sample.
        depth: of the tree, 2^depth leaves. Cost and refinement: a deeper tree keeps the paths of finer grids equal, and
            draws about depth - log2(steps) + 2 normals per element and step.
        dtype: of the values.
    """

    def __init__(self, states: Tensor, size: int, depth: int = 6, dtype: torch.dtype = torch.float32):
        self.states, self.size, self.depth, self.dtype = states, size, depth, dtype
        self.nodes: dict[int, Tensor] = {}  # values at the nodes that bracket the last leaf
        self.points: dict[int, Tensor] = {}  # values inside that leaf, the latest last

    @staticmethod
    def locate(noise_level: float) -> int:
        """The point of the path, 0 to 2^32, at a noise level sigma / alpha = tan(pi / 2 * angle)."""
        return round(2 / math.pi * math.atan(noise_level) * TOP)

    @staticmethod
    def clock(point: int) -> float:
        """c = sigma^2 / (alpha^2 + sigma^2) at a point."""
        return math.sin(math.pi / 2 * point / TOP) ** 2

    def value(self, point: int) -> Tensor:
        """W [B, size] at a point. Do not change it in place."""
        if point not in self.nodes and point not in self.points:
            self.visit(point)
        return self.nodes[point] if point in self.nodes else self.points[point]

    def visit(self, point: int) -> None:
        """Draws what is missing on the way down the tree to a point, and forgets what is not on the way."""
        low, high, middles = 0, TOP, []
        while point not in (low, high) and len(middles) < self.depth:
            middles.append((low + high) // 2)
            low, high = (low, middles[-1]) if point < middles[-1] else (middles[-1], high)
        inside = [] if point in (low, high) else [point]
        draws = self.draw([node for node in (TOP, *middles) if node not in self.nodes] + inside)
        whole = self.nodes[TOP] if TOP in self.nodes else draws[TOP].clone()
        nodes = {0: torch.zeros_like(whole), TOP: whole}
        for middle in middles:
            nodes[middle] = self.nodes[middle] if middle in self.nodes else self.bridge(nodes, middle, draws[middle])
        self.nodes = nodes
        if inside:
            kept = [known for known in self.points if low < known < high][1 - MAX_LEAF_POINTS :]
            self.points = {known: self.points[known] for known in kept}
            self.points[point] = self.bridge(nodes | self.points, point, draws[point])

    def draw(self, points: list[int]) -> dict[int, Tensor]:
        """Standard normals [B, size] for each point."""
        keys = torch.tensor(points, dtype=torch.int64, device=self.states.device)
        return dict(zip(points, normals(fold_in(self.states, keys[:, None]), self.size).to(self.dtype), strict=True))

    def bridge(self, known: dict[int, Tensor], point: int, draw: Tensor) -> Tensor:
        """The value at a point, given a standard normal and the values at the nearest known points below and above."""
        low, high = max(k for k in known if k < point), min(k for k in known if k > point)
        a, b, c = self.clock(low), self.clock(point), self.clock(high)
        mean = torch.lerp(known[low], known[high], (b - a) / (c - a))
        return mean.add_(draw, alpha=math.sqrt((b - a) * (c - b) / (c - a)))
