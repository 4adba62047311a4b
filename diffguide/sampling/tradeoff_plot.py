"""The plot of fidelity against diversity over the runs of a sweep."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy

from ..figures.curves import HOLLOW_LABEL, HOLLOW_STYLE
from ..figures.plot_spec import Panel
from ..files.run_folders import write_atomically
from .tradeoff import NoTradeoff, SweepRun, check_count

__all__ = ["TradeoffPanel", "axis_position", "data_panels", "oracle_panels", "tradeoff_figure", "write_tradeoff"]

MARKERS = "osD^vP*X"


class TradeoffPanel(NamedTuple):
    """One pair of axes.

    Arguments:
        x, y: columns, diversity and fidelity.
        names: of the axes.
        lines: (level, name) of dashed lines: y of real examples or exact samples.
        best: their x, None = unknown.
        log: whether y is logarithmic.
    """

    x: str
    y: str
    names: tuple[str, str]
    lines: Sequence[tuple[float, str]] = ()
    best: float | None = None
    log: bool = False


def oracle_panels(columns: Sequence[dict[str, Any]]) -> tuple[list[TradeoffPanel], list[Panel]]:
    """Panels of the trade-off and of the curves for runs of one oracle, from the figures of metrics.json.

    Fidelity is the energy distance: it has a floor, and is meaningful for any number of samples. Diversity is the standard
    deviation within classes divided by the exact one: unlike the covariance error it distinguishes too narrow from too wide,
    and it does not depend on the distance between classes, which guidance increases.
    """
    floor = float(numpy.mean([column["energy_distance_floor"] for column in columns]))
    names = ("standard deviation within classes / exact (diversity)", "energy distance (fidelity: low)")
    lines = [(floor, "exact samples")]
    curve_panels = [
        Panel("energy_distance", "energy distance", ("exact samples", floor), logarithmic=True),
        Panel("deviation_ratio", "standard deviation within classes / exact", ("exact samples", 1.0)),
    ]
    return [TradeoffPanel("deviation_ratio", "energy_distance", names, lines, best=1.0, log=True)], curve_panels


def data_panels(columns: Sequence[dict[str, Any]]) -> tuple[list[TradeoffPanel], list[Panel]]:
    """Panels of the trade-off and of the curves for runs that are compared with real examples."""
    diversity = "recall (diversity)"
    panels = [TradeoffPanel("recall", "precision", (diversity, "precision (fidelity)"))]
    curve_panels = [Panel(name, name) for name in ("precision", "recall", "coverage")]
    if all("agreed_labels" in column for column in columns):
        real = columns[0]["agreed_labels_of_real"]
        names = (diversity, "label accuracy, SVM (fidelity)")
        panels.append(TradeoffPanel("recall", "agreed_labels", names, [(real, "real examples")]))
        curve_panels.append(Panel("agreed_labels", "label accuracy, SVM", ("real examples", real)))
    return panels, curve_panels


def write_tradeoff(
    path: Path, panels: Sequence[TradeoffPanel], runs: Sequence[SweepRun], columns: Sequence[dict[str, Any]], note: str
) -> None:
    """Writes `tradeoff_figure` as a PNG.

    Raises:
        NoTradeoff: too few samples, or no run with finite figures.
        WriteError: the disk is full, the folder is gone, ...
    """
    check_count(min(len(run.labels) for run in runs))
    for panel in panels:
        if not any(math.isfinite(column[panel.x]) and math.isfinite(column[panel.y]) for column in columns):
            raise NoTradeoff(f"{panel.x} and {panel.y} are not finite in any run")
    figure = tradeoff_figure(panels, runs, columns, note)
    options = {"format": "png", "dpi": 110, "bbox_inches": "tight", "pad_inches": 0.05}
    write_atomically(path, lambda temporary: figure.savefig(temporary, **options))


def tradeoff_figure(
    panels: Sequence[TradeoffPanel], runs: Sequence[SweepRun], columns: Sequence[dict[str, Any]], note: str
):
    """A curve per method through its runs in the order of their numbers, with hollow markers where diversity is meaningless.

    Arguments:
        columns: of each run.
        note: title, which states what is compared.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8 * len(panels) + 0.6, 4.4), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    methods: dict[str, list[int]] = {}
    for index in sorted(range(len(runs)), key=lambda index: axis_position(runs[index].number)):
        methods.setdefault(runs[index].method, []).append(index)
    for axis, panel in zip(axes, panels):
        for number, (method, members) in enumerate(methods.items()):
            x, y = ([columns[index][name] for index in members] for name in (panel.x, panel.y))
            color = f"C{number % 10}"
            marker = MARKERS[number // 10 % len(MARKERS)]
            axis.plot(x, y, label=method, color=color, marker=marker, markersize=5, linewidth=1)
            for index, point in zip(members, zip(x, y)):
                if all(map(math.isfinite, point)):
                    text = runs[index].number
                    axis.annotate(text, point, (4, 4), textcoords="offset points", fontsize=8, color=color)
                    if columns[index].get(f"{panel.x}_meaningful") is False:
                        axis.plot(*point, color=color, label=HOLLOW_LABEL, **HOLLOW_STYLE)
        for level, name in panel.lines:
            axis.axhline(level, color="0.4", linestyle="--", linewidth=1, label=name)
        if panel.best is not None:
            axis.axvline(panel.best, color="0.4", linestyle="--", linewidth=1)
        axis.set(xlabel=panel.names[0], ylabel=panel.names[1], yscale="log" if panel.log else "linear")
        axis.margins(0.1)
    entries = {name: handle for axis in axes for handle, name in zip(*axis.get_legend_handles_labels())}
    figure.legend(entries.values(), entries, loc="outside lower center", ncols=2, fontsize=9)
    axes[0].set_title(note, fontsize=8, color="0.3", loc="left")
    return figure


def axis_position(number: str) -> float:
    """The position of a run on its curve."""
    try:
        return float(number)
    except ValueError:
        return math.inf
