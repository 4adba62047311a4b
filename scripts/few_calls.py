"""Quality and time of digits against network calls: a student's jumps beside solvers of its teacher.

    python scripts/few_calls.py --teachers outputs/train/digits/v001 ... --students outputs/train/jumps/v001 ...
        [--scale 2] [--solvers] [--samples 1000] [--rounds 3] [--output outputs/few_calls]

One student per teacher, by objective=path_distillation, see diffguide/objectives/README.md. Figures are those of
metric=quality with features=local against the test split. Calls count rows of the network per picture: a step with
classifier-free guidance has two. Seconds are processor time of pictures in batches of 250 on one thread, the median of
rounds in which the rows of the table alternate. Trains nothing. Some minutes on one core for a pair.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from figure_files import draw_samples, write_picture, write_table
from matplotlib.figure import Figure
from torch import Tensor

import diffguide
from diffguide.datasets import Digits
from diffguide.evaluation.quality import frechet
from diffguide.evaluation.quality.label_agreement import LabelClassifier
from diffguide.evaluation.quality.local import Local, load_images
from diffguide.evaluation.quality.precision_recall import neighbour_shares
from diffguide.figures.image_grids import quantize
from diffguide.guidance import ClassifierFree, Distilled
from diffguide.models.evaluation_counters import count_evaluations
from diffguide.models.protocols import Denoiser, Tally
from diffguide.samplers import DDIM, DEIS, DPMpp2M, Heun, Jump, Sampler, generate

CLASSES, BATCH = 10, 250
TEACHER = "heun 18"
SOLVERS: dict[str, Callable[[int], Sampler]] = {"heun": Heun, "dpmpp_2m": DPMpp2M, "deis": DEIS, "ddim": DDIM}
STEPS = {"heun": (2, 4, 8, 18), "dpmpp_2m": (2, 4, 8, 16), "deis": (2, 4, 8, 16), "ddim": (2, 4, 8, 16)}
Row = dict[str, Any]


class Judge:
    """FD to the training digits, recall and precision against the test digits, agreed labels."""

    def __init__(self) -> None:
        data = Digits()
        self.features = Local()
        self.features.prepare(data, torch.device("cpu"), lambda *_: None)
        images, y = load_images(data, "train")
        real = self.describe(images)
        self.reference, self.classifier = frechet.Moments(real.shape[1]).add(real), LabelClassifier(real, y)
        self.held_out = self.describe(load_images(data, "test")[0])

    def describe(self, images: Tensor) -> Tensor:
        return torch.cat([self.features(part).features for part in images.split(500)])

    def __call__(self, x: Tensor, labels: list[int]) -> Row:
        found = self.describe(quantize(x))
        moments, shares = frechet.Moments(found.shape[1]).add(found), neighbour_shares(self.held_out, found)
        return {
            "fd": frechet.frechet_distance(moments, self.reference),
            "recall": shares["recall"],
            "precision": shares["precision"],
            "agreed": self.classifier.accuracy(found, labels),
        }


def list_methods(teacher: Denoiser, student: Denoiser, scale: float, all_solvers: bool) -> dict[str, tuple]:
    """Name -> (denoiser, sampler): the teacher's solvers, and the student's jumps."""
    guided, learned = ClassifierFree(teacher, scale), Distilled(student, scale)
    methods: dict[str, tuple] = {TEACHER: (guided, Heun(18))}
    if all_solvers:
        methods |= {f"{n} {k}": (guided, build(k)) for n, build in SOLVERS.items() for k in STEPS[n]}
    methods |= {f"jump {k}": (learned, Jump(k)) for k in (1, 2, 4)}
    return methods | {"heun 18 of the student": (learned, Heun(18))}


def count_calls(denoiser: Denoiser, sampler: Sampler, tally: Tally) -> int:
    """Rows of the network for one picture, of a denoiser whose network counts them in `tally`."""
    before = tally.evaluations
    list(generate(denoiser, sampler, [0], [0], (1, 8, 8), 1))
    return tally.evaluations - before


def measure_seconds(methods: dict[str, tuple], samples: int, rounds: int) -> dict[str, float]:
    """Median processor seconds of `samples` pictures; the methods alternate."""
    labels = [index % CLASSES for index in range(BATCH)]
    spent: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(rounds + 1):  # the first one warms up
        for name, (denoiser, sampler) in methods.items():
            started = time.process_time()
            list(generate(denoiser, sampler, range(BATCH), labels, (1, 8, 8), BATCH))
            spent[name].append(time.process_time() - started)
    return {name: statistics.median(values[1:]) * samples / BATCH for name, values in spent.items()}


def draw_figure(path: Path, rows: list[Row]) -> None:
    """FD and recall against calls, a line per method."""
    lines: dict[str, list[Row]] = {}
    for row in rows:
        if row["pair"] == 0 and "student" not in row["method"]:
            lines.setdefault(row["method"].split()[0], []).append(row)
    figure = Figure(figsize=(9, 3.6))
    for axes, key in zip(figure.subplots(1, 2), ("fd", "recall")):
        for name, line in lines.items():
            axes.plot(*zip(*sorted((row["calls"], row[key]) for row in line)), "o-", label=name)
        axes.set(xscale="log", xlabel="network calls per picture", ylabel=key)
    axes.legend()
    figure.tight_layout()
    write_picture(path, figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teachers", nargs="+", required=True, help="run folders")
    parser.add_argument("--students", nargs="+", required=True, help="run folders, one per teacher")
    parser.add_argument("--scale", type=float, default=2.0, help="of guidance")
    parser.add_argument("--solvers", action="store_true", help="whether the first teacher is sampled by every solver")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3, help="in which seconds are measured")
    parser.add_argument("--output", type=Path, default=Path("outputs/few_calls"))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    chosen.output.mkdir(parents=True, exist_ok=True)
    judge, rows = Judge(), []
    labels = [index % CLASSES for index in range(chosen.samples)]
    for pair, places in enumerate(zip(chosen.teachers, chosen.students, strict=True)):
        tally = Tally()
        teacher, student = (count_evaluations(diffguide.load(place), tally)[0] for place in places)
        methods = list_methods(teacher, student, chosen.scale, chosen.solvers and pair == 0)
        seconds = measure_seconds(methods, chosen.samples, chosen.rounds) if pair == 0 else {}
        for name, (denoiser, sampler) in methods.items():
            x = draw_samples(denoiser, sampler, labels, (1, 8, 8))
            calls, cost = count_calls(denoiser, sampler, tally), seconds.get(name, float("nan"))
            faster = seconds[TEACHER] / cost if seconds else float("nan")
            rows.append({"pair": pair, "method": name, "calls": calls, **judge(x, labels)})
            rows[-1] |= {"seconds": cost, "faster": faster}
            print(rows[-1], flush=True)
    write_table(chosen.output / "few_calls.csv", rows)
    draw_figure(chosen.output / "few_calls.png", rows)


if __name__ == "__main__":
    main()
