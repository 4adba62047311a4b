"""Accuracy, log-loss and calibration of a classifier per noise level, or on the data for one without noise levels."""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy
import torch
from torch import Tensor

from ...datasets import Dataset
from ...datasets.base import fetch_examples
from ...figures.plot_spec import Panel, Plot
from ...files.run_folders import write_atomically
from ...models.protocols import Classifier
from ...runtime.ranges import check_whole
from ..metric import EvalContext, Metric
from ..noise_levels import time_of_log_snr
from ..results import Figure, MetricResult, mean
from .calibration import calibration_error

__all__ = ["Classification", "ClassPredictions", "accuracies", "classify", "write_accuracy"]

MAX_EXAMPLES = 1000  # of a plot
CLASSIFY_BATCH = 250  # examples at a time
DATA_LEVEL = (0.0,)  # the one noise level of a model without noise levels
PLOT_LEVELS = (0.03, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)  # noise levels sigma / alpha


class ClassPredictions(NamedTuple):
    """The predictions of a classifier for N examples at L noise levels, each [L, N] float64.

    nll: -log p(y | x_t) of the true class, nats. confidence: the largest p. correct: 1 if its class is the true one, else 0.
    """

    nll: Tensor
    confidence: Tensor
    correct: Tensor


def find_time(classifier: Classifier, noise_level: float) -> tuple[Tensor, Tensor]:
    """Time and log-SNR of a noise level, clamped to the range of the schedule; for discrete levels the nearest."""
    schedule, levels = classifier.schedule, getattr(classifier, "levels", None)
    log_snr = -2 * torch.tensor(noise_level, dtype=torch.float64).log()
    log_snr = log_snr.clamp(schedule.log_snr_min, schedule.log_snr_max)
    t = time_of_log_snr(log_snr, schedule, levels)
    return t, log_snr if levels is None else schedule.log_snr(t)


@torch.no_grad()
def classify(
    classifier: Classifier, x_0: Tensor, y: Tensor, noise_levels: Sequence[float], eps: Tensor
) -> ClassPredictions:
    """The predictions of a classifier for x_0 with the same eps at every noise level.

    Arguments:
        x_0, eps: [N, ...], on the device of the classifier.
        y: classes [N].
        noise_levels: sigma / alpha, see `find_time`; DATA_LEVEL for a classifier without schedule.
    """
    true = y.cpu()
    predictions = []
    for level in noise_levels:
        x_t, t = add_noise(classifier, x_0, eps, level)
        log_prob = torch.cat([classifier.log_prob(part, t) for part in x_t.split(CLASSIFY_BATCH)]).cpu().double()
        confidence, answer = log_prob.max(1)
        predictions.append([-log_prob.gather(1, true[:, None])[:, 0], confidence.exp(), (answer == true).double()])
    return ClassPredictions(*(torch.stack(part) for part in zip(*predictions)))


def add_noise(classifier: Classifier, x_0: Tensor, eps: Tensor, level: float) -> tuple[Tensor, Tensor | None]:
    """x_t and t at a noise level; x_0 and None for a classifier without schedule."""
    if classifier.schedule is None:
        return x_0, None
    t, log_snr = find_time(classifier, level)
    alpha, sigma = classifier.schedule.scales(log_snr)
    return float(alpha) * x_0 + float(sigma) * eps, t


def accuracies(classifier: Classifier, x_0: Tensor, y: Tensor, noise_levels: Sequence[float], seed: int) -> list[float]:
    """The accuracy at each noise level, with the same noise of an example at all levels.

    Arguments:
        x_0: [N, ...] in [-1, 1], on the device of the classifier.
        y: classes [N].
        noise_levels: sigma / alpha, clamped to the range of the schedule.
    """
    eps = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(seed)).to(x_0)
    return classify(classifier, x_0, y, noise_levels, eps).correct.mean(1).tolist()


def write_accuracy(path: Path, classifier: Classifier, data: Dataset, seed: int, device: torch.device) -> None:
    """Plots the accuracy against the noise level, on at most 1000 validation examples, as a PNG file.

    Without validation examples it uses training examples, and the label of the axis states so.

    Raises:
        WriteError: the disk is full, the folder is gone, ...
    """
    from matplotlib.figure import Figure

    name, split = data.held_out_split
    x, y = fetch_examples(split, torch.arange(min(len(split.y), MAX_EXAMPLES)))
    values = accuracies(classifier, data.preprocess(x).to(device), y.to(device), PLOT_LEVELS, seed)
    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axis = figure.subplots()
    axis.semilogx(PLOT_LEVELS, values, marker="o")
    axis.axhline(1 / classifier.num_classes, color="0.6", linestyle="--", label="by chance")
    label = "held-out accuracy" if name == "validation" else "accuracy on training examples"
    axis.set(xlabel="noise level sigma / alpha", ylabel=label, ylim=(0, 1))
    axis.legend()
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=100))


