"""Classes and attributes as a part of a condition."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..backbones.conditioning import Conditioning, ConditionTable, Context, find_column
from ..backbones.conditions import Attributes, ClassEmbedding, Condition
from ..runtime.ranges import check_range, check_whole
from .columns import ColumnTable

__all__ = ["Classes", "MultiLabel"]


class LabelTable(ConditionTable):
    """The class indices of a split."""

    def __init__(self, labels: Tensor):
        self.labels = labels

    def __call__(self, rows: Tensor, x: Tensor, chance: Tensor | None = None) -> Tensor:
        self.labels = self.labels.to(x.device)
        return self.labels[rows.to(x.device)]


class Classes(Conditioning):
    """A learned vector per class, and one for no class. Alone, `condition=class` is the same and has fewer layers.

    Arguments:
        num_classes: number of classes, at least 1.
        features: length of the vectors.
    """

    gives_vectors = True

    def __init__(self, num_classes: int, features: int = 64):
        super().__init__()
        self.num_classes = check_whole("condition.num_classes", num_classes, 1)
        self.vector_features = check_whole("condition.features", features, 1)
        self.table = nn.Embedding(num_classes + 1, features)  # row 0: no class

    def forward(self, y: Condition | None, x: Tensor) -> Context:
        if isinstance(y, ClassEmbedding):
            return Context(torch.where(y.keep[:, None], y.vectors.to(self.table.weight.dtype), self.table.weight[0]))
        if y is not None and not isinstance(y, Tensor):
            raise ValueError(f"y must be class indices [B] (-1 = none) for condition=class, got {type(y).__name__}")
        index = torch.full(x.shape[:1], -1, device=x.device) if y is None else y
        return Context(self.table(index + 1))

    def embed(self, y: Condition) -> ClassEmbedding:
        if isinstance(y, ClassEmbedding):
            return y
        assert isinstance(y, Tensor)
        return ClassEmbedding(self.table(y + 1), y >= 0)

    def tabulate(self, columns: Mapping[str, Any], labels: Tensor) -> ConditionTable:
        if len(labels) and int(labels.max()) >= self.num_classes:
            raise ValueError(
                f"condition.num_classes is {self.num_classes}, but the data have class {int(labels.max())}"
            )
        return LabelTable(labels)

    def read(self, values: Sequence[Any]) -> Tensor:
        """Class indices, -1 or "" = none."""
        index = ["-1" if value == "" else str(value) for value in values]
        valid = {str(number) for number in range(-1, self.num_classes)}
        if wrong := [value for value in index if value not in valid]:
            raise ValueError(f"a class must be an index from -1 (none) to {self.num_classes - 1}, got {wrong[0]}")
        return torch.tensor([int(value) for value in index])


class MultiLabel(Conditioning):
    """Attributes that an example has, has not, or is silent about: two numbers each, (has it, has it not).

    Arguments:
        names: of the attributes, in the order of the data's columns.
        drop: probability with which training forgets each attribute, independently, in [0, 1]; the whole condition is
            dropped by p_uncond.
        column: of the data, [N, A] of 1 (has it), 0 (has it not) and -1 (not said).
    """

    def __init__(self, names: Sequence[str], drop: float = 0.1, column: str = "attributes"):
        super().__init__()
        self.names, self.column = list(names), column
        if not self.names or len(set(self.names)) != len(self.names):
            raise ValueError(f"condition.names must be one name or more, all different, got {self.names}")
        self.drop = check_range("condition.drop", drop, "[0, 1]")
        self.vector_features = 2 * len(self.names)

    def forward(self, y: Condition | None, x: Tensor) -> Context:
        if y is None:
            return Context(x.new_zeros(len(x), self.vector_features))
        if not isinstance(y, Attributes) or y.values.shape[1] != len(self.names):
            raise ValueError(
                f"y must be Attributes [B, {len(self.names)}] for condition=multi_label, got {type(y).__name__}"
            )
        values = torch.where(y.keep[:, None], y.values, -1)
        return Context(torch.cat([values == 1, values == 0], dim=1).to(x.dtype))

    def explain(self) -> Mapping[str, str]:
        return {
            "values": f"of {', '.join(self.names)}: 1 = has it, 0 = has it not, -1 = not said; all -1 = no condition"
        }

    def tabulate(self, columns: Mapping[str, Any], labels: Tensor) -> ConditionTable:
        values = torch.as_tensor(find_column(columns, self.column, "condition=multi_label"))
        if (
            values.ndim != 2
            or values.shape[1] != len(self.names)
            or not torch.isin(values, torch.tensor([-1, 0, 1])).all()
        ):
            raise ValueError(
                f"{self.column} must be 1, 0 or -1 for each of {', '.join(self.names)}, got {list(values.shape)} numbers from "
                f"{values.min():g} to {values.max():g}"
            )
        return ColumnTable(values.to(torch.int8), self.drop, -1, Attributes)

    def read(self, values: Sequence[Any]) -> Attributes:
        """Each value a list of attributes, "no <attribute>" for one that it has not; or one string with commas."""
        rows = torch.full((len(values), len(self.names)), -1, dtype=torch.int8)
        for row, value in zip(rows, values):
            for word in value if isinstance(value, Sequence) and not isinstance(value, str) else str(value).split(","):
                name = str(word).strip()
                sign = 0 if name.startswith("no ") and name not in self.names else 1
                name = name if sign else name[3:].strip()
                if name and name not in self.names:
                    raise ValueError(f"{name} is no attribute; they are {', '.join(self.names)}")
                if name:
                    row[self.names.index(name)] = sign
        return Attributes(rows)
