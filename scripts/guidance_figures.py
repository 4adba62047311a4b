"""Figures of guidance, including all trainings, in about a quarter of an hour on one core.

    python scripts/guidance_figures.py [folder = outputs/proofs/guidance_figures] [--parts three_gaussians tree digits]

three_gaussians  Ho & Salimans 2022, arXiv 2207.12598, figure 2: the exact effect of the scale on three classes.
tree             Karras et al. 2024, arXiv 2406.02507, figure 1: classifier-free guidance and autoguidance, plotted and
                 compared with the exact law.
digits           classifier guidance (of the unconditional and of the conditional model), CFG, APG, CFG++ and CFG in an
                 interval at scales from 0 to 8, with the same seeds in every column; label accuracy, and precision against
                 recall.

Models, samples and figures in the folder are reused: a stopped run continues.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy
import torch
from figure_files import (
    EVERYWHERE,
    KARRAS,
    build_oracle,
    draw_samples,
    load_or_make,
    load_or_train,
    write_picture,
    write_table,
)
from guidance_tree import tree
from matplotlib.figure import Figure
from torch import Tensor

from diffguide.datasets import Digits
from diffguide.evaluation.quality.label_agreement import LabelClassifier
from diffguide.evaluation.quality.precision_recall import PrecisionRecall, precision_recall
from diffguide.figures.image_grids import draw_grid, to_uint8
from diffguide.files.run_folders import write_atomically
from diffguide.guidance import ClassifierFree, ClassifierGuidance
from diffguide.guidance.projections import APG
from diffguide.guidance.rules import CFGPlusPlus
from diffguide.models.protocols import Classifier, Denoiser, DenoiserWrapper
from diffguide.samplers import DPMpp2M, Heun

# the figure of classifier-free guidance

GAUSSIAN_SCALES = (0.0, 1.0, 2.0, 3.0, 5.0)


def three_gaussians(folder: Path, n: int = 1800, steps: int = 40) -> None:
    """Draws samples of the exact guided ODE, a panel per scale, over the laws of three classes."""
    law = build_oracle("oracle=cfg_figure")
    labels = [index % law.num_classes for index in range(n)]
    panels = {
        scale: draw_samples(ClassifierFree(law, scale, EVERYWHERE), Heun(steps, KARRAS), labels, law.shape)
        for scale in GAUSSIAN_SCALES
    }
    figure = Figure(figsize=(3 * len(panels), 3.4), layout="constrained")
    side = torch.linspace(-3, 3, 121, dtype=torch.float64)
    plane = torch.stack(torch.meshgrid(side, side, indexing="xy"), dim=-1).flatten(0, 1)
    names = {0.0: "scale 0: no condition", 1.0: "scale 1: no guidance"}
    for axis, (scale, x) in zip(figure.subplots(1, len(panels), sharex=True, sharey=True), panels.items()):
        for label in range(law.num_classes):
            density = law.log_density(plane, None, torch.full((len(plane),), label)).exp().reshape(121, 121)
            axis.contour(side, side, density, levels=[0.05, 0.3, 0.8], colors=f"C{label}", linewidths=0.7)
            axis.scatter(*x[label :: law.num_classes].T, s=5, color=f"C{label}", linewidths=0, alpha=0.7)
        axis.set(xlim=(-2.4, 2.4), ylim=(-2.0, 2.6), aspect="equal", xticks=[], yticks=[])
        axis.set_title(names.get(scale, f"scale {scale:g}"))
    write_picture(folder / "three_gaussians.png", figure)


# the digits

DIGIT_SCALES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
INTERVAL = (0.3, 3.0)  # of noise levels, for "interval"
SHOWN = (2, 3, 5, 8)  # classes in a cell of the sheet


class WithoutCondition(DenoiserWrapper):
    """The unconditional part of a conditional model, for classifier guidance."""

    num_classes, conditional, has_null = 0, False, False

    def __call__(self, x_t: Tensor, t: Tensor, y: Tensor | None = None):
        return self.denoiser(x_t, t, None)


def digit_methods(model: Denoiser, classifier: Classifier) -> dict[tuple[str, float], Denoiser]:
    """Each method at each scale; CFG++ has lambda = scale / 8.

    Scale 0 is the unconditional model for the classifier, CFG and CFG++; scale 1 is the conditional model for CFG and the
    others. The gradient of the classifier has the weight scale on the unconditional model, scale - 1 on the conditional one.
    """
    plain, projected = WithoutCondition(model), APG(eta=0.0, norm_threshold=2.5, momentum=-0.5)
    methods: dict[str, Callable[[float], Denoiser]] = {
        "classifier": lambda scale: ClassifierGuidance(plain, classifier, scale, EVERYWHERE),
        "cond. + classifier": lambda scale: ClassifierGuidance(model, classifier, scale - 1, EVERYWHERE),
        "CFG": lambda scale: ClassifierFree(model, scale, EVERYWHERE),
        "APG": lambda scale: ClassifierFree(model, scale, EVERYWHERE, projected),
        "CFG++": lambda scale: ClassifierFree(model, scale / 8, EVERYWHERE, CFGPlusPlus()),
        "interval": lambda scale: ClassifierFree(model, scale, INTERVAL),
    }
    return {(name, scale): guided(scale) for name, guided in methods.items() for scale in DIGIT_SCALES}


def digits(folder: Path) -> None:
    """Trains the default model of digits and a classifier of noisy ones; samples every method at every scale."""
    model = load_or_train(folder, "digits")
    classifier = load_or_train(folder, "classifier", "experiment=digits_classifier")
    draw_digits(folder, digit_methods(model, classifier), n=350, steps=15)  # as many samples as held-out digits


def draw_digits(folder: Path, guided: dict[tuple[str, float], Denoiser], n: int, steps: int) -> None:
    """Writes digits.csv, a row per method and scale; digits.png, with the same seeds in all cells; digits_trade_off.png."""
    data, labels = Digits(channels=1, size=8, num_classes=10), [index % 10 for index in range(n)]
    real = data.validation.x.flatten(1)
    label_classifier = LabelClassifier(data.train.x.flatten(1), data.train.y)
    rows, cells = [], {}
    for (name, scale), denoiser in guided.items():
        path = folder / f"samples/digits/{name}_{scale:g}.npy"
        draw = partial(draw_samples, denoiser, DPMpp2M(steps, KARRAS), labels, data.shape)
        pictures = load_or_make(path, lambda: torch.from_numpy(to_uint8(draw())))
        cells[name, scale] = pictures.numpy()
        x = pictures.flatten(1) / 127.5 - 1
        accuracy = {"agreed_labels": label_classifier.accuracy(x, labels)}
        rows.append({"method": name, "scale": scale} | accuracy | precision_recall(real, x, k=3)._asdict())
    write_table(folder / "digits.csv", rows)
    draw_sheet(folder / "digits.png", cells)
    draw_trade_off(folder / "digits_trade_off.png", rows, precision_recall(real, data.train.x[:n].flatten(1), k=3))


def draw_sheet(path: Path, cells: dict[tuple[str, float], numpy.ndarray]) -> None:
    """Draws a row per method and a column per scale; a cell has a sample of each class of `SHOWN`, with the same seeds."""
    names, scales = (list(dict.fromkeys(part)) for part in zip(*cells))
    rows = [[arrange_cell(cells[name, scale][list(SHOWN)]) for scale in scales] for name in names]
    titles = [name + ", scale / 8" * (name == "CFG++") for name in names]
    write_atomically(
        path, partial(draw_grid(rows, titles, [f"scale {scale:g}" for scale in scales]).save, format="PNG")
    )


def arrange_cell(pictures: numpy.ndarray, columns: int = 2, factor: int = 5, gap: int = 2) -> numpy.ndarray:
    """Arranges images [N, H, W, 1] in rows of `columns`, enlarged, with white space between them."""
    margin = [(0, 0), (gap, gap), (gap, gap), (0, 0)]
    framed = numpy.pad(pictures.repeat(factor, 1).repeat(factor, 2), margin, constant_values=255)
    lines = framed.reshape(-1, columns, *framed.shape[1:])
    return numpy.concatenate([numpy.concatenate(list(line), axis=1) for line in lines])


def draw_trade_off(path: Path, rows: Sequence[dict], real: PrecisionRecall) -> None:
    """Plots label accuracy against the scale, and precision against recall, with those of the training digits."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    agreement, trade_off = figure.subplots(1, 2, width_ratios=[2, 3])
    for index, name in enumerate(dict.fromkeys(row["method"] for row in rows)):
        columns = {key: [row[key] for row in rows if row["method"] == name] for key in rows[0]}
        style = {"marker": "os^Dvp"[index % 6], "markersize": 4, "color": f"C{index}", "label": name}
        agreement.plot(columns["scale"], columns["agreed_labels"], **style)
        trade_off.plot(columns["recall"], columns["precision"], **style)
        for scale, point in zip(columns["scale"], zip(columns["recall"], columns["precision"])):
            if scale in (2, 4, 8):
                trade_off.annotate(f"{scale:g}", point, (4, 4), textcoords="offset points", size=8, color=f"C{index}")
    trade_off.plot(*real[::-1], "k*", markersize=10, label="training digits")
    trade_off.legend(loc="lower center")
    agreement.set(xlabel="scale (CFG++: lambda = scale / 8)", ylabel="label accuracy")
    trade_off.set(xlabel="recall", ylabel="precision", title="numbers are scales")
    for axis in (agreement, trade_off):
        axis.grid(alpha=0.3)
    write_picture(path, figure)


# the command

PARTS = {
    "three_gaussians": (three_gaussians, ["three_gaussians.png"]),
    "tree": (tree, ["tree.png", "tree.csv"]),
    "digits": (digits, ["digits.png", "digits_trade_off.png", "digits.csv"]),
}


def main(folder: Path, parts: Sequence[str]) -> None:
    """Makes the missing figures of these parts."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in parts:
        make, files = PARTS[part]
        if not all((folder / file).exists() for file in files):
            make(folder.resolve())
        print(*(folder / file for file in files), sep="\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("outputs/proofs/guidance_figures"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    main(arguments.folder, arguments.parts)
