"""Figures of the curve of a metric: a panel per column, a line per model, a band of one standard error."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from ..files.run_folders import write_atomically
from .plot_spec import Plot

__all__ = ["HOLLOW_LABEL", "MIN_PRECISION", "HOLLOW_STYLE", "draw_curves", "write_curve_figure"]

MIN_PRECISION = 0.05  # below it, recall is not meaningful
HOLLOW_LABEL = f"not meaningful: precision below {MIN_PRECISION}"
HOLLOW_STYLE = {"marker": "o", "markersize": 7, "markerfacecolor": "white", "linestyle": "none"}
MAX_VALUE_TICKS = 8  # number of values up to which a logarithmic axis has a tick for each
MAX_CYCLE_COLORS = 10  # number of distinct colours; more lines use a colour map


def draw_curves(plot: Plot, lines: Mapping[str, Sequence[Mapping[str, Any]]]):
    """A matplotlib figure.

    Arguments:
        plot: its specification. A panel whose column no curve has is omitted.
        lines: curve by name; the name "" has no entry in the legend.
    """
    import matplotlib
    from matplotlib.figure import Figure

    panels = [panel for panel in plot.panels if any(panel.column in row for curve in lines.values() for row in curve)]
    figure = Figure(figsize=(4.5 * len(panels) + 0.5, 3.8), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    shades = matplotlib.colormaps["viridis"]
    for axis, panel in zip(axes, panels):
        for index, (name, curve) in enumerate(lines.items()):
            color = f"C{index}" if len(lines) <= MAX_CYCLE_COLORS else shades(index / (len(lines) - 1))
            rows = [row for row in curve if is_number(row.get(panel.column)) and is_number(row.get(plot.x))]
            x, y = ([row[column] for row in rows] for column in (plot.x, panel.column))
            errors = [row.get(f"{panel.column}_se") for row in rows]
            axis.plot(x, y, marker=".", color=color, label=name)
            if hollow := [row for row in rows if row.get(f"{panel.column}_meaningful") is False]:
                points = [[row[column] for row in hollow] for column in (plot.x, panel.column)]
                axis.plot(*points, color=color, label=HOLLOW_LABEL, **HOLLOW_STYLE)
            if any(map(is_number, errors)):
                errors = [error if is_number(error) else 0.0 for error in errors]
                low = [value - error for value, error in zip(y, errors)]
                high = [value + error for value, error in zip(y, errors)]
                axis.fill_between(x, low, high, color=color, alpha=0.25, linewidth=0)
        axis.margins(y=0.08)
        if panel.reference is not None:
            label, height = panel.reference
            axis.axhline(height, color="0.6", linestyle="--")
            axis.annotate(label, (0.02, height), xycoords=("axes fraction", "data"), color="0.4", va="bottom", size=8)
        axis.set(xlabel=plot.label, ylabel=panel.label)
        axis.set_xscale("log" if plot.logarithmic else "linear")
        axis.set_yscale("log" if panel.logarithmic else "linear")
        ticks = sorted({row[plot.x] for curve in lines.values() for row in curve if is_number(row.get(plot.x))})
        if plot.logarithmic and len(ticks) <= MAX_VALUE_TICKS:  # 2, 4, 8 in place of 2 x 10^0
            axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axis.set_xticks([], minor=True)
    entries = {name: handle for axis in axes for handle, name in zip(*axis.get_legend_handles_labels()) if name}
    if entries:
        figure.legend(entries.values(), entries, loc="outside lower center", ncols=2, fontsize=8)
    return figure


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value of a curve can be drawn; infinities are texts in JSON."""
    return isinstance(value, int | float)


def write_curve_figure(path: Path, plot: Plot, lines: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Writes `draw_curves` as a PNG.

    Raises:
        WriteError: the disk is full, the folder is missing, ...
    """
    figure = draw_curves(plot, lines)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=100))
