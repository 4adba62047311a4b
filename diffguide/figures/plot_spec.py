"""The specification of a plot, without the drawing."""

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Panel", "Plot"]


class Panel(NamedTuple):
    """One axis of a plot: a column of the curve against x, with the column <column>_se, if any, as a band.

    A point whose column <column>_meaningful is false is drawn hollow.

    Attributes:
        column: column of the curve.
        label: label of the vertical axis.
        reference: a horizontal line (label, height); None = none.
        logarithmic: whether the vertical axis is logarithmic.
    """

    column: str
    label: str
    reference: tuple[str, float] | None = None
    logarithmic: bool = False


class Plot(NamedTuple):
    """A figure of the curve, <name>.png, with a line per model.

    Attributes:
        name: name of the file.
        x: column of the curve on the horizontal axes.
        label: label of the horizontal axes.
        logarithmic: whether the horizontal axes are logarithmic.
        panels: one per axis.
    """

    name: str
    x: str
    label: str
    logarithmic: bool
    panels: Sequence[Panel]
