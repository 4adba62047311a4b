"""Grids of samples and contact sheets of runs; vectors are drawn by `scatter`."""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
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
    "is_latent",
    "lay_out_grid",
    "preview_latents",
    "quantize",
    "to_uint8",
    "write_contact_sheet",
    "write_grid",
    "write_png",
    "write_pngs",
    "write_samples",
]

MIN_CELL = 56  # pixels; smaller images are enlarged
CELL_GAP = 3  # pixels
LINE_HEIGHT = 17  # pixels of a line of text
MAX_COLUMNS = 20  # of a grid
MAX_ROWS = 40  # of a grid, and so classes
MAX_TRAINING_IMAGES = 160  # in a figure of a training run
MAX_TRAINING_VECTORS = 2500  # in a figure of a training run
MAX_OMITTED_NAMES = 12  # classes named in a note
MAX_CONTACT_POINTS = 20000  # vectors in a contact sheet


def quantize(x: Tensor) -> Tensor:
    """Images in [-1, 1] as bytes of the same shape, round(127.5 (x + 1)) clipped to 0..255, computed in float32."""
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def to_uint8(x: Tensor) -> numpy.ndarray:
    """Images [N, C, H, W] in [-1, 1] as bytes [N, H, W, C], for image files and samples.npz."""
    return quantize(x).permute(0, 2, 3, 1).cpu().numpy()


def is_latent(shape: Sequence[int]) -> bool:
    """Whether examples [C, H, W] are neither grey nor RGB, so that they are latents of an autoencoder and no images."""
    return len(shape) == 3 and shape[0] not in (1, 3)


def preview_latents(x: numpy.ndarray) -> numpy.ndarray:
    """Pictures [..., H, W, 3], or [..., H, W, 1], of the first channels of latents [..., C, H, W]; other arrays unchanged."""
    if x.dtype == numpy.uint8 or x.ndim < 3:
        return x
    channels = x[..., : 3 if x.shape[-3] > 2 else 1, :, :]
    return numpy.moveaxis(quantize(torch.from_numpy(numpy.ascontiguousarray(channels))).numpy(), -3, -1)


class GridLayout(NamedTuple):
    """The arrangement of a grid.

    Attributes:
        rows: indices of the samples in each row.
        names: name of each row; [] = no names.
        note: a text below the grid on omitted classes; "" = none.
    """

    rows: list[list[int]]
    names: list[str]
    note: str = ""

    @property
    def indices(self) -> list[int]:
        return [index for row in self.rows for index in row]


def lay_out_grid(
    labels: Sequence[int], class_names: Sequence[str], max_samples: int = MAX_ROWS * MAX_COLUMNS
) -> GridLayout:
    """A row per class with its first samples, or unnamed rows for samples without condition.

    Arguments:
        labels: class per sample, -1 = no condition.
        class_names: one per class.
        max_samples: number of samples at most; all rows are shortened alike.
    """
    if max(labels) < 0:
        count = min(len(labels), max_samples, MAX_ROWS * MAX_COLUMNS)
        width = min(MAX_COLUMNS, math.ceil(math.sqrt(count)))
        return GridLayout([list(range(i, min(i + width, count))) for i in range(0, count, width)], [])
    present = sorted(set(labels))
    members: dict[int, list[int]] = {label: [] for label in present[: min(MAX_ROWS, max_samples)]}
    for index, label in enumerate(labels):
        if label in members and len(members[label]) < MAX_COLUMNS:
            members[label].append(index)
    widths = range(1, MAX_COLUMNS + 1)
    width = max(w for w in widths if sum(min(len(row), w) for row in members.values()) <= max_samples)
    names = ["" if label < 0 else str(class_names[label]) for label in members]
    note = describe_omitted([class_names[label] for label in present if label not in members], len(present))
    return GridLayout([row[:width] for row in members.values()], names, note)


def describe_omitted(names: Sequence[str], total: int) -> str:
    """A note on omitted classes; "" without any."""
    if not names:
        return ""
    first = ", ".join(map(str, names[:MAX_OMITTED_NAMES])) + (", ..." if len(names) > MAX_OMITTED_NAMES else "")
    return f"{len(names)} of {total} classes are not shown: {first}"


