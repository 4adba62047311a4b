"""The quality of samples: figures against real examples, on named features."""

from collections.abc import Callable
from hashlib import blake2b

import numpy
import torch
from torch import Tensor

from ...models.protocols import Denoiser, DenoiserWrapper, Energy
from ...randomness import fold
from ...runtime.ranges import check_whole
from ...samplers import Sampler
from ..latents import pictures_of
from ..metric import SPLITS, EvalContext
from ..results import MetricResult
from .features import Features
from .figures import FeatureSet, QualityComparison, check_overlap, is_small
from .image_sources import NewSamples, StoredSamples
from .local import Local, load_images
from .sampled import SampledMetric

__all__ = ["Quality"]

LABEL_PURPOSE = 7  # purpose of the seed


class Quality(SampledMetric):
    """Frechet distance, KID, inception score, precision, recall, density, coverage, label accuracy, CAS, near copies.

    Samples are drawn as by `diffguide-sample`, or read from one of its runs, and compared as bytes. FD and KID are measured
    against the reference split, by default the training split as in the literature; precision, recall, density, coverage and
    accuracies against the examples of split=..., on which the model was not trained.

    Arguments:
        guidance: model -> guided denoiser; None = no guidance.
        sampler: None = `Heun()`.
        features: of images, None = `Local()`. Their name is part of the names of figures; FD is called fid for Inception.
        count: number of samples, above the number of features.
        samples: folder of a run of diffguide-sample of this checkpoint, whose first samples are used; None = new samples.
        labels: of new samples: balanced = the classes in turn, data = drawn from the reference split, None = no condition.
        reference: split for FD and KID: train, validation or test.
        subsets: of KID.
        subset_size: examples in each; at most half of the smaller set, so that the error is known.
        splits: of the inception score, for features with a classifier.
        compared: maximum number of examples of each set for precision, recall, density, coverage and copies.
        classification: whether to train a classifier on the samples (classification accuracy score).
    """

    name = "quality"
    conditions = False

    def __init__(
        self,
        guidance: Callable[[Denoiser], DenoiserWrapper] | None = None,
        sampler: Sampler | None = None,
        features: Features | None = None,
        count: int = 1000,
        samples: str | None = None,
        labels: str | None = "balanced",
        reference: str = "train",
        subsets: int = 100,
        subset_size: int = 1000,
        splits: int = 10,
        compared: int = 10000,
        classification: bool = True,
    ):
        if splits > count:
            raise ValueError(f"splits must be at most count={count}, got {splits}")
        if labels not in ("balanced", "data", None):
            raise ValueError(f"labels must be balanced, data or null, got {labels!r}")
        if reference not in SPLITS:
            raise ValueError(f"reference must be train, validation or test, got {reference!r}")
        super().__init__(guidance, sampler, samples)
        self.features = features or Local()
        self.count = check_whole("count", count, 10)
        self.new_labels = labels
        self.reference = reference
        self.subsets = check_whole("subsets", subsets, 1)
        self.subset_size = check_whole("subset_size", subset_size, 2)
        self.splits = check_whole("splits", splits, 1)
        self.compared = check_whole("compared", compared, 10)
        self.classification = classification

    def check(self, context: EvalContext) -> None:
        super().check(context)
        self.check_model(context)
        self.check_split(context)
        self.features.check(pictures_of(context.data))
        width, size = self.features.width(pictures_of(context.data).shape), len(getattr(context.data, self.reference).y)
        for key, number, name in [("count", self.count, "samples"), ("reference", size, f"{self.reference} examples")]:
            if number <= width:
                raise ValueError(
                    f"metric.{key}: {number} {name} are too few for {width} features of {self.features.name}, whose "
                    f"covariance needs more than {width}"
                )
        if self.folder is not None:
            StoredSamples(self.folder, self.count, context)
            return
        guided = self.check_sampler(context)
        if self.sample_labels(context, guided) is None and not guided.has_null:
            raise ValueError(
                "metric.labels=null needs a model that dropped labels in training (guidance=cfg); this one did not"
            )

    def check_split(self, context: EvalContext) -> None:
        """Raises ValueError unless the split has held-out examples."""
        if context.split == "train":
            others = [split for split in ("validation", "test") if len(getattr(context.data, split).y)]
            instead = " or ".join(f"split={name}" for name in others) or "data with validation or test examples"
            raise ValueError(
                "metric=quality: coverage and copies need examples on which the model was not trained, got split=train: use "
                f"{instead} (metric.reference=train is for FD)"
            )
        if context.n < 10:
            raise ValueError(f"metric=quality needs at least 10 examples of the {context.split} split, got {context.n}")

    def sample_labels(self, context: EvalContext, guided: Denoiser | Energy) -> list[int] | None:
        """Chooses the class of every new sample, None = no condition."""
        if self.new_labels is None or not guided.num_classes:
            return None
        if self.new_labels == "balanced":
            return [index % guided.num_classes for index in range(self.count)]
        y = getattr(context.data, self.reference).y
        if not bool((y >= 0).all()):
            raise ValueError(f"metric.labels=data: the {self.reference} split has examples without a class")
        rng = torch.Generator().manual_seed(fold(context.seed, LABEL_PURPOSE))
        return y[torch.randint(len(y), (self.count,), generator=rng)].tolist()

    def measure(self, context: EvalContext) -> MetricResult:
        with torch.autocast(context.device.type, enabled=False):
            self.features.prepare(pictures_of(context.data), context.device, context.progress)
        all_rows = torch.arange(len(getattr(context.data, self.reference).y))
        reference = self.gather_real_features(context, "reference", self.reference, all_rows)
        held_out = self.gather_real_features(context, "held-out", context.split, context.rows)
        nearest_of_held_out = check_overlap(context)
        source: NewSamples | StoredSamples
        if self.folder is None:
            guided = self.guide(context)
            labels = self.sample_labels(context, guided)
            source = NewSamples(
                context, guided, self.sampler, self.count, labels, self.new_labels if labels is not None else None
            )
        else:
            source = StoredSamples(self.folder, self.count, context)
        samples = self.gather_features(
            context, "samples", self.count, source.batch, is_small(pictures_of(context.data).shape)
        )
        with torch.autocast(context.device.type, enabled=False):
            comparison = QualityComparison(self, context, samples, reference, held_out)
            comparison.run(nearest_of_held_out)
        facts = {
            "features": {"name": self.features.name, **self.features.facts()},
            "samples": self.count,
            **source.facts(),
            "reference": f"{len(reference.y)} {self.reference} examples",
            "held_out": f"{context.n} {context.split} examples",
            **comparison.facts,
        }
        return MetricResult(comparison.figures, facts, details=comparison.details, notes=comparison.notes)

    def gather_real_features(self, context: EvalContext, name: str, split: str, rows: Tensor) -> FeatureSet:
        """Computes the features of rows of a split."""
        size = context.batch_size
        return self.gather_features(
            context,
            name,
            len(rows),
            lambda first: load_images(pictures_of(context.data), split, rows[first : first + size]),
        )

    def gather_features(
        self,
        context: EvalContext,
        name: str,
        count: int,
        batch: Callable[[int], tuple[Tensor, Tensor]],
        keep_images: bool = False,
    ) -> FeatureSet:
        """Computes the features of batches of images; each batch is saved as a part."""
        parts = []
        unit = name if name == "samples" else f"{name} examples"
        for first in range(0, count, context.batch_size):
            context.progress(first, count, unit)

            def compute() -> dict[str, numpy.ndarray]:
                images, y = batch(first)
                with torch.autocast(context.device.type, enabled=False):
                    features, logits = self.features(images)
                arrays = {"y": y.numpy(), "features": features.numpy(), "digests": hash_images(images)}
                if keep_images:
                    arrays["images"] = images.numpy()
                if logits is not None:
                    arrays["logits"] = logits.numpy()
                return arrays

            parts.append(context.parts.load_or_compute(f"{name}_{first:010d}", compute))
        context.progress(count, count, unit)
        return FeatureSet(
            **{key: torch.from_numpy(numpy.concatenate([part[key] for part in parts])) for key in parts[0]}
        )


def hash_images(images: Tensor) -> numpy.ndarray:
    """[B, 16] uint8 hashes of images as bytes [B, C, H, W]."""
    digests = b"".join(blake2b(image.tobytes(), digest_size=16).digest() for image in images.cpu().numpy())
    return numpy.frombuffer(digests, dtype=numpy.uint8).reshape(len(images), 16)
