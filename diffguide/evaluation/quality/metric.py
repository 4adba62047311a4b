"""The quality of samples: figures against real examples, on named features."""

from collections.abc import Callable
from functools import partial
from hashlib import blake2b
from pathlib import Path

import numpy
import torch
from torch import Tensor

from ...guidance import Unguided
from ...models.protocols import Denoiser, DenoiserWrapper, Energy
from ...randomness import fold
from ...samplers import Heun, Sampler
from ..metric import SPLITS, EvalContext, Metric, MetricResult
from ..probe import check_conditioning
from .features import Features
from .figures import FeatureSet, QualityComparison, check_overlap, is_small
from .image_sources import NewSamples, RealImages, StoredSamples
from .local import Local

__all__ = ["Quality"]

LABEL_PURPOSE = 7  # purpose of the seed


class Quality(Metric):
    """Frechet distance, KID, inception score, precision, recall, density, coverage, label accuracy, CAS, near copies.

    Samples are made as by `diffguide-sample`, or read from one of its runs, and compared as bytes. FD and KID are measured
    against the reference split, by default the training split as in the literature; precision, recall, density, coverage and
    accuracies against the examples of split=..., on which the model was not trained.

    Arguments:
        guidance: model -> guided denoiser; None = no guidance.
        sampler: None = `Heun()`.
        features: that compare images, None = `Local()`; they name the figures, and fid is the name for Inception only.
        count: number of samples, above the number of features.
        samples: folder of a run of diffguide-sample of this checkpoint, whose first samples are used; None = new samples.
        labels: of new samples: balanced = the classes in turn, data = drawn from the reference split, None = no condition.
        reference: split for FD and KID: train, validation or test.
        subsets: of KID.
        subset_size: examples in each; at most half of the smaller set, beyond which the error is unknown.
        splits: of the inception score, for features that come with a classifier.
        compared: maximum of examples of each set for precision, recall, density, coverage and copies.
        classification: whether a classifier is trained on the samples (classification accuracy score).

    Raises:
        ValueError: an argument out of its range.
    """

    name = "quality"

    def __init__(
        self, guidance: Callable[[Denoiser], DenoiserWrapper] | None = None, sampler: Sampler | None = None,
        features: Features | None = None, count: int = 1000, samples: str | None = None, labels: str | None = "balanced",
        reference: str = "train", subsets: int = 100, subset_size: int = 1000, splits: int = 10, compared: int = 10000,
        classification: bool = True,
    ):  # fmt: skip
        for key, value, least in (
            ("count", count, 10), ("subsets", subsets, 1), ("subset_size", subset_size, 2), ("splits", splits, 1),
            ("compared", compared, 10),
        ):  # fmt: skip
            if value < least:
                raise ValueError(f"{key} must be at least {least}, got {value}")
        if splits > count:
            raise ValueError(f"splits must be at most count={count}, got {splits}: each needs a sample")
        if labels not in ("balanced", "data", None):
            raise ValueError(f"labels must be balanced, data or null, got {labels!r}")
        if reference not in SPLITS:
            raise ValueError(f"reference must be train, validation or test, got {reference!r}")
        self.guidance, self.count = guidance or partial(Unguided), count
        self.sampler, self.features = sampler or Heun(), features or Local()
        self.folder = None if samples is None else Path(samples).expanduser()
        self.new_labels, self.reference, self.subsets, self.subset_size = labels, reference, subsets, subset_size
        self.splits, self.compared, self.classification = splits, compared, classification

    def check(self, context: EvalContext) -> None:
        super().check(context)
        self.check_model(context)
        self.check_split(context)
        self.features.check(context.data)
        width, size = self.features.width(context.shape), len(getattr(context.data, self.reference).y)
        for number, what, key in ((self.count, "samples", "count"), (size, f"{self.reference} examples", "reference")):
            if number <= width:
                raise ValueError(
                    f"metric.{key}: {number} {what} are too few for {width} features of {self.features.name}, whose "
                    f"covariance needs more than {width}"
                )
        if self.folder is not None:
            StoredSamples(self.folder, self.count, context)
            return
        guided = self.guide(context)
        try:
            self.sampler.times(guided)
        except ValueError as error:
            raise ValueError(f"metric.sampler: {error}") from error
        if getattr(guided, "needs_null", False):
            check_conditioning(context.uncounted, context.shape, context.device)
        if self.sample_labels(context, guided) is None and not guided.has_null:
            raise ValueError(
                "metric.labels=null needs a model that dropped labels in training (guidance=cfg); this one did not"
            )

    def check_model(self, context: EvalContext) -> None:
        energy = isinstance(context.model, Energy)
        if context.as_protocol(Denoiser) is None and not energy:
            raise ValueError(
                f"metric=quality needs a denoiser or an energy; this checkpoint holds a {context.model_name}"
            )
        if energy and getattr(self.guidance, "func", self.guidance) is not Unguided:
            raise ValueError(
                f"metric.guidance has no effect on a {context.model_name}, an energy, which uses its labels without guidance: "
                "use guidance@metric.guidance=none"
            )
        if len(context.shape) != 3:
            raise ValueError(
                f"metric=quality needs images, and this model makes vectors of shape {list(context.shape)}: use a sweep of "
                "diffguide-sample -m"
            )

    def check_split(self, context: EvalContext) -> None:
        if context.split == "train":
            held = [split for split in ("validation", "test") if len(getattr(context.data, split).y)]
            instead = " or ".join(f"split={name}" for name in held) or "data with validation or test examples"
            raise ValueError(
                "metric=quality: the model was trained on split=train, and coverage and copies need examples that it has not "
                f"seen: use {instead} (metric.reference=train is for FD)"
            )
        if context.n < 10:
            raise ValueError(f"metric=quality needs at least 10 examples of the {context.split} split, got {context.n}")

    def guide(self, context: EvalContext) -> Denoiser | Energy:
        """The model with guidance, or an energy unchanged."""
        return context.model if isinstance(context.model, Energy) else self.guidance(context.model)

    def sample_labels(self, context: EvalContext, guided: Denoiser | Energy) -> list[int] | None:
        """The class of every new sample, None = no condition."""
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
            self.features.prepare(context.data, context.device, context.progress)
        everything = torch.arange(len(getattr(context.data, self.reference).y))
        batch = RealImages(context, self.reference, everything).batch
        reference = self.gather_features(context, "reference", len(everything), batch)
        batch = RealImages(context, context.split, context.rows).batch
        held_out = self.gather_features(context, "held-out", context.n, batch)
        of_held_out = check_overlap(context)
        source: NewSamples | StoredSamples
        if self.folder is None:
            source = NewSamples(self, context)
        else:
            source = StoredSamples(self.folder, self.count, context)
        samples = self.gather_features(context, "samples", self.count, source.batch, is_small(context.shape))
        with torch.autocast(context.device.type, enabled=False):
            found = QualityComparison(self, context, samples, reference, held_out).figures(of_held_out)
        facts = {
            "features": {"name": self.features.name, **self.features.facts()},
            "samples": self.count,
            **source.facts(),
            "reference": f"{len(reference.y)} {self.reference} examples",
            "held_out": f"{context.n} {context.split} examples",
            **found.facts,
        }
        return MetricResult(found.figures, facts, details=found.details, notes=found.notes)

    def gather_features(
        self, context: EvalContext, what: str, count: int, batch: Callable[[int], tuple[Tensor, Tensor]],
        keep_images: bool = False,
    ) -> FeatureSet:  # fmt: skip
        """The features of batches of images; each batch is kept when it is done."""
        parts, unit = [], what if what == "samples" else f"{what} examples"
        for first in range(0, count, context.batch_size):
            context.progress(first, count, unit)

            def compute() -> dict[str, numpy.ndarray]:
                images, y = batch(first)
                with torch.autocast(context.device.type, enabled=False):
                    features, logits = self.features(images)
                arrays = {"y": y.numpy(), "features": features.numpy(), "digests": digests(images)}
                arrays |= {"images": images.numpy()} if keep_images else {}
                return arrays | ({} if logits is None else {"logits": logits.numpy()})

            parts.append(context.parts.part(f"{what}_{first:010d}", compute))
        context.progress(count, count, unit)
        joined = {name: torch.from_numpy(numpy.concatenate([part[name] for part in parts])) for name in parts[0]}
        return FeatureSet(
            joined["features"], joined["y"], joined.get("logits"), joined.get("images"), joined["digests"]
        )


def digests(images: Tensor) -> numpy.ndarray:
    """[B, 16] uint8 hashes of images as bytes [B, C, H, W]."""
    whole = b"".join(blake2b(image.tobytes(), digest_size=16).digest() for image in images.cpu().numpy())
    return numpy.frombuffer(whole, dtype=numpy.uint8).reshape(len(images), 16)
