"""Fidelity against diversity over the runs of a sweep: what is measured once at its end, and the picture of it."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor

from ..checkpoints.data_record import check_record, describe_changes, find_changes, locate_data
from ..datasets import Dataset
from ..datasets.base import fetch
from ..evaluation.quality.label_agreement import Judge
from ..evaluation.quality.precision_recall import count_repeated, density_coverage, precision_recall
from ..figures.curves import HOLLOW, LEAST_PRECISION, OPEN
from ..files import safetensors as archives
from ..files.run_folders import write_atomically
from ..files.shards import read_rows
from ..nodes.old_names import updated
from ..randomness import fold
from .sources import at_hand

__all__ = [
    "NoTradeoff", "Panel", "Run", "against_data", "figure_of", "of_data", "of_oracle", "place", "write_tradeoff",
]  # fmt: skip

FEWEST = 20  # samples of a run: fewer say nothing of a law
MOST, TAUGHT = 1000, 2000  # samples and real examples that are compared, real examples that teach the judge
BALL, WIDER = 3, 5  # neighbours of precision and recall, of density and coverage, as their papers have them
SAMPLES, REAL, TRAIN = range(3)  # purposes of the seed
MARKERS = "osD^vP*X"


class NoTradeoff(ValueError):
    """Why there is no picture: one sentence."""


class Run(NamedTuple):
    """A run of a sweep: its folder, the label of each sample (-1 = none), its curve, and the swept number that is its place
    on it, "" = none."""

    folder: Path
    labels: list[int]
    method: str
    number: str


class Panel(NamedTuple):
    """One pair of axes.

    Arguments:
        x, y: columns, diversity and fidelity.
        names: of the axes.
        lines: (level, name) of dashed lines: what y is for real examples or exact samples.
        best: what x is for them, None = it has no such value.
        log: whether y is logarithmic.
    """

    x: str
    y: str
    names: tuple[str, str]
    lines: Sequence[tuple[float, str]] = ()
    best: float | None = None
    log: bool = False


def of_oracle(columns: Sequence[dict[str, Any]]) -> list[Panel]:
    """The panel of runs of one oracle, from the figures of their metrics.json.

    Fidelity is the energy distance: it has a floor and no size of sample beyond which it says nothing. Diversity is the
    standard deviation within classes, in units of the exact one: unlike the covariance error it tells too narrow from too
    wide, and the distance between classes, which guidance grows, does not hide that every class is narrower.
    """
    floor = float(numpy.mean([column["energy_distance_floor"] for column in columns]))
    names = ("standard deviation within classes / exact (diversity)", "energy distance (fidelity: low)")
    lines = [(floor, "exact samples")]
    return [Panel("deviation_ratio", "energy_distance", names, lines, best=1.0, log=True)]


def of_data(columns: Sequence[dict[str, Any]]) -> list[Panel]:
    """The panels of runs that were held against real examples."""
    diversity = "recall (diversity)"
    panels = [Panel("recall", "precision", (diversity, "precision (fidelity)"))]
    if all("agreed_labels" in column for column in columns):
        lines = [(columns[0]["agreed_labels_of_real"], "real examples")]
        panels.append(Panel("recall", "agreed_labels", (diversity, "agreed labels (fidelity)"), lines))
    return panels


def drawn(n: int, count: int, purpose: int) -> Tensor:
    """`count` rows of n at most, ascending, the same ones for every run of n."""
    rng = torch.Generator().manual_seed(fold(0, purpose))
    return torch.randperm(n, generator=rng)[:count].sort().values


def against_data(
    runs: Sequence[Run], checkpoints: Sequence[str], shape: Sequence[int], class_names: Sequence[str],
    moved: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Columns of each run: precision, recall, density, coverage and agreed labels against its model's validation split.

    Features are pixels, or coordinates of vectors, after the data set's own preprocessing. All runs are compared with as
    many samples, since recall grows with them. The data set is read where it lies; nothing is downloaded.

    Arguments:
        runs: of one shape and one list of classes.
        checkpoints: file of each.
        shape: of a sample.
        class_names: one per class, as the runs have them.
        moved: {path: where the data of the checkpoints lie now}, if elsewhere than they lay.

    Raises:
        NoTradeoff: too few samples, or no data.
    """
    count = enough(min(len(run.labels) for run in runs))
    try:
        data = training_set(checkpoints, moved or {})
        if list(data.shape) != list(shape):
            raise NoTradeoff(f"the data set has examples of shape {list(data.shape)}, and the samples {list(shape)}")
        name, split = data.held_out
        held, y = fetch(split, drawn(len(split.y), MOST, REAL))
        real = data.view(held).flatten(1).double()
        if len(real) <= WIDER:
            raise NoTradeoff(f"the data set has {len(real)} {name} examples, and more than {WIDER} are needed")
        judge = judge_of(data) if bool((y >= 0).all()) and known(data, class_names, runs) else None
    except NoTradeoff:
        raise
    except (OSError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise NoTradeoff(f"the data that the model was trained on cannot be read here ({reason})") from error
    facts = {"compared": count, "compared_real": len(real), "features": "coordinates" if len(shape) == 1 else "pixels",
             "reference": f"{len(real)} {name if name == 'validation' else 'training'} examples"}  # fmt: skip
    repeated, real_agreed = count_repeated(real), None if judge is None else judge.agreed(real, y)
    columns = []
    for run in runs:
        rows = drawn(len(run.labels), count, SAMPLES)
        x = torch.from_numpy(read_rows(run.folder / "samples.npz", rows.tolist()))
        x = x.double() if len(shape) == 1 else (x.permute(0, 3, 1, 2).double() / 127.5 - 1).flatten(1)
        figures = measured(real, x) | {"repeated_samples": count_repeated(x), "repeated_real": repeated}
        if judge is not None:
            finite = bool(x.isfinite().all())
            figures["agreed_labels"] = judge.agreed(x, torch.tensor(run.labels)[rows]) if finite else math.nan
            figures["agreed_labels_of_real"] = real_agreed
        columns.append(figures | facts)
    return columns


def training_set(checkpoints: Sequence[str], moved: Mapping[str, str]) -> Dataset:
    """The one data set that these checkpoints were trained on.

    Arguments:
        checkpoints: files.
        moved: {path: where the data lie now}, {} = where they lay.

    Raises:
        ValueError: there are several, or it is not at hand.
    """
    facts = [archives.read_metadata(Path(file)) for file in dict.fromkeys(checkpoints)]
    nodes = [updated(fact["config"]).get("dataset") for fact in facts]
    if any(node != nodes[0] for node in nodes):
        raise NoTradeoff("the runs are of models of different data")
    seen = facts[0].get("data")
    if seen is not None:
        check_record(seen)
    data = at_hand(locate_data(nodes[0] or {}, seen) | moved)
    if moved and (changed := find_changes(seen, data)):
        raise NoTradeoff(
            f"dataset.path={moved['path']} does not hold the data of the checkpoint: {describe_changes(changed)}"
        )
    return data


def known(data: Dataset, class_names: Sequence[str], runs: Sequence[Run]) -> bool:
    """Whether every sample has a class, and it is one of the data's."""
    return list(data.class_names) == list(class_names) and all(min(run.labels) >= 0 for run in runs)


def judge_of(data: Dataset) -> Judge | None:
    """A judge that learned from the training split; None where there is one class."""
    x, y = fetch(data.train, drawn(len(data.train.y), TAUGHT, TRAIN))
    return Judge(data.view(x).flatten(1), y) if len(y[y >= 0].unique()) > 1 else None


def enough(count: int) -> int:
    """How many samples of each run are compared.

    Raises:
        NoTradeoff: too few.
    """
    if count < FEWEST:
        raise NoTradeoff(f"fidelity and diversity need at least {FEWEST} samples a run, got n={count}")
    return min(count, MOST)


def measured(real: Tensor, x: Tensor) -> dict[str, float]:
    """The measures that need no labels, and whether recall says anything; nan for samples that are not finite."""
    if not bool(x.isfinite().all()):
        return dict.fromkeys(("precision", "recall", "density", "coverage"), math.nan) | {"recall_meaningful": False}
    found = {**precision_recall(real, x, BALL)._asdict(), **density_coverage(real, x, WIDER)._asdict()}
    return found | {"recall_meaningful": found["precision"] >= LEAST_PRECISION}


def write_tradeoff(
    path: Path, panels: Sequence[Panel], runs: Sequence[Run], columns: Sequence[dict[str, Any]], note: str
) -> None:
    """Writes `figure_of` as a PNG.

    Raises:
        NoTradeoff: too few samples, or no run with finite figures.
        WriteError: the disk is full, the folder is gone, ...
    """
    enough(min(len(run.labels) for run in runs))
    for panel in panels:
        if not any(math.isfinite(column[panel.x]) and math.isfinite(column[panel.y]) for column in columns):
            raise NoTradeoff(f"{panel.x} and {panel.y} are finite in no run")
    figure = figure_of(panels, runs, columns, note)
    write_atomically(
        path, lambda temporary: figure.savefig(temporary, format="png", dpi=110, bbox_inches="tight", pad_inches=0.05)
    )


def figure_of(panels: Sequence[Panel], runs: Sequence[Run], columns: Sequence[dict[str, Any]], note: str):
    """A curve per method through its runs in the order of their numbers, each marked with its own; hollow where diversity
    says nothing.

    Arguments:
        columns: of each run, what the panels name among them.
        note: what was compared with what.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8 * len(panels) + 0.6, 4.4), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    methods: dict[str, list[int]] = {}
    for index in sorted(range(len(runs)), key=lambda index: place(runs[index].number)):
        methods.setdefault(runs[index].method, []).append(index)
    for axis, panel in zip(axes, panels):
        for number, (method, members) in enumerate(methods.items()):
            x, y = ([columns[index][name] for index in members] for name in (panel.x, panel.y))
            color, marker = f"C{number % 10}", MARKERS[number // 10 % len(MARKERS)]
            axis.plot(x, y, label=method, color=color, marker=marker, markersize=5, linewidth=1)
            for index, point in zip(members, zip(x, y)):
                if all(map(math.isfinite, point)):
                    text = runs[index].number
                    axis.annotate(text, point, (4, 4), textcoords="offset points", fontsize=8, color=color)
                    if columns[index].get(f"{panel.x}_meaningful") is False:
                        axis.plot(*point, color=color, label=HOLLOW, **OPEN)
        for level, name in panel.lines:
            axis.axhline(level, color="0.4", linestyle="--", linewidth=1, label=name)
        if panel.best is not None:
            axis.axvline(panel.best, color="0.4", linestyle="--", linewidth=1)
        axis.set(xlabel=panel.names[0], ylabel=panel.names[1], yscale="log" if panel.log else "linear")
        axis.margins(0.1)
    entries = {name: handle for axis in axes for handle, name in zip(*axis.get_legend_handles_labels())}
    figure.legend(entries.values(), entries, loc="outside lower center", ncols=2, fontsize=9)
    axes[0].set_title(note, fontsize=8, color="0.3", loc="left")
    return figure


def place(number: str) -> float:
    """Where a run comes on its curve."""
    try:
        return float(number)
    except ValueError:
        return math.inf
