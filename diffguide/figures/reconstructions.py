"""Pictures above their reconstructions."""

from pathlib import Path

from torch import Tensor

from .image_grids import draw_grid, to_uint8, write_png

__all__ = ["MAX_RECONSTRUCTIONS", "write_reconstructions"]

COLUMNS = 8
MAX_RECONSTRUCTIONS = 4 * COLUMNS  # pictures in a figure


def write_reconstructions(path: Path, originals: Tensor, reconstructions: Tensor) -> None:
    """Writes a PNG with every row of originals above the row of their reconstructions.

    Arguments:
        originals, reconstructions: [N, C, H, W] in [-1, 1].
    """
    above, below = to_uint8(originals), to_uint8(reconstructions)
    rows, names = [], []
    for first in range(0, len(above), COLUMNS):
        rows += [list(part[first : first + COLUMNS]) for part in (above, below)]
        names += ["original", "reconstruction"]
    write_png(path, draw_grid(rows, names, []))
