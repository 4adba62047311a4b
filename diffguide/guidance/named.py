"""Conditions that a guidance names, in every row: a class, a text, or another value that the model's conditioning reads."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..backbones.conditions import Condition, RowCondition, Several
from ..class_names import ConditionValue, ConditionValues, class_index, class_indices
from ..models.protocols import Denoiser

__all__ = ["NamedCondition", "name_condition", "name_conditions", "name_nothing"]


class NamedCondition:
    """One condition for any number of rows.

    Arguments:
        condition: class index, -1 = none; or a `RowCondition` of one row.
    """

    def __init__(self, condition: int | RowCondition):
        self.condition = condition

    def rows(self, x_t: Tensor, denoiser: Denoiser, like: Condition | None = None) -> Condition:
        """The condition in every row of x_t.

        Arguments:
            denoiser: embeds it where `like` is embedded, by the sampler or by guidance around this one.
            like: the other conditions of the same call; None = there are none.
        """
        count, given = len(x_t), self.condition
        y: Condition
        if isinstance(given, int):
            y = torch.full((count,), given, device=x_t.device)
        else:
            y = given.to(x_t.device)[torch.zeros(count, dtype=torch.long, device=x_t.device)]
        return denoiser.embed(y) if isinstance(like, RowCondition) and not is_alike(y, like) else y


def is_alike(y: Condition, like: Condition) -> bool:
    """Whether two conditions are of one class, and so are all of their parts."""
    if isinstance(y, Several) and isinstance(like, Several):
        return all(is_alike(part, like.parts[name]) for name, part in y.parts.items())
    return type(y) is type(like)


def name_condition(denoiser: Denoiser, value: ConditionValue, argument: str) -> NamedCondition:
    """The condition of a value; raises ValueError for a model without such a condition."""
    if denoiser.conditioning is None:
        assert not isinstance(value, Sequence) or isinstance(value, str)
        return NamedCondition(class_index(value, denoiser.class_names, argument, denoiser.num_classes))  # type: ignore[arg-type]
    return NamedCondition(read_rows(denoiser, [value], argument))


def name_conditions(denoiser: Denoiser, values: ConditionValues, argument: str) -> list[NamedCondition]:
    """The conditions of several values; raises ValueError for a model without one of them."""
    if denoiser.conditioning is None:
        indices = class_indices(values, denoiser.class_names, argument, denoiser.num_classes)  # type: ignore[arg-type]
        return [NamedCondition(index) for index in indices]
    return [NamedCondition(read_rows(denoiser, [value], argument)) for value in values]


def read_rows(denoiser: Denoiser, values: Sequence[ConditionValue], argument: str) -> RowCondition:
    """What the conditioning of a model makes of values."""
    assert denoiser.conditioning is not None
    try:
        rows = denoiser.conditioning.read(values)
    except ValueError as error:
        raise ValueError(f"{argument}: {error}") from error
    if not isinstance(rows, RowCondition):
        raise ValueError(f"{type(denoiser.conditioning).__name__} has no condition in rows")
    return rows


def name_nothing(denoiser: Denoiser) -> NamedCondition:
    """No condition, in the kind of the model's conditions."""
    return (
        NamedCondition(-1)
        if denoiser.conditioning is None
        else NamedCondition(read_rows(denoiser, [""], "no condition"))
    )
