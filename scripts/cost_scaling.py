"""Time per image against the amount of work, with the exponent of each law: one table and one figure.

    python scripts/cost_scaling.py [--rounds 3] [--output outputs/cost_scaling] [--curves batch width] [--json FILE]

Measured on one core: a sampling call and a training step against the images per batch, a sampling call against the side of
the images (U-Net, transformer) and the width of the network, a run against its steps, zero-shot classification against
classes and evaluations, CDM against its number of noise levels T. Networks have random weights. Times are CPU seconds of the
process, medians of alternating rounds. The exponent is the slope of a line through the logarithms over the stated range.
Writes cost_scaling.png and prints the table. Takes about three minutes.
"""

import argparse
import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from benchmarks.clocks import Clock, Work, alternate
from benchmarks.components import build_objective, compose_training, cycle_labels
from figure_files import write_picture
from matplotlib.figure import Figure

from diffguide.evaluation.classification.weighting import Bell
from diffguide.evaluation.classification.zero_shot import STAGES, Budget, ZeroShot
from diffguide.objectives import Objective
from diffguide.samplers import DDIM, generate
from diffguide.samplers.grids import Karras

CPU = torch.device("cpu")
KARRAS = Karras(rho=7.0, noise_level_min=None, noise_level_max=None)
Build = Callable[[int], tuple[Work, int]]


@dataclass(frozen=True)
class Curve:
    """What is measured against what.

    Arguments:
        what: the work, for the table.
        against: what changes.
        values: of that.
        build: value -> (the work, its number of images).
        ranges: (lowest, highest value) of each fit.
    """

    what: str
    against: str
    values: tuple[int, ...]
    build: Build
    ranges: tuple[tuple[int, int], ...]


def build(*overrides: str) -> tuple[Objective, tuple[int, int, int]]:
    """An objective with new weights, and the shape of its images."""
    cfg = compose_training("dataset=digits", *overrides)
    return build_objective(cfg), (cfg.dataset.channels, cfg.dataset.size, cfg.dataset.size)


