"""Pictures: sample grids, scatter plots of vectors, contact sheets."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .runs import write_atomically

__all__ = ["contact_sheet", "sample_picture", "to_uint8"]

CELL = 48  # pixels that a small image is enlarged towards
GAP = 3
COLUMNS = 20  # most columns of a grid; samples.npz holds all samples
ROWS = 40


def to_uint8(x: Tensor) -> numpy.ndarray:
    """[N, C, H, W] in [-1, 1] to uint8 [N, H, W, C]: round(127.5 (x + 1)), clipped."""
    return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def sample_picture(
    path: Path, x: Tensor, labels: Sequence[int], class_names: Sequence[str], background: Tensor | None = None
) -> None:
    """Writes a PNG of samples: a row per class with its name, or a scatter plot where x holds vectors.

    Arguments:
        x: samples [N, C, H, W] in [-1, 1], or vectors [N, D], of which two coordinates are shown.
        labels: class per sample, -1 = no condition.
        class_names: one per class.
        background: data [M, D] to draw the vectors over.
    """
    if x.ndim == 2:
        scatter(path, [("", x, labels)], class_names, background)
        return
    if max(labels) < 0:  # without classes the rows are only rows
        pictures = list(to_uint8(x[: COLUMNS * ROWS]))
        width = min(COLUMNS, math.ceil(math.sqrt(len(pictures))))
        write_grid(path, [pictures[i : i + width] for i in range(0, len(pictures), width)], [], [])
        return
    present = sorted(set(labels))
    members = [[i for i, label in enumerate(labels) if label == row][:COLUMNS] for row in present[:ROWS]]
    names = ["" if row < 0 else str(class_names[row]) for row in present[:ROWS]]
    pictures = to_uint8(x)
    write_grid(path, [[pictures[i] for i in row] for row in members], names, [])


def contact_sheet(
    path: Path, columns: Sequence[tuple[str, Tensor, Sequence[int]]], class_names: Sequence[str],
    background: Tensor | None = None,
) -> None:  # fmt: skip
    """Writes a PNG with a column per run of a sweep, the same sample (seed) along each row.

    Two samples of each class that the first run has, at most 20; a row is named where all runs agree on its class.

    Arguments:
        columns: (title, samples, labels) per run.
        class_names, background: as for `sample_picture`.
    """
    _, first, labels = columns[0]
    if first.ndim == 2:
        scatter(path, columns, class_names, background)
        return
    fewest = min(len(x) for _, x, _ in columns)
    each = 2 if max(labels) >= 0 else COLUMNS
    rows = [i for i in range(fewest) if list(labels[:i]).count(labels[i]) < each][:COLUMNS]
    pictures = [to_uint8(x[rows]) for _, x, _ in columns]
    classes = [{labels[i] for _, _, labels in columns} for i in rows]
    names = ["" if len(row) > 1 or -1 in row else str(class_names[row.pop()]) for row in classes]
    grid = [[column[k] for column in pictures] for k in range(len(rows))]
    write_grid(path, grid, names, [title for title, _, _ in columns])


def write_grid(path: Path, rows: list[list[numpy.ndarray]], names: list[str], titles: list[str]) -> None:
    """Rows of uint8 [H, W, C] pictures, row names at the left, column titles on top; whole-factor enlargement."""
    height, width = rows[0][0].shape[:2]
    factor = max(1, CELL // max(height, width))
    font = ImageFont.load_default(size=14)
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    margin = max((int(measure.textlength(name, font)) for name in names), default=0)
    margin += 2 * GAP if margin else GAP
    widest = max((int(measure.textlength(title, font)) for title in titles), default=0)
    step_x, step_y = max(width * factor, widest) + GAP, height * factor + GAP
    top = 20 if titles else GAP
    columns = max(len(row) for row in rows)
    sheet = Image.new("RGB", (margin + columns * step_x, top + len(rows) * step_y), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        draw.text((margin + column * step_x + (step_x - GAP) / 2, top / 2), title, "black", font, anchor="mm")
    for y, (row, name) in enumerate(zip(rows, names or [""] * len(rows))):
        draw.text((GAP, top + y * step_y + height * factor / 2), name, "black", font, anchor="lm")
        for column, pixels in enumerate(row):
            image = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
            image = image.resize((width * factor, height * factor), Image.Resampling.NEAREST)
            sheet.paste(image, (margin + column * step_x + (step_x - GAP - width * factor) // 2, top + y * step_y))
    write_atomically(path, lambda temporary: sheet.save(temporary, format="PNG"))


def scatter(
    path: Path, columns: Sequence[tuple[str, Tensor, Sequence[int]]], class_names: Sequence[str],
    background: Tensor | None,
) -> None:  # fmt: skip
    """One panel per column: vectors coloured by class over the data in grey, first two coordinates, equal axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * len(columns) + 1, 4.5), layout="constrained")
    axes = figure.subplots(1, len(columns), squeeze=False, sharex=True, sharey=True)[0]
    for axis, (title, x, labels) in zip(axes, columns):
        if background is not None:
            axis.scatter(*background[:5000, :2].T, s=2, color="0.8", label="data", linewidths=0)
        labels = torch.as_tensor(labels)
        for label in labels.unique().tolist():
            name = "no condition" if label < 0 else f"class {class_names[label]}"
            axis.scatter(*x[labels == label, :2].T, s=4, color=f"C{label % 10}", label=name, linewidths=0)
        axis.set(title=title, xlabel="x[0]", ylabel="x[1]", aspect="equal")
    axes[-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), markerscale=3)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=100, bbox_inches="tight"))
