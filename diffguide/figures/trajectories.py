"""Trajectories of a few samples from noise to data, as an animated GIF."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy
from PIL import Image
from torch import Tensor

from ..files.run_folders import write_atomically
from ..schedules import Schedule
from .image_grids import GridLayout, draw_grid, lay_out_grid, to_uint8
from .scatter import ScatterBackground, draw_panel, draw_scatter

__all__ = ["TrajectoryRecorder", "choose_trajectories", "write_image_gif", "write_vector_gif"]

MAX_FRAMES = 60  # of a GIF
MAX_GIF_IMAGES = 80  # images in a frame
MAX_GIF_PIXELS = 2**20  # pixels of all images in a frame
MAX_GIF_VECTORS = 2000  # vectors in a frame
FRAME_MILLISECONDS = 100  # duration of a frame
LAST_FRAME_MILLISECONDS = 2000  # duration of the last frame


def choose_trajectories(labels: Sequence[int], class_names: Sequence[str], shape: Sequence[int]) -> GridLayout:
    """The samples in a GIF: the first images of each row of grid.png, or the first vectors."""
    if len(shape) == 1:
        return GridLayout([list(range(min(len(labels), MAX_GIF_VECTORS)))], [])
    max_samples = max(1, min(MAX_GIF_IMAGES, MAX_GIF_PIXELS // (shape[-1] * shape[-2])))
    return lay_out_grid(labels, class_names, max_samples)


class TrajectoryRecorder:
    """Records frames of a batch during sampling: x_t / sqrt(alpha_t^2 + sigma_t^2), and the result as the last frame.

    At this scale noise has variance 1 at every t, under every normalisation of the schedule.

    Arguments:
        shown: indices of the samples to record.
        times: decreasing, [steps + 1]; frames are taken after at most 60 evenly spaced steps, the last one included.
        schedule: noise schedule of the times; None = x has the scale of the data at every step.
        axes: projection of vectors, drawn at x @ axes; None = images.
        decode: latents [b, ...] -> images; None = the samples are images.
    """

    def __init__(
        self,
        shown: Sequence[int],
        times: Tensor,
        schedule: Schedule | None,
        axes: numpy.ndarray | None = None,
        decode: Callable[[Tensor], Tensor] | None = None,
    ):
        self.axes, self.shown, self.decode = axes, set(shown), decode
        self.rows: list[int] = []
        self.frames: list[numpy.ndarray] = []
        steps = len(times) - 1
        scales = [1.0] * len(times)
        if schedule is not None:
            alpha, sigma = (part.double() for part in schedule.alpha_sigma(times))
            scales = (alpha**2 + sigma**2).sqrt().tolist()
        scales[-1] = 1.0
        self.scale_of_step = {
            round(k): scales[round(k)] for k in numpy.linspace(1, steps, min(steps, MAX_FRAMES)).tolist()
        }

    def start(self, first: int, count: int) -> None:
        """Starts a batch of `count` samples with indices from `first`."""
        self.frames = []
        self.rows = [index - first for index in range(first, first + count) if index in self.shown]

    def on_step(self, step: int, x: Tensor) -> None:
        """Records x [b, ...] after a step, counted from 1."""
        if self.rows and step in self.scale_of_step:
            x = x[self.rows].float() / self.scale_of_step[step]
            x = x if self.decode is None else self.decode(x)
            self.frames.append(to_uint8(x) if self.axes is None else self.project(x))

    def project(self, x: Tensor) -> numpy.ndarray:
        """Vectors along the axes, float32; nan for non-finite ones."""
        values = x.cpu().numpy()
        finite = numpy.isfinite(values).all(1, keepdims=True)
        return (numpy.where(finite, values, numpy.nan) @ self.axes).astype(numpy.float32)

    def stack_frames(self) -> numpy.ndarray | None:
        """The frames of the batch [frames, shown, H, W, C], or [frames, shown, 2 or 1]; None = no recorded sample in it."""
        return numpy.stack(self.frames) if self.rows else None


def write_image_gif(path: Path, layout: GridLayout, frames: Mapping[int, numpy.ndarray]) -> None:
    """Writes a GIF of grids, from frames [frames, H, W, C] per sample. Grey values are exact, colours are reduced to 256."""
    count, *_, channels = frames[layout.rows[0][0]].shape

    def draw_frame(k: int) -> Image.Image:
        rows = [[frames[index][k] for index in row] for row in layout.rows]
        sheet = draw_grid(rows, layout.names, [], layout.note)
        return sheet.convert("L") if channels == 1 else sheet.quantize(256)

    write_gif(path, [draw_frame(k) for k in range(count)])


def write_vector_gif(
    path: Path,
    frames: Mapping[int, numpy.ndarray],
    labels: Sequence[int],
    class_names: Sequence[str],
    background: ScatterBackground,
) -> None:
    """Writes a GIF of scatter plots or histograms with fixed axes, from frames [frames, 2] or [frames, 1] per sample."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    indices = sorted(frames)
    classes = [labels[index] for index in indices]
    points = numpy.stack([frames[index] for index in indices], axis=1)
    figure = draw_scatter([("", points[-1], classes)], class_names, background)
    axis, canvas = figure.axes[0], FigureCanvasAgg(figure)
    limits = [axis_limits(points[..., k]) for k in range(points.shape[-1])]
    present = numpy.unique(classes)
    clouds = axis.collections[-len(present) :]
    images = []
    for frame in points:
        if len(limits) == 1:
            heights = axis.get_ylim()
            axis.clear()
            draw_panel(axis, frame, classes, class_names, background, limits[0])
            axis.set_ylim(heights)
        else:
            axis.set(xlim=limits[0], ylim=limits[1])
            for label, cloud in zip(present, clouds):
                cloud.set_offsets(frame[numpy.equal(classes, label)])
        canvas.draw()
        figure.set_layout_engine("none")  # keeps the layout of the first frame
        images.append(Image.fromarray(numpy.asarray(canvas.buffer_rgba())[..., :3]).quantize(64))
    write_gif(path, images)


def axis_limits(values: numpy.ndarray) -> tuple[float, float]:
    """The range of the finite values with a margin of 5 %."""
    finite = values[numpy.isfinite(values)].astype(float)
    low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 1.0)
    margin = 0.05 * (high - low) or 0.5
    return low - margin, high + margin


def write_gif(path: Path, images: Sequence[Image.Image]) -> None:
    """Writes a repeating GIF, without Pillow's optimisation, which changes grey levels."""
    first, *others = images
    durations = [FRAME_MILLISECONDS] * len(others) + [LAST_FRAME_MILLISECONDS]
    options = dict(append_images=others, duration=durations, loop=0, optimize=False)
    write_atomically(path, lambda temporary: first.save(temporary, format="GIF", save_all=True, **options))
