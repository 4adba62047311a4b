"""What diffusion in latents needs for the quality of diffusion in pixels: images of training, steps of sampling, seconds.

A row of a curve has the Frechet distance "fd" of a model after "images" of training, or with "steps" of sampling.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from figure_files import write_picture
from matplotlib.figure import Figure

__all__ = [
    "Equal",
    "Row",
    "compare_sampling",
    "compare_training",
    "draw_figure",
    "format_equal",
    "format_qualities",
    "images_to_reach",
]

Row = Mapping[str, Any]
Curves = Mapping[str, Sequence[Row]]  # of "pixels" and of "latents"
KINDS = "pixels", "latents"


class Equal(NamedTuple):
    """Two models of one FD.

    Attributes:
        fd: of the model in pixels; that in latents is as good.
        amounts: images of training, or steps of sampling, in pixels and in latents; inf = latents do not reach it.
        seconds: of the training, or of a sample.
        exact: False = the smallest amount in latents is already better, so that less would do.
    """

    fd: float
    amounts: tuple[float, float]
    seconds: tuple[float, float]
    exact: bool = True

    @property
    def ratio(self) -> float:
        """How many times faster latents are."""
        return self.seconds[0] / self.seconds[1]


def images_to_reach(curve: Sequence[Row], fd: float) -> float:
    """The images at which a curve first falls to an FD, linear in logarithms; inf = it does not.

    Where the first point is as good, its images.
    """
    for place, row in enumerate(curve):
        if row["fd"] <= fd:
            if not place:
                return float(row["images"])
            before = curve[place - 1]
            share = math.log(before["fd"] / fd) / math.log(before["fd"] / row["fd"])
            return float(before["images"] * (row["images"] / before["images"]) ** share)
    return math.inf


def compare_training(curves: Curves, seconds: Mapping[str, float]) -> list[Equal]:
    """For each model in pixels the images that latents need for its FD.

    Arguments:
        curves: by increasing images.
        seconds: per image, of "train pixels" and "train latents".
    """
    rows = []
    for point in curves["pixels"]:
        amounts = float(point["images"]), images_to_reach(curves["latents"], point["fd"])
        times = amounts[0] * seconds["train pixels"], amounts[1] * seconds["train latents"]
        rows.append(Equal(point["fd"], amounts, times, curves["latents"][0]["fd"] > point["fd"]))
    return rows


def compare_sampling(curves: Curves, seconds: Mapping[str, float]) -> list[Equal]:
    """For each number of steps in pixels the smallest one in latents whose FD is as good.

    Arguments:
        curves: by increasing steps, of one model each.
        seconds: per sample, of "sample pixels 5" and so on.
    """
    rows = []
    for point in curves["pixels"]:
        steps, times = math.inf, math.inf
        enough = [row["steps"] for row in curves["latents"] if row["fd"] <= point["fd"]]
        if enough:
            steps, times = enough[0], seconds[f"sample latents {enough[0]}"]
        own = seconds[f"sample pixels {point['steps']}"]
        exact = curves["latents"][0]["fd"] > point["fd"]
        rows.append(Equal(point["fd"], (point["steps"], steps), (own, times), exact))
    return rows


def format_qualities(rows: Mapping[str, Row]) -> str:
    """A table of what was judged."""
    lines = ["| pictures | FD | agreed | recall |", "|---|---|---|---|"]
    lines += [f"| {name} | {row['fd']:.2f} | {row['agreed']:.1%} | {row['recall']:.3f} |" for name, row in rows.items()]
    return "\n".join(lines)


def format_equal(unit: str, rows: Sequence[Equal]) -> str:
    """A table of equal quality; "at most" where less would do."""
    lines = [
        f"| FD | {unit} in pixels | {unit} in latents | seconds in pixels | in latents | times faster |",
        "|---" * 6 + "|",
    ]
    for row in rows:
        most, least = ("", "") if row.exact else ("at most ", "at least ")
        lines.append(
            f"| {row.fd:.2f} | {row.amounts[0]:.0f} | {most}{row.amounts[1]:.0f} | {row.seconds[0]:.3g} | "
            f"{most}{row.seconds[1]:.3g} | {least}{row.ratio:.2f} |"
        )
    return "\n".join(lines)


def draw_figure(path: Path, training: Curves, sampling: Curves, seconds: Mapping[str, float]) -> None:
    """FD against the images and the seconds of training, and against the milliseconds of a sample."""
    figure = Figure(figsize=(11, 3.2))
    panels = figure.subplots(1, 3, gridspec_kw={"wspace": 0.3})
    for kind in KINDS:
        images, fd = zip(*((row["images"], row["fd"]) for row in training[kind]))
        panels[0].loglog(images, fd, "o-", label=kind)
        panels[1].loglog([count * seconds[f"train {kind}"] for count in images], fd, "o-")
        steps, fd = zip(*((row["steps"], row["fd"]) for row in sampling[kind]))
        panels[2].loglog([1000 * seconds[f"sample {kind} {count}"] for count in steps], fd, "o-")
    for panel, label in zip(panels, ("training images", "CPU seconds of training", "CPU milliseconds per sample")):
        panel.set(xlabel=label)
        panel.minorticks_off()
        for axis, values in ((panel.xaxis, 0), (panel.yaxis, 1)):
            ticks = sorted({float(f"{point[values]:.3g}") for line in panel.lines for point in line.get_xydata()})
            axis.set_ticks(ticks[:: len(ticks) // 4 + 1], [f"{tick:g}" for tick in ticks[:: len(ticks) // 4 + 1]])
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("FD (local features)")
    panels[0].legend()
    write_picture(path, figure)
