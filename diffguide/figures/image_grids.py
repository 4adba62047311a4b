"""Pictures of images: sample grids and contact sheets. Those of vectors are drawn by `vectors`."""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..files.run_folders import write_atomically, write_together
from .scatter import ScatterBackground, build_background, write_scatter

__all__ = [
    "GridLayout",
    "choose_contact_rows",
    "choose_training_labels",
    "draw_grid",
    "lay_out_grid",
    "quantize",
    "to_uint8",
    "write_contact_sheet",
    "write_grid",
    "write_png",
    "write_pngs",
    "write_samples",
]

MIN_CELL = 56  # pixels a side that a small image is enlarged to at least
CELL_GAP = 3
MAX_COLUMNS = 20  # most columns of a grid; samples.npz holds all samples
MAX_ROWS = 40  # most classes
MAX_TRAINING_IMAGES, MAX_TRAINING_VECTORS = (
    160,
    2500,
)  # most samples of all classes in a picture of a training run, of images and of vectors
MAX_OMITTED_NAMES = 12  # most classes that a note names
LINE_HEIGHT = 17  # pixels of a line of text
MAX_CONTACT_POINTS = 20000  # most vectors of a scatter plot


def quantize(x: Tensor) -> Tensor:
    """The bytes of images in [-1, 1], of the same shape: round(127.5 (x + 1)), clipped, in float32 whatever they come in."""
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def to_uint8(x: Tensor) -> numpy.ndarray:
    """`quantize` images [N, C, H, W] as an array [N, H, W, C], which is how they are written."""
    return quantize(x).permute(0, 2, 3, 1).cpu().numpy()


class GridLayout(NamedTuple):
    """rows: which samples a grid shows, by index; names: of its rows, [] = none; note: which classes it omits, "" = none."""

    rows: list[list[int]]
    names: list[str]
    note: str = ""

    @property
    def indices(self) -> list[int]:
        return [index for row in self.rows for index in row]


def lay_out_grid(labels: Sequence[int], class_names: Sequence[str], most: int = MAX_ROWS * MAX_COLUMNS) -> GridLayout:
    """A row per class with its first samples, or only rows where nothing has a class.

    Arguments:
        labels: class per sample, -1 = no condition.
        class_names: one per class.
        most: samples shown at most; every row loses its last ones first.
    """
    if max(labels) < 0:
        count = min(len(labels), most, MAX_ROWS * MAX_COLUMNS)
        width = min(MAX_COLUMNS, math.ceil(math.sqrt(count)))
        return GridLayout([list(range(i, min(i + width, count))) for i in range(0, count, width)], [])
    present = sorted(set(labels))
    members: dict[int, list[int]] = {label: [] for label in present[: min(MAX_ROWS, most)]}
    for index, label in enumerate(labels):
        if label in members and len(members[label]) < MAX_COLUMNS:
            members[label].append(index)
    width = max(w for w in range(1, MAX_COLUMNS + 1) if sum(min(len(row), w) for row in members.values()) <= most)
    names = ["" if label < 0 else str(class_names[label]) for label in members]
    note = describe_omitted([class_names[label] for label in present if label not in members], len(present))
    return GridLayout([row[:width] for row in members.values()], names, note)


def describe_omitted(names: Sequence[str], total: int) -> str:
    """The note on the classes that a picture omits, "" where there are none."""
    shown = ", ".join(map(str, names[:MAX_OMITTED_NAMES])) + (", ..." if len(names) > MAX_OMITTED_NAMES else "")
    return f"{len(names)} of {total} classes are not shown: {shown}" if names else ""