class Classification(Metric):
    """Accuracy, log-loss and calibration of a classifier per noise level, with the same noise at every level.

    nll = -E log p(y | x_t) in nats; ece = the expected calibration error (`calibration_error`). A classifier without noise
    levels is evaluated on the data.

    Arguments:
        noise_levels: sigma / alpha, increasing, above 0; clamped to the range of the schedule, and for a model with discrete
            levels the nearest of them.
        bins: of confidence, for the calibration error, 1 to 1000.
    """

    name = "classification"
    needs = (Classifier,)
    labels = True

    def __init__(self, noise_levels: Sequence[float] = PLOT_LEVELS, bins: int = 15):
        ends = [0.0, *noise_levels, math.inf]
        if not noise_levels or not all(low < high for low, high in zip(ends, ends[1:])):
            raise ValueError(f"noise_levels must be increasing finite numbers above 0, got {list(noise_levels)}")
        self.noise_levels = list(noise_levels)
        self.bins = check_whole("bins", bins, 1, 1000)

    def check(self, context: EvalContext) -> None:
        super().check(context)
        classifier = context.require(Classifier)
        if not classifier.num_classes:
            raise ValueError(f"metric=classification needs a model with classes; this {context.model_name} has none")
        if classifier.schedule is not None:
            find_time(classifier, self.noise_levels[0])  # raises for a schedule without noise levels

    def measure(self, context: EvalContext) -> MetricResult:
        batches = context.compute_batches(lambda first: self.classify_batch(context, first))
        predictions = ClassPredictions(
            *(torch.from_numpy(numpy.concatenate(batches[name], axis=1)) for name in ClassPredictions._fields)
        )
        curve = []
        levels = self.levels(context)
        for index, level in enumerate(levels):
            row: dict[str, float | None] = {"noise_level": level}
            for name, figure in self.level_figures(predictions, index, context.seed).items():
                row |= {name: figure.value, f"{name}_se": figure.standard_error}
            curve.append(row)
        figures = self.level_figures(predictions, 0, context.seed)
        if levels != DATA_LEVEL:
            figures["accuracy_all_levels"] = mean(predictions.correct.mean(0), "share")
            figures["nll_all_levels"] = mean(predictions.nll.mean(0), "nats")
        classes = context.class_names
        correct_of = {name: predictions.correct[0][context.labels == label] for label, name in enumerate(classes)}
        details = {"accuracy_per_class": {name: float(part.mean()) for name, part in correct_of.items() if len(part)}}
        at = "the data, without noise" if levels == DATA_LEVEL else f"noise level {levels[0]:g} unless stated otherwise"
        cost = sum(map(float, batches["took"])) / context.n / len(levels)
        facts = {"at": at, "bins": self.bins, "seconds_per_image_and_level": cost}
        panels = [
            Panel("accuracy", "accuracy", ("by chance", 1 / len(classes))),
            Panel("nll", "-log p(y | x_t), nats", ("by chance", float(numpy.log(len(classes))))),
            Panel("ece", f"calibration error, {self.bins} bins"),
        ]
        plot = Plot("classification", "noise_level", "noise level sigma / alpha", True, panels)
        return MetricResult(figures, facts, curve, [] if levels == DATA_LEVEL else [plot], details)

    def levels(self, context: EvalContext) -> Sequence[float]:
        """The noise levels at which the model is evaluated."""
        classifier = context.require(Classifier)
        if getattr(classifier, "levels", None) is not None:
            return [math.exp(-float(find_time(classifier, level)[1]) / 2) for level in self.noise_levels]
        return DATA_LEVEL if classifier.schedule is None else self.noise_levels

    def classify_batch(self, context: EvalContext, first: int) -> dict[str, numpy.ndarray]:
        """The predictions for a batch, and the seconds that they took."""
        x_0, y = context.batch(first)
        assert isinstance(y, Tensor)  # a classifier has classes
        eps = context.noise(first).normal(0.0, 0)
        started = time.perf_counter()
        predictions = classify(context.require(Classifier), x_0, y, self.levels(context), eps)
        seconds = time.perf_counter() - started
        return {name: part.numpy() for name, part in predictions._asdict().items()} | {"took": numpy.array(seconds)}

    def level_figures(self, predictions: ClassPredictions, index: int, seed: int) -> dict[str, Figure]:
        """The figures of one noise level."""
        correct, nll = predictions.correct[index], predictions.nll[index]
        value, error = calibration_error(predictions.confidence[index], correct, self.bins, seed)
        return {
            "accuracy": mean(correct, "share"),
            "nll": mean(nll, "nats"),
            "ece": Figure(value, error, len(nll), "share"),
        }
