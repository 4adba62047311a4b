"""Pictures of images: sample grids and contact sheets. Those of vectors are drawn by `vectors`."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .runs import write_atomically, write_together
from .vectors import Backdrop, backdrop, write_scatter

__all__ = [
    "Layout", "contact_rows", "contact_sheet", "grid", "layout", "quantised", "sample_picture", "save", "save_singles",
    "to_uint8", "write_grid",
]  # fmt: skip

CELL = 48  # pixels that a small image is enlarged towards
GAP = 3
COLUMNS = 20  # most columns of a grid; samples.npz holds all samples
ROWS = 40
POINTS = 20000  # most vectors of a scatter plot


def quantised(x: Tensor) -> Tensor:
    """The bytes of images in [-1, 1], of the same shape: round(127.5 (x + 1)), clipped, in float32 whatever they come in."""
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def to_uint8(x: Tensor) -> numpy.ndarray:
    """`quantised` images [N, C, H, W] as an array [N, H, W, C], which is how they are written."""
    return quantised(x).permute(0, 2, 3, 1).cpu().numpy()


class Layout(NamedTuple):
    """rows: which samples a grid shows, by index; names: of its rows, [] = none."""

    rows: list[list[int]]
    names: list[str]

    @property
    def indices(self) -> list[int]:
        return [index for row in self.rows for index in row]


def layout(labels: Sequence[int], class_names: Sequence[str], most: int = ROWS * COLUMNS) -> Layout:
    """A row per class with its first samples, or only rows where nothing has a class.

    Arguments:
        labels: class per sample, -1 = no condition.
        class_names: one per class.
        most: samples shown at most; every row loses its last ones first.
    """
    if max(labels) < 0:
        count = min(len(labels), most, ROWS * COLUMNS)
        width = min(COLUMNS, math.ceil(math.sqrt(count)))
        return Layout([list(range(i, min(i + width, count))) for i in range(0, count, width)], [])
    members: dict[int, list[int]] = {label: [] for label in sorted(set(labels))[: min(ROWS, most)]}
    for index, label in enumerate(labels):
        if label in members and len(members[label]) < COLUMNS:
            members[label].append(index)
    width = max(w for w in range(1, COLUMNS + 1) if sum(min(len(row), w) for row in members.values()) <= most)
    names = ["" if label < 0 else str(class_names[label]) for label in members]
    return Layout([row[:width] for row in members.values()], names)


def sample_picture(
    path: Path, x: Tensor, labels: Sequence[int], class_names: Sequence[str], background: Tensor | None = None
) -> None:
    """Writes a PNG of samples: a row per class with its name, or a scatter plot where x holds vectors.

    Arguments:
        x: samples [N, C, H, W] in [-1, 1], or vectors [N, D].
        labels: class per sample, -1 = no condition.
        class_names: one per class.
        background: data [M, D] to draw the vectors over.
    """
    if x.ndim == 2:
        write_scatter(path, [("", x.numpy(), labels)], class_names, backdrop(background, x.shape[1]))
    else:
        write_grid(path, layout(labels, class_names), to_uint8(x))


def contact_sheet(
    path: Path, columns: Sequence[tuple[str, numpy.ndarray]], labels: Sequence[Sequence[int]],
    class_names: Sequence[str], behind: Backdrop | None = None,
) -> None:  # fmt: skip
    """Writes a PNG with a column per run of a sweep, the same sample (seed) along each row.

    A row is named where all runs agree on its class.

    Arguments:
        columns: (title, samples) per run: uint8 [R, H, W, C], or vectors [R, D].
        labels: per run, of these samples.
        class_names: one per class.
        behind: what vectors are drawn over.
    """
    if columns[0][1].ndim == 2:
        panels = [(title, x, own) for (title, x), own in zip(columns, labels)]
        write_scatter(path, panels, class_names, behind or backdrop(None, columns[0][1].shape[1]))
        return
    classes = [set(row) for row in zip(*labels)]
    names = ["" if len(row) > 1 or -1 in row else str(class_names[row.pop()]) for row in classes]
    rows = [list(pictures) for pictures in zip(*(x for _, x in columns))]
    save(path, grid(rows, names, [title for title, _ in columns]))


def contact_rows(labels: Sequence[int], shape: Sequence[int]) -> list[int]:
    """The samples that a contact sheet shows, by index: two of each class, at most 20; of vectors the first ones.

    Arguments:
        labels: of the first run, as far as all runs go.
        shape: of one sample.
    """
    if len(shape) == 1:
        return list(range(min(len(labels), POINTS)))
    each = 2 if max(labels) >= 0 else COLUMNS
    seen: Counter[int] = Counter()
    rows = []
    for index, label in enumerate(labels):
        if seen[label] < each and len(rows) < COLUMNS:
            rows.append(index)
        seen[label] += 1
    return rows


def write_grid(path: Path, shown: Layout, pictures: Mapping[int, numpy.ndarray] | numpy.ndarray) -> None:
    """Writes a PNG of uint8 [H, W, C] pictures by index."""
    save(path, grid([[pictures[index] for index in row] for row in shown.rows], shown.names, []))


def grid(rows: list[list[numpy.ndarray]], names: list[str], titles: list[str]) -> Image.Image:
    """Rows of uint8 [H, W, C] pictures, names at the left, titles of any number of lines on top; enlarged whole times."""
    height, width = rows[0][0].shape[:2]
    factor = max(1, CELL // max(height, width))
    font = ImageFont.load_default(size=14)
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    margin = max((int(measure.textlength(name, font)) for name in names), default=0)
    margin += 2 * GAP if margin else GAP
    lines = [line for title in titles for line in title.split("\n")]
    widest = max((int(measure.textlength(line, font)) for line in lines), default=0)
    step_x, step_y = max(width * factor, widest + 2 * GAP) + GAP, height * factor + GAP
    top = GAP + 17 * max((title.count("\n") + 1 for title in titles), default=0)
    columns = max(len(row) for row in rows)
    sheet = Image.new("RGB", (margin + columns * step_x, top + len(rows) * step_y), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        middle = (margin + column * step_x + (step_x - GAP) / 2, top / 2)
        draw.text(middle, title, "black", font, anchor="mm", align="center")
    for y, (row, name) in enumerate(zip(rows, names or [""] * len(rows))):
        draw.text((GAP, top + y * step_y + height * factor / 2), name, "black", font, anchor="lm")
        for column, pixels in enumerate(row):
            image = single(pixels).resize((width * factor, height * factor), Image.Resampling.NEAREST)
            sheet.paste(image, (margin + column * step_x + (step_x - GAP - width * factor) // 2, top + y * step_y))
    return sheet


def single(pixels: numpy.ndarray) -> Image.Image:
    """One picture of uint8 [H, W, C]; grey stays grey."""
    return Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)


def save(path: Path, picture: Image.Image) -> None:
    """Writes a PNG.

    Raises:
        WriteError: the disk is full, the folder is gone, ...
    """
    write_atomically(path, partial(picture.save, format="PNG"))


def save_singles(folder: Path, first: int, pictures: numpy.ndarray) -> None:
    """Writes a PNG `<index>.png` of each of uint8 [N, H, W, C], from index `first` on.

    Raises:
        WriteError: the disk is full, the folder is gone, ...
    """
    write_together({
        folder / f"{index:06d}.png": partial(single(pixels).save, format="PNG")
        for index, pixels in enumerate(pictures, start=first)
    })  # fmt: skip