def choose_training_labels(classes: int, vectors: bool) -> list[int]:
    """The labels of the samples in a figure of a training run, 8 images or 250 vectors per class, fewer for many classes.

    Arguments:
        classes: number of classes; 0 = samples without condition.
        vectors: whether samples are vectors.
    """
    total, per_class = (MAX_TRAINING_VECTORS, 250) if vectors else (MAX_TRAINING_IMAGES, 8)
    rows = list(range(min(classes, MAX_ROWS))) or [-1] * 10
    return [label for label in rows for _ in range(min(per_class, total // len(rows)))]


def write_samples(
    path: Path,
    x: Tensor,
    labels: Sequence[int],
    class_names: Sequence[str],
    background: Tensor | None = None,
    note_missing: bool = False,
) -> None:
    """Writes a PNG of samples: a grid with a named row per class, or a scatter plot of vectors.

    Arguments:
        x: samples [N, C, H, W] in [-1, 1], or vectors [N, D].
        labels: class per sample, -1 = no condition.
        class_names: one per class.
        background: data [M, D] to draw below vectors.
        note_missing: whether to add a note on the classes without sample.
    """
    note = ""
    if note_missing and max(labels) >= 0:
        present = set(labels)
        missing = [name for index, name in enumerate(class_names) if index not in present]
        note = describe_omitted(missing, len(class_names))
    if x.ndim == 2:
        write_scatter(path, [(note, x.numpy(), labels)], class_names, build_background(background, x.shape[1]))
        return
    layout = lay_out_grid(labels, class_names)
    if note_missing and max(labels) >= 0:
        layout = layout._replace(note=note)
    write_grid(path, layout, preview_latents(x.float().cpu().numpy()) if is_latent(x.shape[1:]) else to_uint8(x))


def write_contact_sheet(
    path: Path,
    columns: Sequence[tuple[str, numpy.ndarray]],
    labels: Sequence[Sequence[int]],
    class_names: Sequence[str],
    background: ScatterBackground | None = None,
) -> None:
    """Writes a PNG with a column per run of a sweep and a row per sample (seed).

    A row is named if its samples have one class in all runs.

    Arguments:
        columns: (title, samples) of each run: uint8 [R, H, W, C], or vectors [R, D].
        labels: labels of these samples in each run.
        class_names: one per class.
        background: background of vectors; None = empty.
    """
    if columns[0][1].ndim == 2:
        panels = [(title, x, y) for (title, x), y in zip(columns, labels)]
        write_scatter(path, panels, class_names, background or build_background(None, columns[0][1].shape[1]))
        return
    classes = [set(row) for row in zip(*labels)]
    names = ["" if len(row) > 1 or -1 in row else str(class_names[row.pop()]) for row in classes]
    rows = [list(pictures) for pictures in zip(*(preview_latents(x) for _, x in columns))]
    write_png(path, draw_grid(rows, names, [title for title, _ in columns]))


def choose_contact_rows(labels: Sequence[int], shape: Sequence[int]) -> list[int]:
    """The indices of the samples in a contact sheet: two images of each class, at most 20, or the first vectors.

    Arguments:
        labels: labels in the first run of the samples that all runs have.
        shape: shape of one sample.
    """
    if len(shape) == 1:
        return list(range(min(len(labels), MAX_CONTACT_POINTS)))
    per_class = 2 if max(labels) >= 0 else MAX_COLUMNS
    seen: Counter[int] = Counter()
    rows: list[int] = []
    for index, label in enumerate(labels):
        if seen[label] < per_class and len(rows) < MAX_COLUMNS:
            rows.append(index)
        seen[label] += 1
    return rows


def write_grid(path: Path, layout: GridLayout, images: Mapping[int, numpy.ndarray] | numpy.ndarray) -> None:
    """Writes a PNG of a grid of images, uint8 [H, W, C] by index."""
    rows = [[images[index] for index in row] for row in layout.rows]
    write_png(path, draw_grid(rows, layout.names, [], layout.note))


def draw_grid(rows: list[list[numpy.ndarray]], names: list[str], titles: list[str], note: str = "") -> Image.Image:
    """A grid of images, uint8 [H, W, C], with row names at the left, column titles on top and a note below.

    Images with sides below 56 pixels are enlarged by an integer factor. Titles wider than an image are wrapped.
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
    """matplotlib's font, since Pillow's default font has no accents, Greek or Cyrillic."""
    found = find_spec("matplotlib")  # without importing it, which takes half a second
    folder = Path((found and found.origin) or "").parent / "mpl-data"
    if not folder.is_dir():  # another matplotlib keeps it elsewhere
        from matplotlib import get_data_path

        folder = Path(get_data_path())
    return ImageFont.truetype(folder / "fonts" / "ttf" / "DejaVuSans.ttf", 13)


def wrap_text(text: str, width: float, measure: Callable[[str], float]) -> list[str]:
    """The lines of a text; those above `width` pixels are broken after spaces, underscores, slashes and commas."""
    lines: list[str] = []
    for line in text.split("\n"):
        lines.append("")
        for part in re.split(r"(?<=[ _/,])", line):
            if lines[-1] and measure((lines[-1] + part).rstrip()) > width:
                lines.append("")
            lines[-1] += part
    return [line.rstrip() for line in lines]


def to_image(pixels: numpy.ndarray) -> Image.Image:
    """An image from uint8 [H, W, C], greyscale for C = 1."""
    return Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)


def write_png(path: Path, image: Image.Image) -> None:
    """Writes a PNG.

    Raises:
        WriteError: the disk is full, the folder is missing, ...
    """
    write_atomically(path, partial(image.save, format="PNG"))


def write_pngs(folder: Path, first: int, images: numpy.ndarray) -> None:
    """Writes images, uint8 [N, H, W, C], as `<index>.png` with indices from `first`.

    Raises:
        WriteError: the disk is full, the folder is missing, ...
    """
    writes = {}
    for index, pixels in enumerate(images, start=first):
        writes[folder / f"{index:06d}.png"] = partial(to_image(pixels).save, format="PNG")
    write_together(writes)
