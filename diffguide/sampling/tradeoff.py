"""Fidelity against diversity over the runs of a sweep, measured once at its end, and a picture of it."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor

from ..checkpoints.data_record import check_record, describe_changes, find_changes, locate_data
from ..datasets import Dataset
from ..datasets.base import fetch_examples
from ..evaluation.quality.label_agreement import MAX_LABEL_EXAMPLES, LabelClassifier
from ..evaluation.quality.precision_recall import DC_NEIGHBOURS, count_repeated, neighbour_shares
from ..figures.curves import HOLLOW_LABEL, HOLLOW_STYLE, MIN_PRECISION
from ..figures.plot_spec import Panel
from ..files import safetensors as archives
from ..files.run_folders import write_atomically
from ..files.shards import read_rows
from ..nodes.old_names import updated
from ..randomness import fold
from .sources import load_local_dataset

__all__ = [
    "NoTradeoff",
    "SweepRun",
    "TradeoffPanel",
    "compare_with_data",
    "data_panels",
    "oracle_panels",
    "write_tradeoff",
]

MIN_SAMPLES = 20  # of a run
MAX_COMPARED = 1000  # samples and real examples
SAMPLES_PURPOSE, REAL_PURPOSE, TRAIN_PURPOSE = range(3)  # purposes of the seed
MARKERS = "osD^vP*X"


class NoTradeoff(ValueError):
    """There is no picture; the message says why."""


class SweepRun(NamedTuple):
    """A run of a sweep: its folder, the label of each sample (-1 = none), the name of its curve, and the swept number that is
    its position on the curve, "" = none."""

    folder: Path
    labels: list[int]
    method: str
    number: str


class TradeoffPanel(NamedTuple):
    """One pair of axes.

    Arguments:
        x, y: columns, diversity and fidelity.
        names: of the axes.
        lines: (level, name) of dashed lines: y of real examples or exact samples.
        best: their x, None = unknown.
        log: whether y is logarithmic.
    """

    x: str
    y: str
    names: tuple[str, str]
    lines: Sequence[tuple[float, str]] = ()
    best: float | None = None
    log: bool = False


def oracle_panels(columns: Sequence[dict[str, Any]]) -> tuple[list[TradeoffPanel], list[Panel]]:
    """Panels of the trade-off and of the curves for runs of one oracle, from the figures of metrics.json.

    Fidelity is the energy distance: it has a floor, and is meaningful for every number of samples. Diversity is the standard
    deviation within classes, relative to that of the law: unlike the covariance error it distinguishes too narrow from too
    wide, and the distance between classes, which guidance increases, does not hide that each class is narrower.
    """
    floor = float(numpy.mean([column["energy_distance_floor"] for column in columns]))
    names = ("standard deviation within classes / exact (diversity)", "energy distance (fidelity: low)")
    lines = [(floor, "exact samples")]
    curve_panels = [
        Panel("energy_distance", "energy distance", ("exact samples", floor), logarithmic=True),
        Panel("deviation_ratio", "standard deviation within classes / exact", ("exact samples", 1.0)),
    ]
    return [TradeoffPanel("deviation_ratio", "energy_distance", names, lines, best=1.0, log=True)], curve_panels


def data_panels(columns: Sequence[dict[str, Any]]) -> tuple[list[TradeoffPanel], list[Panel]]:
    """Panels of the trade-off and of the curves for runs that were compared with real examples."""
    diversity = "recall (diversity)"
    panels = [TradeoffPanel("recall", "precision", (diversity, "precision (fidelity)"))]
    curve_panels = [Panel(name, name) for name in ("precision", "recall", "coverage")]
    if all("agreed_labels" in column for column in columns):
        real = columns[0]["agreed_labels_of_real"]
        names = (diversity, "label accuracy, SVM (fidelity)")
        panels.append(TradeoffPanel("recall", "agreed_labels", names, [(real, "real examples")]))
        curve_panels.append(Panel("agreed_labels", "label accuracy, SVM", ("real examples", real)))
    return panels, curve_panels


def sample_rows(n: int, count: int, purpose: int) -> Tensor:
    """At most `count` of n rows, ascending, the same for every run of n."""
    rng = torch.Generator().manual_seed(fold(0, purpose))
    return torch.randperm(n, generator=rng)[:count].sort().values


def compare_with_data(
    runs: Sequence[SweepRun], checkpoints: Sequence[str], shape: Sequence[int], class_names: Sequence[str],
    moved: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Columns of each run: precision, recall, density, coverage, label accuracy against the validation split of its model.

    Features are pixels, or coordinates of vectors, after the preprocessing of the data set. All runs are compared with the
    same number of samples, since recall grows with it. The data set is read from local files; nothing is downloaded.

    Arguments:
        runs: of one shape and one list of classes.
        checkpoints: file of each.
        shape: of a sample.
        class_names: one per class, of the runs.
        moved: {path: where the data of the checkpoints are now}, {} = where they were.

    Raises:
        NoTradeoff: too few samples, or no data.
    """
    count = check_count(min(len(run.labels) for run in runs))
    try:
        data = training_set(checkpoints, moved or {})
        name, real, y = real_examples(data, shape)
        classifier = None
        if bool((y >= 0).all()) and labels_match(data, class_names, runs):
            classifier = train_label_classifier(data)
    except NoTradeoff:
        raise
    except (OSError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise NoTradeoff(f"the data that the model was trained on cannot be read here ({reason})") from error
    facts = {
        "compared": count,
        "compared_real": len(real),
        "features": "coordinates" if len(shape) == 1 else "pixels",
        "reference": f"{len(real)} {name if name == 'validation' else 'training'} examples",
    }
    repeated_real = count_repeated(real)
    real_accuracy = None if classifier is None else classifier.accuracy(real, y)
    columns = []
    for run in runs:
        x, labels = read_features(run, count)
        column: dict[str, Any] = measure_samples(real, x)
        column |= {"repeated_samples": count_repeated(x), "repeated_real": repeated_real}
        if classifier is not None:
            finite = bool(x.isfinite().all())
            column["agreed_labels"] = classifier.accuracy(x, labels) if finite else math.nan
            column["agreed_labels_of_real"] = real_accuracy
        columns.append(column | facts)
    return columns


def read_features(run: SweepRun, count: int) -> tuple[Tensor, Tensor]:
    """Features [count, D] of some samples of a run, and their labels."""
    rows = sample_rows(len(run.labels), count, SAMPLES_PURPOSE)
    x = torch.from_numpy(read_rows(run.folder / "samples.npz", rows.tolist()))
    if x.ndim > 2:
        x = x.permute(0, 3, 1, 2).double() / 127.5 - 1
    return x.double().flatten(1), torch.tensor(run.labels)[rows]


def real_examples(data: Dataset, shape: Sequence[int]) -> tuple[str, Tensor, Tensor]:
    """The name of the held-out split, features [n, D] of at most 1000 of its examples, and their classes."""
    if list(data.shape) != list(shape):
        raise NoTradeoff(f"the data set has examples of shape {list(data.shape)}, and the samples {list(shape)}")
    name, split = data.held_out_split
    x, y = fetch_examples(split, sample_rows(len(split.y), MAX_COMPARED, REAL_PURPOSE))
    if len(x) <= DC_NEIGHBOURS:
        raise NoTradeoff(f"the data set has {len(x)} {name} examples, and more than {DC_NEIGHBOURS} are needed")
    return name, data.preprocess(x).flatten(1).double(), y


def training_set(checkpoints: Sequence[str], moved: Mapping[str, str]) -> Dataset:
    """The one data set that these checkpoints were trained on.

    Arguments:
        checkpoints: files.
        moved: {path: where the data are now}, {} = where they were.

    Raises:
        ValueError: there are several, or it is not available.
    """
    facts = [archives.read_metadata(Path(file)) for file in dict.fromkeys(checkpoints)]
    nodes = [updated(fact["config"]).get("dataset") for fact in facts]
    if any(node != nodes[0] for node in nodes):
        raise NoTradeoff("the runs are of models of different data")
    seen = facts[0].get("data")
    if seen is not None:
        check_record(seen)
    data = load_local_dataset(locate_data(nodes[0] or {}, seen) | dict(moved))
    if moved and (changed := find_changes(seen, data)):
        what = describe_changes(changed)
        raise NoTradeoff(f"dataset.path={moved['path']} does not hold the data of the checkpoint: {what}")
    return data


def labels_match(data: Dataset, class_names: Sequence[str], runs: Sequence[SweepRun]) -> bool:
    """Whether every sample has a class, and the classes are those of the data."""
    return list(data.class_names) == list(class_names) and all(min(run.labels) >= 0 for run in runs)


def train_label_classifier(data: Dataset) -> LabelClassifier | None:
    """A classifier of labels, trained on the training split; None if there is one class only."""
    x, y = fetch_examples(data.train, sample_rows(len(data.train.y), MAX_LABEL_EXAMPLES, TRAIN_PURPOSE))
    return LabelClassifier(data.preprocess(x).flatten(1), y) if len(y[y >= 0].unique()) > 1 else None


def check_count(count: int) -> int:
    """The number of samples of each run to compare.

    Raises:
        NoTradeoff: too few.
    """
    if count < MIN_SAMPLES:
        raise NoTradeoff(f"fidelity and diversity need at least {MIN_SAMPLES} samples a run, got n={count}")
    return min(count, MAX_COMPARED)


def measure_samples(real: Tensor, x: Tensor) -> dict[str, float]:
    """The figures that need no labels, and whether recall is meaningful; nan for samples that are not finite."""
    if not bool(x.isfinite().all()):
        return dict.fromkeys(("precision", "recall", "density", "coverage"), math.nan) | {"recall_meaningful": False}
    shares = neighbour_shares(real, x)
    return shares | {"recall_meaningful": shares["precision"] >= MIN_PRECISION}


def write_tradeoff(
    path: Path, panels: Sequence[TradeoffPanel], runs: Sequence[SweepRun], columns: Sequence[dict[str, Any]], note: str
) -> None:
    """Writes `tradeoff_figure` as a PNG.

    Raises:
        NoTradeoff: too few samples, or no run with finite figures.
        WriteError: the disk is full, the folder is gone, ...
    """
    check_count(min(len(run.labels) for run in runs))
    for panel in panels:
        if not any(math.isfinite(column[panel.x]) and math.isfinite(column[panel.y]) for column in columns):
            raise NoTradeoff(f"{panel.x} and {panel.y} are finite in no run")
    figure = tradeoff_figure(panels, runs, columns, note)
    options = {"format": "png", "dpi": 110, "bbox_inches": "tight", "pad_inches": 0.05}
    write_atomically(path, lambda temporary: figure.savefig(temporary, **options))


def tradeoff_figure(
    panels: Sequence[TradeoffPanel], runs: Sequence[SweepRun], columns: Sequence[dict[str, Any]], note: str
):
    """A curve per method through its runs in the order of their numbers, with a hollow marker for meaningless diversity.

    Arguments:
        columns: of each run, with those that the panels name.
        note: what was compared with what.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8 * len(panels) + 0.6, 4.4), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    methods: dict[str, list[int]] = {}
    for index in sorted(range(len(runs)), key=lambda index: axis_position(runs[index].number)):
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
                        axis.plot(*point, color=color, label=HOLLOW_LABEL, **HOLLOW_STYLE)
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


def axis_position(number: str) -> float:
    """The position of a run on its curve."""
    try:
        return float(number)
    except ValueError:
        return math.inf
