"""The specification of a plot: its axes and their labels, without the drawing."""

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Panel", "Plot"]


class Panel(NamedTuple):
    """One axis of a plot: a column of the curve against its x; the column <column>_se, where there is one, is a band.

    A point whose column <column>_meaningful is false is drawn hollow.

    reference: a horizontal line (label, height), None = none.
    logarithmic: whether its own axis is.
    """

    column: str
    label: str
    reference: tuple[str, float] | None = None
    logarithmic: bool = False


class Plot(NamedTuple):
    """A picture of the curve, <name>.png; several models are several lines in it."""

    name: str
    x: str
    label: str
    logarithmic: bool
    panels: Sequence[Panel]
