"""Trajectories of a few samples from noise to data, as an animated GIF."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy
from PIL import Image
from torch import Tensor

from ..files.run_folders import write_atomically
from ..schedules import Schedule
from . import image_grids as images
from . import scatter as vectors

__all__ = ["TrajectoryRecorder", "choose_trajectories", "write_image_gif", "write_vector_gif"]

MAX_FRAMES = 60  # of a GIF, at most
MAX_GIF_IMAGES = 80  # images of a GIF, at most,
MAX_GIF_PIXELS = (
    2**20
)  # and fewer where they have more pixels than this together: a frame for every step has to be kept
MAX_GIF_VECTORS = 2000  # vectors of a GIF, at most
FRAME_MILLISECONDS, LAST_FRAME_MILLISECONDS = 100, 2000  # that a frame stays, and the last one


def choose_trajectories(labels: Sequence[int], class_names: Sequence[str], shape: Sequence[int]) -> images.GridLayout:
    """The samples in a GIF: the first ones of grid.png, row by row; of vectors the first 2000."""
    if len(shape) == 1:
        return images.GridLayout([list(range(min(len(labels), MAX_GIF_VECTORS)))], [])
    return images.lay_out_grid(
        labels, class_names, max(1, min(MAX_GIF_IMAGES, MAX_GIF_PIXELS // (shape[-1] * shape[-2])))
    )


class TrajectoryRecorder:
    """Keeps frames of a batch while it is sampled: x_t / sqrt(alpha_t^2 + sigma_t^2), and at the end the result.

    So scaled, noise has variance 1 at every t, whatever the normalisation of the schedule.

    Arguments:
        shown: indices of the samples in the film.
        times: decreasing, [steps + 1]; a frame is what a step leaves, thinned evenly to 60, the last step included.
        schedule: whose times these are; None = of none, x lives at the data's own scale.
        axes: a vector x is drawn at x @ axes; None = images.
    """

    def __init__(
        self, shown: Sequence[int], times: Tensor, schedule: Schedule | None, axes: numpy.ndarray | None = None
    ):
        self.axes, self.shown = axes, set(shown)
        self.rows: list[int] = []
        self.frames: list[numpy.ndarray] = []
        steps = len(times) - 1
        kept = {round(k) for k in numpy.linspace(1, steps, min(steps, MAX_FRAMES)).tolist()}
        size = [1.0] * len(times)
        if schedule is not None:
            alpha, sigma = (part.double() for part in schedule.alpha_sigma(times))
            size = (alpha**2 + sigma**2).sqrt().tolist()
        self.size = {step: 1.0 if step == steps else size[step] for step in kept}

    def start(self, first: int, count: int) -> None:
        """A batch of `count` samples from index `first` on begins."""
        self.frames, self.rows = [], [index - first for index in range(first, first + count) if index in self.shown]

    def on_step(self, step: int, x: Tensor) -> None:
        """x [b, ...] after a step, counted from 1."""
        if self.rows and step in self.size:
            x = x[self.rows].float() / self.size[step]
            self.frames.append(images.to_uint8(x) if self.axes is None else self.project(x))

    def project(self, x: Tensor) -> numpy.ndarray:
        """Vectors along the axes, float32; nan where they are not finite."""
        values = x.cpu().numpy()
        finite = numpy.isfinite(values).all(1, keepdims=True)
        return (numpy.where(finite, values, numpy.nan) @ self.axes).astype(numpy.float32)

    def stack_frames(self) -> numpy.ndarray | None:
        """The batch's frames [frames, shown, H, W, C] (vectors: [frames, shown, 2 or 1]), None = none of it is in the film."""
        return numpy.stack(self.frames) if self.rows else None


def write_image_gif(path: Path, shown: images.GridLayout, frames: Mapping[int, numpy.ndarray]) -> None:
    """Writes a GIF of grids; frames are [frames, H, W, C] per sample. Grey pixels are exact, of colours 256 a frame."""
    count = len(frames[shown.rows[0][0]])

    def sheet(k: int) -> Image.Image:
        picture = images.draw_grid(
            [[frames[index][k] for index in row] for row in shown.rows], shown.names, [], shown.note
        )
        grey = frames[shown.rows[0][0]].shape[-1] == 1
        return picture.convert("L") if grey else picture.quantize(256)

    write_gif(path, [sheet(k) for k in range(count)])


def write_vector_gif(
    path: Path, frames: Mapping[int, numpy.ndarray], labels: Sequence[int], class_names: Sequence[str],
    background: vectors.ScatterBackground,
) -> None:  # fmt: skip
    """Writes a GIF of scatter plots with fixed axes, or of histograms; frames are [frames, 2] or [frames, 1] per sample."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    indices = sorted(frames)
    classes = [labels[index] for index in indices]
    points = numpy.stack([frames[index] for index in indices], axis=1)
    figure = vectors.draw_scatter([("", points[-1], classes)], class_names, background)
    axis, canvas = figure.axes[0], FigureCanvasAgg(figure)
    limits = [axis_limits(points[..., k]) for k in range(points.shape[-1])]
    present = numpy.unique(classes)
    clouds = axis.collections[-len(present) :]
    pictures = []
    for frame in points:
        if len(limits) == 1:
            top = axis.get_ylim()
            axis.clear()
            vectors.draw_panel(axis, frame, classes, class_names, background, limits[0])
            axis.set_ylim(top)
        else:
            axis.set(xlim=limits[0], ylim=limits[1])
            for label, cloud in zip(present, clouds):
                cloud.set_offsets(frame[numpy.equal(classes, label)])
        canvas.draw()
        figure.set_layout_engine("none")  # found once: the axes must not move
        pictures.append(Image.fromarray(numpy.asarray(canvas.buffer_rgba())[..., :3]).quantize(64))
    write_gif(path, pictures)


def axis_limits(values: numpy.ndarray) -> tuple[float, float]:
    """An axis that shows all values that are finite, and a little more."""
    finite = values[numpy.isfinite(values)].astype(float)
    low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 1.0)
    margin = 0.05 * (high - low) or 0.5
    return low - margin, high + margin


def write_gif(path: Path, pictures: Sequence[Image.Image]) -> None:
    """Writes a GIF that repeats; without Pillow's optimisation, which shifts grey levels of frames that lack some."""
    durations = [FRAME_MILLISECONDS] * (len(pictures) - 1) + [LAST_FRAME_MILLISECONDS]

    def save(temporary: Path) -> None:
        first, *others = pictures
        first.save(
            temporary, format="GIF", save_all=True, append_images=others, duration=durations, loop=0, optimize=False
        )

    write_atomically(path, save)
