"""The figures of samples compared with real examples, from the features of both."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy
import torch
from torch import Tensor

from ...figures.curves import MIN_PRECISION
from ...randomness import fold
from ..latents import pictures_of
from ..metric import EvalContext, MetricError
from ..results import Figure
from . import frechet
from .frechet import Moments
from .kid import inception_score, kernel_distance
from .label_agreement import MAX_LABEL_EXAMPLES, LabelClassifier
from .local import MAX_SIDE, MIN_SIDE, Local, load_images, network_accuracy, train_local_network
from .precision_recall import (
    DC_NEIGHBOURS,
    PR_NEIGHBOURS,
    count_repeated,
    find_copies,
    neighbour_shares,
    quality_notes,
    two_nearest,
)

if TYPE_CHECKING:
    from .metric import Quality

__all__ = ["FeatureSet", "QualityComparison", "check_overlap", "is_small"]

NUM_GROUPS = 10  # groups of samples, for the error of the Frechet distance, and of real examples, for its halves
CAS_STEPS = 300  # training steps of the classifier of samples, unless the features are local
CHUNK_ROWS = 5000  # training examples at a time
MAX_OVERLAP = 0.1  # fraction of the held-out examples that may be training examples
DIVISION_PURPOSE, SUBSETS_PURPOSE, ROWS_PURPOSE, SHUFFLE_PURPOSE = range(10, 14)  # purposes of the seed


class FeatureSet(NamedTuple):
    """Features of a set of images.

    features: [N, D] float32. y: classes [N], -1 = none. digests: [N, 16] uint8 hashes of the images. logits: [N, K] of a
    classifier, None = none. images: bytes [N, C, H, W], None = not saved.
    """

    features: Tensor
    y: Tensor
    digests: Tensor
    logits: Tensor | None = None
    images: Tensor | None = None


def is_small(shape: Sequence[int]) -> bool:
    """Whether images are square with 8 to 64 pixels per side: then pixels are compared, and classifiers are trained."""
    return len(shape) == 3 and shape[1] == shape[2] and MIN_SIDE <= shape[1] <= MAX_SIDE


def training_pixels(context: EvalContext) -> Iterator[Tensor]:
    """The training examples as bytes [b, D], in chunks."""
    for rows in torch.arange(len(pictures_of(context.data).train.y)).split(CHUNK_ROWS):
        yield load_images(pictures_of(context.data), "train", rows)[0].flatten(1)


def check_overlap(context: EvalContext) -> Tensor | None:
    """`two_nearest` training examples of the held-out examples, in pixels, [n, 2]; None = the images are too large.

    Raises:
        MetricError: more than a tenth of the held-out examples are training examples.
    """
    if not is_small(pictures_of(context.data).shape):
        return None
    images = load_images(pictures_of(context.data), context.split, context.rows)[0]
    two = two_nearest(images.flatten(1), training_pixels(context))
    if (same := int((two[:, 0] == 0).sum())) > MAX_OVERLAP * context.n:
        raise MetricError(
            f"{same} of the {context.n} {context.split} examples are also training examples, so coverage and copies have no "
            "meaning: use another split or dataset=<option>"
        )
    return two


class QualityComparison:
    """Computes every figure that the sets support.

    Arguments:
        metric: the settings.
        context: of the model.
        samples, reference, held_out: the sets that are compared.

    Attributes:
        figures, facts, details, notes: see `MetricResult`; filled by `run`.
    """

    def __init__(
        self, metric: "Quality", context: EvalContext, samples: FeatureSet, reference: FeatureSet, held_out: FeatureSet
    ):
        self.metric, self.context, self.features = metric, context, metric.features
        self.samples, self.reference, self.held_out = samples, reference, held_out
        name = self.features.name
        self.suffix, self.distance = ("", "fid") if name == "inception" else (f"_{name}", f"fd_{name}")
        self.count, self.classes = len(samples.y), len(context.class_names)
        self.figures: dict[str, Figure] = {}
        self.facts: dict[str, Any] = {}
        self.details: dict[str, Any] = {}
        self.notes: list[str] = []

    def run(self, nearest_of_held_out: Tensor | None) -> None:
        """Computes all figures.

        Arguments:
            nearest_of_held_out: from `check_overlap`.
        """
        stages: dict[str, Callable[[], None]] = {
            "Frechet distance": self.add_frechet_distance,
            "KID": self.add_kid,
            "inception score": self.add_inception_score,
            "precision and recall, density and coverage": self.add_neighbour_shares,
            "label accuracy": self.add_label_accuracy,
            "classification accuracy score": self.add_cas,
        }
        if nearest_of_held_out is not None:
            stages["near copies"] = partial(self.add_near_copies, nearest_of_held_out)
        for name, add in stages.items():
            self.context.progress(0, 1, name)
            add()
            self.context.progress(1, 1, name)

    def add_near_copies(self, nearest_of_held_out: Tensor) -> None:
        """Near copies of training examples, and the `distance_ratio` to the nearest, 0 = copies, 1 = new images."""
        rows = self.sample_rows(self.count)
        assert self.samples.images is not None  # saved for the images that `check_overlap` compares
        two = two_nearest(self.samples.images[rows].flatten(1), training_pixels(self.context))
        self.figures["copies"] = binomial_share(float(find_copies(two).double().mean()), len(rows))
        self.details["copies_of_real"] = float(find_copies(nearest_of_held_out).double().mean())
        ratio = two[:, 0].quantile(0.5) / nearest_of_held_out[:, 0].quantile(0.5)
        self.figures["distance_ratio"] = Figure(float(ratio), None, len(rows), "1")

    def shuffle_rows(self, count: int, purpose: int) -> Tensor:
        """Rows in a random order, a function of the seed."""
        return torch.randperm(count, generator=torch.Generator().manual_seed(fold(self.context.seed, purpose)))

    def sample_rows(self, count: int) -> Tensor:
        """Random rows that are compared, at most `compared`."""
        return self.shuffle_rows(count, ROWS_PURPOSE)[: self.metric.compared]

    def group_moments(self, features: Tensor) -> list[Moments]:
        """Moments of ten random parts."""
        order = self.shuffle_rows(len(features), DIVISION_PURPOSE)
        groups = [Moments(features.shape[1]) for _ in range(NUM_GROUPS)]
        for index, group in enumerate(groups):
            for rows in order[index::NUM_GROUPS].split(CHUNK_ROWS):
                group.add(features[rows])
        return groups

    def add_frechet_distance(self) -> None:
        """The distance, and its floor for sets of one distribution and these sizes, from halves of the reference."""
        groups, real = self.group_moments(self.samples.features), self.group_moments(self.reference.features)
        n, m, reference = self.count, len(self.reference.y), frechet.merge_moments(real)
        value, error = frechet.jackknife(groups, reference)
        floor, floor_error, half = frechet.distance_of_halves(real, fold(self.context.seed, DIVISION_PURPOSE))
        factor = frechet.rescale_floor(1.0, half, n, m)
        unit = "squared features"
        self.figures[self.distance] = Figure(value, error, n, unit)
        self.figures[f"{self.distance}_halves"] = Figure(floor, floor_error, half, unit)
        self.figures[f"{self.distance}_floor"] = Figure(floor * factor, floor_error * factor, min(n, m), unit)
        if self.metric.reference != self.context.split and self.context.n > self.features.width(
            pictures_of(self.context.data).shape
        ):
            held_out = Moments(self.held_out.features.shape[1]).add(self.held_out.features)
            self.details[f"{self.distance}_of_held_out"] = frechet.frechet_distance(held_out, reference)
        self.facts["frechet_error"] = f"jackknife over {NUM_GROUPS} groups of samples, the reference held fixed"

    def add_kid(self) -> None:
        x, y = self.samples.features, self.reference.features
        size = max(2, min(self.metric.subset_size, min(len(x), len(y)) // 2))
        value, error = kernel_distance(x, y, self.metric.subsets, size, fold(self.context.seed, SUBSETS_PURPOSE))
        self.figures[f"kid{self.suffix}"] = Figure(value, error, self.count, "squared kernel distance")
        self.facts["kid"] = f"{self.metric.subsets} subsets of {size}, (x . y / {x.shape[1]} + 1)^3, unbiased"

    def add_inception_score(self) -> None:
        """The inception score, and that of the held-out examples."""
        if self.samples.logits is None:
            return
        shuffled = self.samples.logits[self.shuffle_rows(self.count, SHUFFLE_PURPOSE)]
        value, error = inception_score(shuffled, self.metric.splits)
        self.figures[f"is{self.suffix}"] = Figure(value, error, self.count, "classes")
        self.facts["is"] = f"{self.metric.splits} splits"
        if self.context.n >= self.metric.splits and self.held_out.logits is not None:
            real = self.held_out.logits[self.shuffle_rows(self.context.n, SHUFFLE_PURPOSE)]
            self.details[f"is{self.suffix}_of_real"] = inception_score(real, self.metric.splits).value

    def add_neighbour_shares(self) -> None:
        """Precision, recall, density and coverage of samples, and of as many reference examples."""
        real_rows, rows = self.sample_rows(self.context.n), self.sample_rows(self.count)
        real, x = self.held_out.features[real_rows], self.samples.features[rows]
        repeated = count_repeated(self.samples.digests[rows])
        repeated_real = count_repeated(self.held_out.digests[real_rows])
        shares = neighbour_shares(real, x)
        self.notes.extend(quality_notes(shares["precision"], (repeated, len(x)), (repeated_real, len(real))))
        self.facts |= {
            "compared": f"{len(x)} samples, {len(real)} held-out examples",
            "neighbours": {"precision_recall": PR_NEIGHBOURS, "density_coverage": DC_NEIGHBOURS},
            "shares_error": "binomial over the set that it is a share of, the other set held fixed",
            "repeated": {"samples": repeated, "held_out": repeated_real},
        }
        for name, value in shares.items():
            n = len(x) if name in ("precision", "density") else len(real)
            figure = Figure(value, None, n, "1") if name == "density" else binomial_share(value, n)
            meaningful = name != "recall" or shares["precision"] >= MIN_PRECISION
            self.figures[f"{name}{self.suffix}"] = figure._replace(meaningful=meaningful)
        if self.metric.reference != self.context.split:
            others = self.reference.features[self.sample_rows(len(self.reference.y))[: len(x)]]
            for name, value in neighbour_shares(real, others).items():
                self.details[f"{name}{self.suffix}_of_real"] = value
            self.details["neighbours_of_real"] = len(others)

    def add_label_accuracy(self) -> None:
        """The fraction of samples that an SVM on features of reference examples assigns to the class they were sampled for."""
        rows = self.shuffle_rows(len(self.reference.y), ROWS_PURPOSE)[:MAX_LABEL_EXAMPLES]
        x, y = self.reference.features[rows], self.reference.y[rows]
        if not self.has_labels(self.samples.y) or len(y[y >= 0].unique()) < 2:
            return
        classifier, rows = LabelClassifier(x, y), self.sample_rows(self.count)
        accuracy = classifier.accuracy(self.samples.features[rows], self.samples.y[rows])
        self.figures[f"agreed_labels{self.suffix}"] = binomial_share(accuracy, len(rows))
        if self.has_labels(self.held_out.y) and self.metric.reference != self.context.split:
            real = classifier.accuracy(self.held_out.features, self.held_out.y)
            self.details[f"agreed_labels{self.suffix}_of_real"] = real

    def add_cas(self) -> None:
        """The classification accuracy score: the accuracy, on real examples, of a classifier trained on samples only.

        Ravuri & Vinyals, "Classification Accuracy Score for Conditional Generative Models", 2019, arXiv 1905.10887.
        """
        samples, context = self.samples.images, self.context
        if samples is None or not self.metric.classification:
            return
        if not self.has_labels(self.samples.y) or not self.has_labels(self.held_out.y):
            return
        images, y = load_images(pictures_of(context.data), context.split, context.rows)
        local = self.features if isinstance(self.features, Local) else None
        steps = local.steps if local else CAS_STEPS
        device = context.device

        def compute() -> dict[str, numpy.ndarray]:
            network = train_local_network(
                samples, self.samples.y, self.classes, steps, context.seed, device, context.progress
            )
            return {"accuracy": numpy.array(network_accuracy(network, images, y, device))}

        accuracy = float(context.parts.load_or_compute("cas", compute)["accuracy"])
        self.figures["cas"] = binomial_share(accuracy, context.n)
        self.facts["cas"] = f"the classifier of local features, {steps} steps on {self.count} samples"
        if local is not None and local.network is not None:
            self.details["cas_of_real"] = network_accuracy(local.network, images, y, device)

    def has_labels(self, y: Tensor) -> bool:
        """Whether every row has a class, and there is more than one class."""
        return bool((y >= 0).all()) and len(y.unique()) > 1 and self.classes > 1


def binomial_share(value: float, n: int) -> Figure:
    """A share of n with its binomial error, the standard deviation over sets of n with the other set fixed.

    If both sets vary, that of precision, recall and coverage is up to 1.6 times as large.
    """
    return Figure(value, math.sqrt(value * (1 - value) / n), n, "share")
