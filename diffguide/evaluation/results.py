"""The result of a metric: figures with standard errors, a curve, plots of it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy
from torch import Tensor

from ..figures.plot_spec import Plot

__all__ = ["Figure", "MetricResult", "mean"]


class Figure(NamedTuple):
    """A number of a table.

    Arguments:
        value: the estimate.
        standard_error: of the estimate, in its unit; None = unknown.
        n: number of examples or samples of the estimate.
        unit: nats, bits/dim, share, ...
        meaningful: False = the value must not be interpreted; the notes of `MetricResult` give the reason.
    """

    value: float
    standard_error: float | None
    n: int
    unit: str
    meaningful: bool = True


class MetricResult(NamedTuple):
    """The result of a metric: plain numbers, texts, lists and mappings.

    Arguments:
        figures: by name, a row of a table; the name includes what the figure depends on (fd_local, nll_elbo).
        facts: settings that are needed to repeat and interpret the figures: seeds, features, reference split, ...
        curve: rows of a table, {column: value}, None = unknown: per noise level, per budget, ...
        plots: of the curve.
        details: further numbers for metrics.json only, such as a confusion matrix.
        arrays: results of single examples, written as <name>.npz: {name: {array: values}}, no object arrays.
        notes: remarks about the figures; also printed on stderr.
    """

    figures: dict[str, Figure]
    facts: dict[str, Any]
    curve: Sequence[dict[str, float | None]] = ()
    plots: Sequence[Plot] = ()
    details: Mapping[str, Any] = {}
    arrays: Mapping[str, Mapping[str, numpy.ndarray]] = {}
    notes: Sequence[str] = ()


def mean(values: Tensor, unit: str) -> Figure:
    """The mean of independent values [N], with its standard error std / sqrt(N)."""
    values = values.double()
    error = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else None
    return Figure(float(values.mean()), error, len(values), unit)