def build_call(images: int, *overrides: str) -> tuple[Work, int]:
    """A call of the denoiser at t = 0.5, or at the middle one of a fixed number of levels."""
    objective, shape = build(*overrides)
    model, x, y = objective.model.eval(), torch.randn(images, *shape), cycle_labels(images, CPU)
    steps = getattr(model, "steps", 2)
    t = torch.tensor((steps // 2) / steps, dtype=torch.float64)
    return torch.no_grad()(lambda: model(x, t, y)), images


def build_step(images: int, *overrides: str) -> tuple[Work, int]:
    """Forward and backward pass of a training step."""
    objective, shape = build(*overrides)
    x, y, rng = torch.randn(images, *shape), cycle_labels(images, CPU), torch.Generator()
    return lambda: objective(x, y, rng.manual_seed(0)).per_example.mean().backward(), images


def build_run(steps: int, images: int) -> tuple[Work, int]:
    """A run of DDIM."""
    objective, shape = build()
    sampler, labels = DDIM(steps, KARRAS), cycle_labels(images, CPU).tolist()
    return lambda: list(generate(objective.model.eval(), sampler, range(images), labels, shape, images)), images


def build_zero_shot(
    classes: int, evaluations: int, images: int, stages: Sequence[Sequence[int]] = ()
) -> tuple[Work, int]:
    """Zero-shot classification; its stages drop classes by their number alone, so that the cost is that of any network."""
    objective, shape = build(f"backbone.num_classes={classes}")
    classifier = ZeroShot(spacing=Bell(), budget=Budget(evaluations, stages, margin=None))
    x = torch.randn(images, *shape)
    return lambda: classifier(objective.model.eval(), x, range(images)), images


def build_cdm(levels: int, images: int, training: bool) -> tuple[Work, int]:
    """A denoising call or a training step of CDM with T = levels."""
    overrides = "objective=cdm", "backbone=unet_levels", f"objective.levels={levels + 2}"
    return (build_step if training else build_call)(images, *overrides)


def images_of_area(side: int) -> int:
    """As many images as fill 64 x 64 pixels, so that calls of every side have the same number of pixels."""
    return max(1, 64**2 // side**2)


POWERS = tuple(2**k for k in range(9))
CURVES = {
    "batch": Curve("sampling call, U-Net 8x8", "images per batch", POWERS, build_call, ((1, 4), (32, 256))),
    "step": Curve("training step, U-Net 8x8", "images per batch", POWERS[:8], build_step, ((1, 4), (32, 128))),
    "side": Curve(
        "sampling call, U-Net without attention",
        "side of the images",
        (8, 16, 32, 64),
        lambda side: build_call(images_of_area(side), f"dataset.size={side}", "backbone.attention=[]"),
        ((8, 64),),
    ),
    "tokens": Curve(
        "sampling call, transformer, patch 2",
        "side of the images",
        (8, 16, 32, 64, 128),
        lambda side: build_call(images_of_area(side), f"dataset.size={side}", "backbone=dit", "backbone.depth=2"),
        ((8, 32), (32, 128)),
    ),
    "width": Curve(
        "sampling call, U-Net 8x8",
        "channels",
        (16, 32, 64, 128, 256),
        lambda channels: build_call(32, f"backbone.channels={channels}", "backbone.head_channels=16"),
        ((16, 64), (64, 256)),
    ),
    "steps": Curve(
        "run of ddim, U-Net 8x8", "steps", (4, 8, 16, 32, 64), lambda steps: build_run(steps, 8), ((4, 64),)
    ),
    "classes": Curve(
        "zero-shot, 16 evaluations a class",
        "classes",
        (2, 5, 10, 20, 50, 100),
        lambda classes: build_zero_shot(classes, 16, 2),
        ((2, 100),),
    ),
    "stages": Curve(
        "zero-shot, 64 evaluations, default stages",
        "classes",
        (2, 5, 10, 20, 50, 100),
        lambda classes: build_zero_shot(classes, 64, 1, STAGES),
        ((2, 10), (20, 100)),
    ),
    "evaluations": Curve(
        "zero-shot, 10 classes",
        "evaluations a class",
        (4, 8, 16, 32, 64),
        lambda evaluations: build_zero_shot(10, evaluations, 4),
        ((4, 64),),
    ),
    "levels": Curve(
        "CDM, denoising call",
        "T",
        (10, 30, 100, 300, 1000),
        lambda levels: build_cdm(levels, 32, training=False),
        ((10, 1000),),
    ),
    "levels_training": Curve(
        "CDM, training step",
        "T",
        (10, 30, 100, 300, 1000),
        lambda levels: build_cdm(levels, 32, training=True),
        ((10, 1000),),
    ),
}


def fit_exponent(values: Sequence[float], times: Sequence[float]) -> float:
    """The slope of the least-squares line through (log value, log time)."""
    x, y = ([math.log(v) for v in column] for column in (values, times))
    return statistics.linear_regression(x, y).slope


def measure(curve: Curve, rounds: int) -> dict[str, object]:
    """{what, against, values, milliseconds per image, fits: [{range, exponent}]}."""
    built = {str(value): curve.build(value) for value in curve.values}
    seconds = alternate({value: work for value, (work, _) in built.items()}, Clock(CPU), rounds)
    times = [1e3 * statistics.median(seconds[value]) / images for value, (_, images) in built.items()]
    fits = []
    for low, high in curve.ranges:
        chosen = [(value, time) for value, time in zip(curve.values, times) if low <= value <= high]
        fits.append({"range": [low, high], "exponent": fit_exponent(*zip(*chosen))})
    return {
        "what": curve.what,
        "against": curve.against,
        "values": list(curve.values),
        "milliseconds_per_image": times,
        "fits": fits,
    }


def format_row(found: dict) -> str:
    """A row of the table."""
    times = ", ".join(f"{time:.3g}" for time in found["milliseconds_per_image"])
    fits = ", ".join(f"{fit['exponent']:.2f} ({fit['range'][0]} to {fit['range'][1]})" for fit in found["fits"])
    return f"| {found['what']} | {found['against']}: {', '.join(map(str, found['values']))} | {times} | {fits} |"


def draw(path: Path, curves: Sequence[dict]) -> None:
    """The measured times with their fitted lines, a panel per curve."""
    columns = min(4, len(curves))
    rows = math.ceil(len(curves) / columns)
    figure = Figure(figsize=(3 * columns, 2.6 * rows), layout="constrained")
    for k, found in enumerate(curves):
        axes = figure.add_subplot(rows, columns, k + 1)
        values, times = found["values"], found["milliseconds_per_image"]
        axes.loglog(values, times, "o", markersize=4)
        for fit in found["fits"]:
            chosen = [(v, t) for v, t in zip(values, times) if fit["range"][0] <= v <= fit["range"][1]]
            ends = [chosen[0][0], chosen[-1][0]]
            mean_x, mean_y = (statistics.geometric_mean(column) for column in zip(*chosen))
            line = [mean_y * (end / mean_x) ** fit["exponent"] for end in ends]
            axes.loglog(ends, line, label=f"exponent {fit['exponent']:.2f}")
        axes.set_title(found["what"], fontsize=8)
        axes.set_xlabel(found["against"], fontsize=8)
        axes.set_ylabel("ms per image", fontsize=8)
        low, high = axes.get_ylim()
        if high < 10 * low:  # at least a decade, so that flat looks flat
            middle = math.sqrt(low * high)
            axes.set_ylim(middle / math.sqrt(10), middle * math.sqrt(10))
        axes.set_xticks(values, [str(value) for value in values], fontsize=7)
        axes.minorticks_off()
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    write_picture(path, figure)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="counted rounds per curve")
    parser.add_argument("--output", type=Path, default=Path("outputs/cost_scaling"), help="folder")
    parser.add_argument("--curves", nargs="+", choices=CURVES, default=list(CURVES), help="what to measure")
    parser.add_argument("--json", type=Path, help="file for the figures")
    chosen = parser.parse_args(arguments)
    if chosen.rounds < 1:
        parser.error("--rounds must be at least 1")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("| work | against | ms per image | exponent (over) |\n|---|---|---|---|", flush=True)
    curves = []
    for name in chosen.curves:
        curves.append(measure(CURVES[name], chosen.rounds))
        print(format_row(curves[-1]), flush=True)
    chosen.output.mkdir(parents=True, exist_ok=True)
    draw(chosen.output / "cost_scaling.png", curves)
    if chosen.json:
        chosen.json.write_text(json.dumps(curves, indent=1) + "\n")


if __name__ == "__main__":
    main()
