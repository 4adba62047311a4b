"""The picture of the ranking: samples of every method on one law of the plane, over the density of the class."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from figure_files import write_picture
from matplotlib.figure import Figure
from torch import Tensor

from .laws import Law

__all__ = ["draw_panels"]

COLUMNS = 7
GRID = 200  # points of the density along each side
MARGIN = 0.2  # of the law's extent, around it
SHARES = (0.99, 0.6)  # of the class inside the contours
DIVERGED = 1000.0  # floors
BLUE, ORANGE, RED = "tab:blue", "tab:orange", "tab:red"


def draw_panels(path: Path, law: Law, panels: Sequence[tuple[Mapping[str, Any], Tensor]]) -> None:
    """Draws a panel per method: its samples over the class; outliers red.

    Arguments:
        panels: row of the table and samples [n, 2] of each.
    """
    rows = -(-len(panels) // COLUMNS)
    figure = Figure(figsize=(2.05 * COLUMNS, 2.3 * rows), layout="constrained")
    exact = law.sample(4000, seed=3)
    low, high = exact.quantile(0.001, 0), exact.quantile(0.999, 0)
    edges = torch.stack([low - MARGIN * (high - low), high + MARGIN * (high - low)])
    sides = [torch.linspace(*edges[:, k].tolist(), GRID, dtype=torch.float64) for k in range(2)]
    plane = torch.stack(torch.meshgrid(*sides, indexing="xy"), dim=-1).flatten(0, 1)
    density = law.oracle.log_density(plane, None, law.of_class(len(plane))).reshape(GRID, GRID)
    inside = law.oracle.log_density(exact, None, law.of_class(len(exact)))
    levels = [*(float(inside.quantile(1 - share)) for share in SHARES), float(density.max()) + 1]
    bound = float(inside.quantile(0.001))
    for axis, (row, x) in zip(figure.subplots(rows, COLUMNS, squeeze=False).flat, panels):
        axis.contourf(*sides, density, levels=levels, colors=["0.88", "0.75"])
        outside = law.oracle.log_density(x, None, law.of_class(len(x))) < bound
        exactly = row["steps"] == ""
        axis.scatter(*x[~outside].T, s=2.5, color=BLUE if exactly else ORANGE, linewidths=0)
        axis.scatter(*x[outside].T, s=4, color=RED, linewidths=0)
        axis.set(xlim=edges[:, 0].tolist(), ylim=edges[:, 1].tolist(), xticks=[], yticks=[])
        axis.set_title(name_panel(row), fontsize=8.5)
        axis.set_xlabel(describe(row), fontsize=7)
    for axis in figure.axes[len(panels) :]:
        axis.remove()
    write_picture(path, figure)


def name_panel(row: Mapping[str, Any]) -> str:
    scale = "" if row["method"] in ("none", "exact samples") else f", {float(row['scale']):g}"
    return f"{row['method']}{scale}"


def describe(row: Mapping[str, Any]) -> str:
    """The figures below a panel: distance to the class, spread, outliers."""
    if not row["conditional"] < DIVERGED:
        return "diverges"
    return f"{row['conditional']:.3g} floors, spread {row['diversity']:.2f}, out {100 * row['outliers']:.2g} %"