def choose_training_labels(classes: int, vectors: bool) -> list[int]:
    """The labels of a picture of a training run: eight samples of each class, fewer where there are many; at most 40 classes.

    Arguments:
        classes: 0 = samples without condition.
        vectors: whether samples are vectors, of which 250 of a class are shown.
    """
    most, each = (MAX_TRAINING_VECTORS, 250) if vectors else (MAX_TRAINING_IMAGES, 8)
    shown = list(range(min(classes, MAX_ROWS))) or [-1] * 10
    return [label for label in shown for _ in range(min(each, most // len(shown)))]


def write_samples(
    path: Path, x: Tensor, labels: Sequence[int], class_names: Sequence[str], background: Tensor | None = None,
    whole: bool = False,
) -> None:  # fmt: skip
    """Writes a PNG of samples: a row per class with its name, or a scatter plot where x holds vectors.

    Arguments:
        x: samples [N, C, H, W] in [-1, 1], or vectors [N, D].
        labels: class per sample, -1 = no condition.
        class_names: one per class.
        background: data [M, D] to draw the vectors over.
        whole: whether to note the classes that have no sample.
    """
    shown, classes = GridLayout([], []) if x.ndim == 2 else lay_out_grid(labels, class_names), set(labels)
    if whole and max(labels) >= 0:
        others = [name for index, name in enumerate(class_names) if index not in classes]
        shown = shown._replace(note=describe_omitted(others, len(class_names)))
    if x.ndim == 2:
        write_scatter(path, [(shown.note, x.numpy(), labels)], class_names, build_background(background, x.shape[1]))
    else:
        write_grid(path, shown, to_uint8(x))


def write_contact_sheet(
    path: Path, columns: Sequence[tuple[str, numpy.ndarray]], labels: Sequence[Sequence[int]],
    class_names: Sequence[str], background: ScatterBackground | None = None,
) -> None:  # fmt: skip
    """Writes a PNG with a column per run of a sweep, the same sample (seed) along each row.

    A row is named where all runs agree on its class.

    Arguments:
        columns: (title, samples) per run: uint8 [R, H, W, C], or vectors [R, D].
        labels: per run, of these samples.
        class_names: one per class.
        background: what is drawn below vectors.
    """
    if columns[0][1].ndim == 2:
        panels = [(title, x, own) for (title, x), own in zip(columns, labels)]
        write_scatter(path, panels, class_names, background or build_background(None, columns[0][1].shape[1]))
        return
    classes = [set(row) for row in zip(*labels)]
    names = ["" if len(row) > 1 or -1 in row else str(class_names[row.pop()]) for row in classes]
    rows = [list(pictures) for pictures in zip(*(x for _, x in columns))]
    write_png(path, draw_grid(rows, names, [title for title, _ in columns]))


def choose_contact_rows(labels: Sequence[int], shape: Sequence[int]) -> list[int]:
    """The samples that a contact sheet shows, by index: two of each class, at most 20; of vectors the first ones.

    Arguments:
        labels: of the first run, as far as all runs go.
        shape: of one sample.
    """
    if len(shape) == 1:
        return list(range(min(len(labels), MAX_CONTACT_POINTS)))
    each = 2 if max(labels) >= 0 else MAX_COLUMNS
    seen: Counter[int] = Counter()
    rows: list[int] = []
    for index, label in enumerate(labels):
        if seen[label] < each and len(rows) < MAX_COLUMNS:
            rows.append(index)
        seen[label] += 1
    return rows


def write_grid(path: Path, shown: GridLayout, pictures: Mapping[int, numpy.ndarray] | numpy.ndarray) -> None:
    """Writes a PNG of uint8 [H, W, C] pictures by index."""
    write_png(path, draw_grid([[pictures[index] for index in row] for row in shown.rows], shown.names, [], shown.note))


def draw_grid(rows: list[list[numpy.ndarray]], names: list[str], titles: list[str], note: str = "") -> Image.Image:
    """Rows of uint8 [H, W, C] pictures, names at the left, titles of any number of lines on top, a note below.

    Pictures below 56 pixels a side are enlarged by a whole factor to at least that. Titles wider than a picture are broken.
    """
    height, width = rows[0][0].shape[:2]
    factor = math.ceil(MIN_CELL / max(height, width))
    font = load_font()
    measure = partial(ImageDraw.Draw(Image.new("RGB", (1, 1))).textlength, font=font)
    margin = max((int(measure(name)) for name in names), default=0)
    margin += 2 * CELL_GAP if margin else CELL_GAP
    wrapped = [wrap_text(title, width * factor, measure) for title in titles]
    widest = max((int(measure(line)) for title in wrapped for line in title), default=0)
    step_x, step_y = max(width * factor, widest + 2 * CELL_GAP) + CELL_GAP, height * factor + CELL_GAP
    top = CELL_GAP + LINE_HEIGHT * max(map(len, wrapped), default=0)
    across = margin + max(len(row) for row in rows) * step_x
    below = wrap_text(note, across - 2 * CELL_GAP, measure) if note else []
    sheet = Image.new("RGB", (across, top + len(rows) * step_y + LINE_HEIGHT * len(below)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(wrapped):
        middle = (margin + column * step_x + (step_x - CELL_GAP) / 2, top / 2)
        draw.text(middle, "\n".join(title), "black", font, anchor="mm", align="center")
    for y, (row, name) in enumerate(zip(rows, names or [""] * len(rows))):
        draw.text((CELL_GAP, top + y * step_y + height * factor / 2), name, "black", font, anchor="lm")
        for column, pixels in enumerate(row):
            image = to_image(pixels).resize((width * factor, height * factor), Image.Resampling.NEAREST)
            sheet.paste(image, (margin + column * step_x + (step_x - CELL_GAP - width * factor) // 2, top + y * step_y))
    if below:
        draw.text((CELL_GAP, top + len(rows) * step_y), "\n".join(below), "black", font)
    return sheet


def load_font() -> ImageFont.FreeTypeFont:
    """The letters of names and titles: matplotlib's, for Pillow's own font has no accents, Greek or Cyrillic."""
    from matplotlib import get_data_path

    return ImageFont.truetype(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", 13)


def wrap_text(text: str, width: float, measure: Callable[[str], float]) -> list[str]:
    """The lines of a text, those that are too wide broken background spaces, underscores, slashes and commas."""
    lines: list[str] = []
    for line in text.split("\n"):
        lines.append("")
        for part in re.split(r"(?<=[ _/,])", line):
            if lines[-1] and measure((lines[-1] + part).rstrip()) > width:
                lines.append("")
            lines[-1] += part
    return [line.rstrip() for line in lines]


def to_image(pixels: numpy.ndarray) -> Image.Image:
    """One picture of uint8 [H, W, C]; grey stays grey."""
    return Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)


def write_png(path: Path, picture: Image.Image) -> None:
    """Writes a PNG.

    Raises:
        WriteError: the disk is full, the folder is gone, ...
    """
    write_atomically(path, partial(picture.save, format="PNG"))


def write_pngs(folder: Path, first: int, pictures: numpy.ndarray) -> None:
    """Writes a PNG `<index>.png` of each of uint8 [N, H, W, C], from index `first` on.

    Raises:
        WriteError: the disk is full, the folder is gone, ...
    """
    write_together({
        folder / f"{index:06d}.png": partial(to_image(pixels).save, format="PNG")
        for index, pixels in enumerate(pictures, start=first)
    })  # fmt: skip
