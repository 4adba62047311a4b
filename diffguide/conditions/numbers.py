"""Real numbers as a condition."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..backbones.conditioning import Conditioning, ConditionTable, Context, find_column
from ..backbones.conditions import Condition, Numbers
from ..runtime.ranges import check_range, check_whole
from .columns import ColumnTable

__all__ = ["Continuous", "count_features", "fourier_features"]


def fourier_features(u: Tensor, given: Tensor, frequencies: int) -> Tensor:
    """1, u, sin(2^n pi u) and cos(2^n pi u), n = 0, 1, ..., of numbers u [B, K]; zeros where given [B, K] is False.

    Mildenhall et al., "NeRF", 2020, arXiv 2003.08934, eq. 4.
    """
    angles = [2**n * math.pi * u for n in range(frequencies)]
    parts = [torch.ones_like(u), u, *(angle.sin() for angle in angles), *(angle.cos() for angle in angles)]
    return torch.cat([torch.where(given, part, 0.0) for part in parts], dim=1)


def count_features(numbers: int, frequencies: int) -> int:
    """The length of `fourier_features` of a row of numbers."""
    return numbers * (2 + 2 * frequencies)


class Continuous(Conditioning):
    """`fourier_features` of u = (value - center) / width, and whether the value is given; one that is not has zeros.

    Arguments:
        names: of the numbers, in the order of the data's columns.
        centers, widths: of each, in the units of the data, so that u lies about within [-1, 1]; widths above 0.
        frequencies: number of exponents n = 0, 1, ... per value, in [0, 16].
        drop: probability with which training forgets each number, independently, in [0, 1]; the whole condition is dropped
            by p_uncond.
        column: of the data, [N, K], NaN = not said.
    """

    scale: Tensor

    def __init__(
        self,
        names: Sequence[str],
        centers: Sequence[float],
        widths: Sequence[float],
        frequencies: int = 6,
        drop: float = 0.1,
        column: str = "numbers",
    ):
        super().__init__()
        self.names, self.column = list(names), column
        if not self.names or not len(self.names) == len(centers) == len(widths):
            raise ValueError(
                f"condition.names, centers and widths must be lists of one length, at least 1, got {self.names}, "
                f"{list(centers)} and {list(widths)}"
            )
        if not all(map(math.isfinite, centers)) or not all(0 < width < math.inf for width in widths):
            raise ValueError(f"centers must be finite and widths above 0, got {list(centers)} and {list(widths)}")
        check_whole("condition.frequencies", frequencies, 0)
        check_range("condition.frequencies", frequencies, "[0, 16]")
        self.drop = check_range("condition.drop", drop, "[0, 1]")
        self.centers, self.widths, self.frequencies = list(centers), list(widths), frequencies
        self.vector_features = count_features(len(self.names), frequencies)

    def forward(self, y: Condition | None, x: Tensor) -> Context:
        if y is None:
            return Context(x.new_zeros(len(x), self.vector_features))
        if not isinstance(y, Numbers) or y.values.shape[1] != len(self.names):
            raise ValueError(
                f"y must be Numbers [B, {len(self.names)}] for condition=continuous, got {type(y).__name__}"
            )
        values = y.values.to(torch.promote_types(x.dtype, torch.float32))
        given = y.keep[:, None] & ~values.isnan()
        u = (values - values.new_tensor(self.centers)) / values.new_tensor(self.widths)
        return Context(fourier_features(u, given, self.frequencies).to(x.dtype))

    def explain(self) -> Mapping[str, str]:
        return {"values": f"{', '.join(self.names)}, in the units of the data; NaN = not said, all NaN = no condition"}

    def tabulate(self, columns: Mapping[str, Any], labels: Tensor) -> ConditionTable:
        values = torch.as_tensor(find_column(columns, self.column, "condition=continuous"), dtype=torch.float32)
        if values.ndim != 2 or values.shape[1] != len(self.names) or values.isinf().any():
            raise ValueError(
                f"{self.column} must be finite numbers, or NaN, for {', '.join(self.names)}, got {list(values.shape)}"
            )
        return ColumnTable(values, self.drop, math.nan, Numbers)

    def read(self, values: Sequence[Any]) -> Numbers:
        """Each value a number, a list of them, or a string with commas; "" = not said."""
        rows = []
        for value in values:
            words = value.split(",") if isinstance(value, str) else value if isinstance(value, Sequence) else [value]
            try:
                row = [math.nan if str(word).strip() == "" else float(word) for word in words]
            except ValueError:
                raise ValueError(f"{value} must be a number for {', '.join(self.names)}") from None
            if row == [math.nan] or str(value) == "":
                row = [math.nan] * len(self.names)
            if len(row) != len(self.names):
                raise ValueError(f"{value} must be {len(self.names)} numbers: {', '.join(self.names)}")
            rows.append(row)
        return Numbers(torch.tensor(rows, dtype=torch.float32))
