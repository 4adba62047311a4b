"""Figures of vectors: scatter plots and histograms over the data or the exact distribution."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy
from torch import Tensor

from ..files.run_folders import write_atomically

__all__ = ["ScatterBackground", "build_background", "draw_panel", "draw_scatter", "write_scatter"]

MAX_DATA_POINTS = 5000  # points of the background
BINS = 80  # of a histogram


class ScatterBackground(NamedTuple):
    """The plane of a scatter plot, or the line of a histogram, and the background on it.

    Arguments:
        axes: projection [D, 2]: a vector x [D] is drawn at x @ axes; [1, 1] for a histogram.
        names: names of the axes.
        points: data or exact samples along the axes, [M, 2] or [M, 1]; M may be 0.
        curve: (x, exact density) [G, 2] of a histogram; G may be 0.
        label: label of the points in the legend.
    """

    axes: numpy.ndarray
    names: list[str]
    points: numpy.ndarray
    curve: numpy.ndarray
    label: str

    def to_json(self) -> list:
        """The fields as lists and texts."""
        return [part.tolist() if isinstance(part, numpy.ndarray) else part for part in self]

    @classmethod
    def from_json(cls, fields: list) -> "ScatterBackground":
        """Inverse of `to_json`."""
        axes, names, points, curve, label = fields
        shape = -1, len(names)
        return cls(
            numpy.reshape(axes, shape), names, numpy.reshape(points, shape), numpy.reshape(curve, (-1, 2)), label
        )


def build_background(
    x: Tensor | None, dimensions: int, curve: numpy.ndarray | None = None, label: str = "data"
) -> ScatterBackground:
    """The background for data x [M, D], for D > 2 along the first two principal axes; the first two axes without data."""
    width = min(2, dimensions)
    axes, names = numpy.eye(dimensions, width), [f"x[{k}]" for k in range(width)]
    data = numpy.zeros((0, dimensions)) if x is None else x.double().cpu().numpy()
    if dimensions > 2 and len(data) > 1 and numpy.ptp(data, axis=0).any():
        from sklearn.decomposition import PCA

        pca = PCA(n_components=2, random_state=0).fit(data)
        axes = pca.components_.T
        axes = axes * numpy.sign(axes[abs(axes).argmax(0), [0, 1]])  # fixes the sign of each axis
        shares = 100 * pca.explained_variance_ratio_
        names = [f"principal axis {k} ({share:.0f} % of the variance)" for k, share in enumerate(shares, start=1)]
    curve = numpy.zeros((0, 2)) if curve is None else curve
    return ScatterBackground(axes, names, data[:MAX_DATA_POINTS] @ axes, curve, label)


def write_scatter(
    path: Path,
    panels: Sequence[tuple[str, numpy.ndarray, Sequence[int]]],
    class_names: Sequence[str],
    background: ScatterBackground,
) -> None:
    """Writes a PNG with a panel per (title, vectors [N, D], labels).

    Raises:
        WriteError: the disk is full, the folder is missing, ...
    """
    projected = [(title, x @ background.axes, labels) for title, x, labels in panels]
    figure = draw_scatter(projected, class_names, background)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=100, bbox_inches="tight"))


def draw_scatter(
    panels: Sequence[tuple[str, numpy.ndarray, Sequence[int]]],
    class_names: Sequence[str],
    background: ScatterBackground,
):
    """A figure with a panel per (title, x [N, 2] or [N, 1] along the axes of the background, labels) and shared axes.

    The last collections of an axis are the points of each class, in ascending order.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * len(panels) + 1, 4.5), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharex=True, sharey=True)[0]
    low, high = histogram_range([x for _, x, _ in panels], background)
    for axis, (title, x, labels) in zip(axes, panels):
        draw_panel(axis, x, labels, class_names, background, (low, high))
        axis.set_title(title)
    axes[-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), markerscale=3)
    return figure


def histogram_range(parts: Sequence[numpy.ndarray], background: ScatterBackground) -> tuple[float, float]:
    """The range of all finite values of the first axis."""
    first = numpy.concatenate([*(x[:, 0] for x in parts), background.points[:, 0], background.curve[:, 0]])
    first = first[numpy.isfinite(first)]
    low, high = (float(first.min()), float(first.max())) if len(first) else (0.0, 1.0)
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def draw_panel(
    axis,
    x: numpy.ndarray,
    labels: Sequence[int],
    class_names: Sequence[str],
    background: ScatterBackground,
    limits: tuple[float, float],
) -> None:
    """Draws one panel: a scatter plot over the data in grey, or a histogram with stacked classes below the density.

    Arguments:
        limits: range of the histogram.
    """
    classes = numpy.asarray(labels)
    present = numpy.unique(classes).tolist()
    names = ["no condition" if label < 0 else f"class {class_names[label]}" for label in present]
    colors = [f"C{label % 10}" for label in present]
    parts = [x[classes == label] for label in present]
    if x.shape[1] == 1:
        edges = numpy.linspace(*limits, BINS + 1)
        values = [part[numpy.isfinite(part[:, 0]), 0] for part in parts]
        weights = [numpy.full(len(part), 1 / (len(x) * (edges[1] - edges[0]))) for part in values]
        axis.hist(values, edges, weights=weights, stacked=True, color=colors, label=names)
        if len(background.curve):
            axis.plot(*background.curve.T, color="black", linewidth=1, label="exact density")
        elif len(background.points):
            points = background.points[:, 0]
            axis.hist(points, edges, density=True, histtype="step", color="0.5", label=background.label)
        axis.set(xlabel=background.names[0], ylabel="density", xlim=limits)
        return
    if len(background.points):
        axis.scatter(*background.points.T, s=2, color="0.8", label=background.label, linewidths=0)
    for part, color, name in zip(parts, colors, names):
        axis.scatter(*part.T, s=4, color=color, label=name, linewidths=0)
    axis.set(xlabel=background.names[0], ylabel=background.names[1], aspect="equal")
