"""The figures of samples against real examples, given the features of both."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy
import torch
from torch import Tensor

from ...figures.curves import MIN_PRECISION
from ...randomness import fold
from ..metric import EvalContext, Figure, MetricError
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

__all__ = ["QualityComparison", "QualityResult", "FeatureSet", "check_overlap", "is_small"]

NUM_GROUPS = 10  # of samples, for the error of the Frechet distance; of real examples, for halves
CAS_STEPS = 300  # of the classifier of samples, unless the features are local
CHUNK_ROWS = 5000  # training examples at once
MAX_OVERLAP = 0.1  # of the held-out examples may be training examples
DIVISION_PURPOSE, SUBSETS_PURPOSE, ROWS_PURPOSE, SHUFFLE_PURPOSE = range(10, 14)  # purposes of the seed


class FeatureSet(NamedTuple):
    """features [N, D] float32, classes [N] (-1 = none), logits [N, K] of a classifier, bytes [N, C, H, W]; None = not kept.

    digests: [N, 16] uint8 hashes of the bytes of images.
    """

    features: Tensor
    y: Tensor
    logits: Tensor | None
    images: Tensor | None
    digests: Tensor


class QualityResult(NamedTuple):
    """The fields of `MetricResult` that a comparison fills."""

    figures: dict[str, Figure]
    facts: dict[str, Any]
    details: dict[str, Any]
    notes: list[str]


def is_small(shape: Sequence[int]) -> bool:
    """Whether images are square, with 8 to 64 pixels a side: then pixels are compared, and classifiers trained."""
    return len(shape) == 3 and shape[1] == shape[2] and MIN_SIDE <= shape[1] <= MAX_SIDE


def training_pixels(context: EvalContext) -> Iterator[Tensor]:
    """The training examples as bytes [b, D], in chunks."""
    for rows in torch.arange(len(context.data.train.y)).split(CHUNK_ROWS):
        yield load_images(context.data, "train", rows)[0].flatten(1)


def check_overlap(context: EvalContext) -> Tensor | None:
    """`two_nearest` training examples of the held-out ones, in pixels, [n, 2]; None = the images are too large.

    Raises:
        MetricError: more than a tenth of them are training examples.
    """
    if not is_small(context.shape):
        return None
    images = load_images(context.data, context.split, context.rows)[0]
    two = two_nearest(images.flatten(1), training_pixels(context))
    if (same := int((two[:, 0] == 0).sum())) > MAX_OVERLAP * context.n:
        raise MetricError(
            f"{same} of the {context.n} {context.split} examples are training examples too, so coverage and copies would "
            "be meaningless: use another split or dataset=<option>"
        )
    return two


class QualityComparison:
    """Computes every figure that the sets allow.

    Arguments:
        metric: the settings.
        context: of the model.
        samples, reference, held_out: what is compared.
    """

    def __init__(
        self, metric: "Quality", context: EvalContext, samples: FeatureSet, reference: FeatureSet, held_out: FeatureSet
    ):
        self.metric, self.context, self.features = metric, context, metric.features
        self.samples, self.reference, self.held_out = samples, reference, held_out
        name = self.features.name
        self.suffix, self.distance = ("", "fid") if name == "inception" else (f"_{name}", f"fd_{name}")
        self.count, self.classes = len(samples.y), len(context.class_names)

    def figures(self, usual: Tensor | None) -> QualityResult:
        """All figures.

        Arguments:
            usual: from `check_overlap`.
        """
        found = QualityResult({}, {}, {}, [])
        stages: dict[str, Callable[[QualityResult], None]] = {
            "Frechet distance": self.frechet,
            "KID": self.kernel,
            "inception score": self.score,
            "precision and recall, density and coverage": self.neighbours,
            "label accuracy": self.label_accuracy,
            "classification accuracy score": self.cas,
        }
        if usual is not None:
            stages["near copies"] = partial(self.near_copies, usual=usual)
        for what, add in stages.items():
            self.context.progress(0, 1, what)
            add(found)
            self.context.progress(1, 1, what)
        return found

    def near_copies(self, found: QualityResult, usual: Tensor) -> None:
        """Near copies of training examples, and the `distance_ratio` to the nearest, 0 = copies, 1 = new images."""
        rows = self.sample_rows(self.count)
        assert self.samples.images is not None  # kept for images that `check_overlap` compares
        two = two_nearest(self.samples.images[rows].flatten(1), training_pixels(self.context))
        found.figures["copies"] = binomial_share(float(find_copies(two).double().mean()), len(rows))
        found.details["copies_of_real"] = float(find_copies(usual).double().mean())
        ratio = two[:, 0].quantile(0.5) / usual[:, 0].quantile(0.5)
        found.figures["distance_ratio"] = Figure(float(ratio), None, len(rows), "1")

    def shuffled_rows(self, count: int, purpose: int) -> Tensor:
        """Rows in a random order, a function of the seed."""
        return torch.randperm(count, generator=torch.Generator().manual_seed(fold(self.context.seed, purpose)))

    def sample_rows(self, count: int) -> Tensor:
        """Rows to compare, at most `compared`."""
        return self.shuffled_rows(count, ROWS_PURPOSE)[: self.metric.compared]

    def groups(self, features: Tensor, purpose: int) -> list[Moments]:
        """Moments of ten random parts."""
        order = self.shuffled_rows(len(features), purpose)
        groups = [Moments(features.shape[1]) for _ in range(NUM_GROUPS)]
        for index, group in enumerate(groups):
            for rows in order[index::NUM_GROUPS].split(CHUNK_ROWS):
                group.add(features[rows])
        return groups

    def frechet(self, found: QualityResult) -> None:
        """The distance, and its floor for sets of one law and of these sizes, from halves of the reference."""
        parts = self.groups(self.samples.features, DIVISION_PURPOSE)
        real = self.groups(self.reference.features, DIVISION_PURPOSE)
        n, m, whole = self.count, len(self.reference.y), frechet.merge_moments(real)
        value, error = frechet.jackknife(parts, whole)
        floor, spread, half = frechet.distance_of_halves(real, fold(self.context.seed, DIVISION_PURPOSE))
        factor = frechet.rescale_floor(1.0, half, n, m)
        found.figures[self.distance] = Figure(value, error, n, "squared features")
        found.figures[f"{self.distance}_halves"] = Figure(floor, spread, half, "squared features")
        found.figures[f"{self.distance}_floor"] = Figure(floor * factor, spread * factor, min(n, m), "squared features")
        if self.metric.reference != self.context.split and self.context.n > self.features.width(self.context.shape):
            held = Moments(self.held_out.features.shape[1]).add(self.held_out.features)
            found.details[f"{self.distance}_of_held_out"] = frechet.frechet_distance(held, whole)
        found.facts["frechet_error"] = f"jackknife over {NUM_GROUPS} groups of samples, the reference held fixed"

    def kernel(self, found: QualityResult) -> None:
        """KID."""
        x, y = self.samples.features, self.reference.features
        size = max(2, min(self.metric.subset_size, min(len(x), len(y)) // 2))
        value, error = kernel_distance(x, y, self.metric.subsets, size, fold(self.context.seed, SUBSETS_PURPOSE))
        found.figures[f"kid{self.suffix}"] = Figure(value, error, self.count, "squared kernel distance")
        found.facts["kid"] = f"{self.metric.subsets} subsets of {size}, (x . y / {x.shape[1]} + 1)^3, unbiased"

    def score(self, found: QualityResult) -> None:
        """The inception score, and that of the held-out examples."""
        if self.samples.logits is None:
            return
        shuffled = self.samples.logits[self.shuffled_rows(self.count, SHUFFLE_PURPOSE)]
        value, error = inception_score(shuffled, self.metric.splits)
        found.figures[f"is{self.suffix}"] = Figure(value, error, self.count, "classes")
        found.facts["is"] = f"{self.metric.splits} splits"
        if self.context.n >= self.metric.splits and self.held_out.logits is not None:
            real = self.held_out.logits[self.shuffled_rows(self.context.n, SHUFFLE_PURPOSE)]
            found.details[f"is{self.suffix}_of_real"] = inception_score(real, self.metric.splits).value

    def neighbours(self, found: QualityResult) -> None:
        """Precision, recall, density and coverage of samples, and of as many reference examples."""
        rows, drawn = self.sample_rows(self.context.n), self.sample_rows(self.count)
        real, x = self.held_out.features[rows], self.samples.features[drawn]
        repeated = [count_repeated(digests) for digests in (self.samples.digests[drawn], self.held_out.digests[rows])]
        found.facts["compared"] = f"{len(x)} samples, {len(real)} held-out examples"
        found.facts["neighbours"] = {"precision_recall": PR_NEIGHBOURS, "density_coverage": DC_NEIGHBOURS}
        found.facts["shares_error"] = "binomial over the set that it is a share of, the other set held fixed"
        found.facts["repeated"] = {"samples": repeated[0], "held_out": repeated[1]}
        shares = neighbour_shares(real, x)
        found.notes.extend(quality_notes(shares["precision"], (repeated[0], len(x)), (repeated[1], len(real))))
        for name, value in shares.items():
            n = len(x) if name in ("precision", "density") else len(real)
            figure = Figure(value, None, n, "1") if name == "density" else binomial_share(value, n)
            doubtful = name == "recall" and shares["precision"] < MIN_PRECISION
            found.figures[f"{name}{self.suffix}"] = figure._replace(meaningful=not doubtful)
        if self.metric.reference != self.context.split:
            others = self.reference.features[self.sample_rows(len(self.reference.y))[: len(x)]]
            own = {f"{name}{self.suffix}_of_real": value for name, value in neighbour_shares(real, others).items()}
            found.details.update(own, neighbours_of_real=len(others))

    def label_accuracy(self, found: QualityResult) -> None:
        """The fraction of samples that an SVM on features of reference examples assigns to the class they were sampled for."""
        rows = self.shuffled_rows(len(self.reference.y), ROWS_PURPOSE)[:MAX_LABEL_EXAMPLES]
        x, y = self.reference.features[rows], self.reference.y[rows]
        if not self.has_labels(self.samples.y) or len(y[y >= 0].unique()) < 2:
            return
        label_classifier, rows = LabelClassifier(x, y), self.sample_rows(self.count)
        agreed = label_classifier.accuracy(self.samples.features[rows], self.samples.y[rows])
        found.figures[f"agreed_labels{self.suffix}"] = binomial_share(agreed, len(rows))
        if self.has_labels(self.held_out.y) and self.metric.reference != self.context.split:
            real = label_classifier.accuracy(self.held_out.features, self.held_out.y)
            found.details[f"agreed_labels{self.suffix}_of_real"] = real

    def cas(self, found: QualityResult) -> None:
        """The classification accuracy score: the accuracy, on real examples, of a classifier trained on samples only.

        Ravuri & Vinyals, "Classification Accuracy Score for Conditional Generative Models", 2019, arXiv 1905.10887.
        """
        samples, held_out = self.samples.images, self.held_out.y
        if samples is None or not self.metric.classification:
            return
        if not self.has_labels(self.samples.y) or not self.has_labels(held_out):
            return
        images, y = load_images(self.context.data, self.context.split, self.context.rows)
        local = self.features if isinstance(self.features, Local) else None
        steps, device = local.steps if local else CAS_STEPS, self.context.device

        def compute() -> dict[str, numpy.ndarray]:
            context = self.context
            network = train_local_network(
                samples, self.samples.y, self.classes, steps, context.seed, device, context.progress
            )
            return {"accuracy": numpy.array(network_accuracy(network, images, y, device))}

        found.figures["cas"] = binomial_share(
            float(self.context.parts.part("cas", compute)["accuracy"]), self.context.n
        )
        found.facts["cas"] = f"the classifier of local features, {steps} steps on {self.count} samples"
        if local is not None and local.network is not None:
            found.details["cas_of_real"] = network_accuracy(local.network, images, y, device)

    def has_labels(self, y: Tensor) -> bool:
        """Whether every row has a class, and there is more than one."""
        return bool((y >= 0).all()) and len(y.unique()) > 1 and self.classes > 1


def binomial_share(value: float, n: int) -> Figure:
    """A share of n with its binomial error, the standard deviation over sets of n with the other set fixed.

    If both sets vary, that of precision, recall and coverage is up to 1.6 times as large.
    """
    return Figure(value, math.sqrt(value * (1 - value) / n), n, "share")
