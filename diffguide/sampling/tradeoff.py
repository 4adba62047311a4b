"""Fidelity and diversity of the runs of a sweep."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..checkpoints.data_record import check_record, describe_changes, find_changes, locate_data
from ..datasets import Dataset
from ..datasets.base import fetch_examples
from ..evaluation.quality.label_agreement import MAX_LABEL_EXAMPLES, LabelClassifier
from ..evaluation.quality.precision_recall import DC_NEIGHBOURS, count_repeated, neighbour_shares
from ..figures.curves import MIN_PRECISION
from ..files import safetensors as archives
from ..files.shards import read_rows
from ..nodes.old_names import update_saved_config
from ..randomness import fold
from .sources import load_local_dataset

__all__ = ["NoTradeoff", "SweepRun", "check_count", "compare_with_data"]

MIN_SAMPLES = 20  # per run
MAX_COMPARED = 1000  # samples per run, and real examples
SAMPLES_PURPOSE, REAL_PURPOSE, TRAIN_PURPOSE = range(3)  # purposes of the seed


class NoTradeoff(ValueError):
    """The trade-off cannot be plotted; the message says why."""


class SweepRun(NamedTuple):
    """A run of a sweep.

    labels: of each sample, -1 = none. method: name of its curve. number: swept number, its position on the curve, "" = none.
    """

    folder: Path
    labels: list[int]
    method: str
    number: str


def sample_rows(n: int, count: int, purpose: int) -> Tensor:
    """At most `count` random rows of n, ascending; the same for all runs with n samples."""
    rng = torch.Generator().manual_seed(fold(0, purpose))
    return torch.randperm(n, generator=rng)[:count].sort().values


def compare_with_data(
    runs: Sequence[SweepRun],
    checkpoints: Sequence[str],
    shape: Sequence[int],
    class_names: Sequence[str],
    moved: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """Columns of each run: precision, recall, density, coverage, label accuracy against the validation split of its model.

    Features are pixels, or coordinates of vectors, after the preprocessing of the data set. All runs are compared with the
    same number of samples, because recall grows with it. The data set is read from local files; nothing is downloaded.

    Arguments:
        runs: of one shape and one list of classes.
        checkpoints: file of each.
        shape: of a sample.
        class_names: one per class, of the runs.
        moved: {path: present place of the data}, {} = the place recorded in the checkpoints.

    Raises:
        NoTradeoff: too few samples, or no data.
    """
    count = check_count(min(len(run.labels) for run in runs))
    with no_tradeoff_without_data():
        data = load_training_set(checkpoints, moved or {})
        name, real, y = load_real_examples(data, shape)
        classifier = None
        if bool((y >= 0).all()) and labels_match(data, class_names, runs):
            classifier = train_label_classifier(data)
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


@contextmanager
def no_tradeoff_without_data() -> Iterator[None]:
    """Raises NoTradeoff if data cannot be read."""
    try:
        yield
    except NoTradeoff:
        raise
    except (OSError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise NoTradeoff(f"the training data of the model cannot be read ({reason})") from error


def read_features(run: SweepRun, count: int) -> tuple[Tensor, Tensor]:
    """Features [count, D] of some samples of a run, and their labels."""
    rows = sample_rows(len(run.labels), count, SAMPLES_PURPOSE)
    x = torch.from_numpy(read_rows(run.folder / "samples.npz", rows.tolist()))
    if x.ndim > 2:
        x = x.permute(0, 3, 1, 2).double() / 127.5 - 1
    return x.double().flatten(1), torch.tensor(run.labels)[rows]


def load_real_examples(data: Dataset, shape: Sequence[int]) -> tuple[str, Tensor, Tensor]:
    """The name of the held-out split, features [n, D] of at most 1000 of its examples, and their classes."""
    if list(data.shape) != list(shape):
        raise NoTradeoff(f"the data set has examples of shape {list(data.shape)}; the samples have {list(shape)}")
    name, split = data.held_out_split
    x, y = fetch_examples(split, sample_rows(len(split.y), MAX_COMPARED, REAL_PURPOSE))
    if len(x) <= DC_NEIGHBOURS:
        raise NoTradeoff(f"the data set has {len(x)} {name} examples; more than {DC_NEIGHBOURS} are needed")
    return name, data.preprocess(x).flatten(1).double(), y


def load_training_set(checkpoints: Sequence[str], moved: Mapping[str, str]) -> Dataset:
    """Loads the data set on which these checkpoints were trained.

    Arguments:
        checkpoints: files.
        moved: see `compare_with_data`.

    Raises:
        ValueError: they were trained on several data sets, or it is not available.
    """
    facts = [archives.read_metadata(Path(file)) for file in dict.fromkeys(checkpoints)]
    nodes = [update_saved_config(fact["config"]).get("dataset") for fact in facts]
    if any(node != nodes[0] for node in nodes):
        raise NoTradeoff("the models were trained on different data")
    record = facts[0].get("data")
    if record is not None:
        check_record(record)
    data = load_local_dataset(locate_data(nodes[0] or {}, record) | dict(moved))
    if moved and (changes := find_changes(record, data)):
        described = describe_changes(changes)
        raise NoTradeoff(f"dataset.path={moved['path']} does not hold the data of the checkpoint: {described}")
    return data


def labels_match(data: Dataset, class_names: Sequence[str], runs: Sequence[SweepRun]) -> bool:
    """Whether every sample has a class, and the class names are those of the data."""
    return list(data.class_names) == list(class_names) and all(min(run.labels) >= 0 for run in runs)


def train_label_classifier(data: Dataset) -> LabelClassifier | None:
    """Trains a classifier of labels on the training split; None if there is only one class."""
    x, y = fetch_examples(data.train, sample_rows(len(data.train.y), MAX_LABEL_EXAMPLES, TRAIN_PURPOSE))
    return LabelClassifier(data.preprocess(x).flatten(1), y) if len(y[y >= 0].unique()) > 1 else None


def check_count(count: int) -> int:
    """The number of samples of each run to compare; NoTradeoff if there are too few."""
    if count < MIN_SAMPLES:
        raise NoTradeoff(f"fidelity and diversity need at least {MIN_SAMPLES} samples per run, got n={count}")
    return min(count, MAX_COMPARED)


def measure_samples(real: Tensor, x: Tensor) -> dict[str, float]:
    """Precision, recall, density, coverage, and whether recall is meaningful; nan for samples that are not finite."""
    if not bool(x.isfinite().all()):
        return dict.fromkeys(("precision", "recall", "density", "coverage"), math.nan) | {"recall_meaningful": False}
    shares = neighbour_shares(real, x)
    return shares | {"recall_meaningful": shares["precision"] >= MIN_PRECISION}
