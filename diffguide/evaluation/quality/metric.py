"""How good the samples of a generator are: against real examples, on named features."""

import json
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy
import torch
from torch import Tensor

from ...datasets.base import fetch_examples
from ...figures.image_grids import quantize
from ...files.run_folders import hash_file
from ...files.shards import read_rows
from ...guidance import Unguided
from ...models.evaluation_counters import EvaluationCounter
from ...models.protocols import Denoiser, DenoiserWrapper, Energy
from ...randomness import fold
from ...samplers import Sampler, generate
from ..metric import SPLITS, EvalContext, Metric, MetricError, MetricResult
from ..probe import check_conditioning
from .features import Features
from .figures import FeatureSet, QualityComparison, check_overlap, is_small

__all__ = ["Quality"]

LABEL_PURPOSE = 7  # purpose of the seed


class Quality(Metric):
    """Frechet distance, KID, inception score, precision, recall, density, coverage, agreed labels, CAS, near copies.

    Samples are made as `diffguide-sample` makes them, or read from one of its runs, and compared as bytes. FD and KID are taken
    to the reference split, the training split by default as in the literature; precision, recall, density, coverage, agreed
    labels and accuracies to the examples of split=..., which the model has not been trained on.

    Arguments:
        guidance: what steers the sampler: called with the model.
        sampler: how noise becomes data.
        features: what images are compared in; they name the figures, fid stands for inception's alone.
        count: number of samples; more than the features are wide.
        samples: folder of a run of diffguide-sample of this checkpoint, whose first samples are taken; null = new ones.
        labels: of new samples: balanced = the classes in turn, data = as the reference split has them, null = no condition.
        reference: split that FD and KID are taken to: train, validation or test.
        subsets: of KID.
        subset_size: examples in each; at most half of the smaller set is taken, since an error cannot be told from more.
        splits: of the inception score, where the features come with a classifier.
        compared: most examples of each side for precision, recall, density, coverage and copies.
        classification: whether a classifier is trained on the samples alone (classification accuracy score).

    Raises:
        ValueError: an argument out of its range.
    """

    name = "quality"

    def __init__(
        self, guidance: Callable[[Denoiser], DenoiserWrapper], sampler: Sampler, features: Features, count: int,
        samples: str | None, labels: str | None, reference: str, subsets: int, subset_size: int, splits: int,
        compared: int, classification: bool,
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
        self.guidance, self.sampler, self.features, self.count = guidance, sampler, features, count
        self.folder = None if samples is None else Path(samples).expanduser()
        self.asked, self.reference, self.subsets, self.subset_size = labels, reference, subsets, subset_size
        self.splits, self.compared, self.classification = splits, compared, classification

    def check(self, context: EvalContext) -> None:
        super().check(context)
        alone = isinstance(context.model, Energy)
        if context.as_protocol(Denoiser) is None and not alone:
            raise ValueError(
                f"metric=quality needs a denoiser or an energy; this checkpoint holds a {context.model_name}"
            )
        if alone and getattr(self.guidance, "func", self.guidance) is not Unguided:
            raise ValueError(
                f"metric.guidance steers a denoiser, and a {context.model_name} is an energy, which follows its labels by "
                "itself: take guidance@metric.guidance=none"
            )
        if len(context.shape) != 3:
            raise ValueError(
                f"metric=quality compares images, and this model makes vectors of shape {list(context.shape)}: a sweep of "
                "diffguide-sample -m measures those"
            )
        if context.split == "train":
            held = [split for split in ("validation", "test") if len(getattr(context.data, split).y)]
            instead = (
                " or ".join(held) or "data that hold some back, for these have neither validation nor test examples"
            )
            raise ValueError(
                "metric=quality: split=train is what the model was trained on, and coverage and copies must be measured "
                f"against what it has not seen: take {instead} (metric.reference=train is what FD is taken to)"
            )
        self.features.check(context.data)
        width, size = self.features.width(context.shape), len(getattr(context.data, self.reference).y)
        for number, what, key in ((self.count, "samples", "count"), (size, f"{self.reference} examples", "reference")):
            if number <= width:
                raise ValueError(
                    f"metric.{key}: {number} {what} are too few for {width} features of {self.features.name}, whose "
                    f"covariance needs more than {width}"
                )
        if context.n < 10:
            raise ValueError(f"metric=quality needs at least 10 examples of the {context.split} split, got {context.n}")
        if self.folder is not None:
            StoredSamples(self.folder, self.count, context)
            return
        guided = self.guide(context)
        try:
            self.sampler.times(guided)
        except ValueError as error:
            raise ValueError(f"metric.sampler: {error}") from error
        if getattr(guided, "needs_null", False):
            check_conditioning(context.uncounted, context.shape, context.device)  # which counts nothing
        if self.sample_labels(context, guided) is None and not guided.has_null:
            raise ValueError(
                "metric.labels=null needs a model that dropped labels in training (guidance=cfg); this one never did"
            )

    def guide(self, context: EvalContext) -> Denoiser | Energy:
        """What is sampled: the model with its guidance, an energy as it is."""
        return context.model if isinstance(context.model, Energy) else self.guidance(context.model)

    def sample_labels(self, context: EvalContext, guided: Denoiser | Energy) -> list[int] | None:
        """The class of every new sample, None = no condition."""
        if self.asked is None or not guided.num_classes:
            return None
        if self.asked == "balanced":
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
        reference, held_out = (
            self.gather_features(context, name, len(rows), RealImages(context, split, rows).batch)
            for name, split, rows in (
                ("reference", self.reference, everything),
                ("held-out", context.split, context.rows),
            )
        )
        of_held_out = check_overlap(context)
        source: NewSamples | StoredSamples = (
            NewSamples(self, context) if self.folder is None else StoredSamples(self.folder, self.count, context)
        )
        samples = self.gather_features(context, "samples", self.count, source.batch, is_small(context.shape))
        with torch.autocast(context.device.type, enabled=False):
            found = QualityComparison(self, context, samples, reference, held_out).figures(of_held_out)
        facts = {
            "features": {"name": self.features.name, **self.features.facts()}, "samples": self.count,
            **source.facts(), "reference": f"{len(reference.y)} {self.reference} examples",
            "held_out": f"{context.n} {context.split} examples", **found.facts,
        }  # fmt: skip
        return MetricResult(found.figures, facts, details=found.details, notes=found.notes)

    def gather_features(
        self, context: EvalContext, what: str, count: int, batch: Callable[[int], tuple[Tensor, Tensor]],
        keep_images: bool = False,
    ) -> FeatureSet:  # fmt: skip
        """The features of what comes in batches; each batch is kept when it is done."""
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
    """[B, 16] uint8 of images as bytes [B, C, H, W], equal where all their bytes are."""
    whole = b"".join(blake2b(image.tobytes(), digest_size=16).digest() for image in images.cpu().numpy())
    return numpy.frombuffer(whole, dtype=numpy.uint8).reshape(len(images), 16)


class RealImages:
    """Examples of a split as bytes [B, C, H, W], with their classes."""

    def __init__(self, context: EvalContext, split: str, rows: Tensor):
        self.data, self.split, self.rows, self.batch_size = context.data, split, rows, context.batch_size

    def batch(self, first: int) -> tuple[Tensor, Tensor]:
        x, y = fetch_examples(getattr(self.data, self.split), self.rows[first : first + self.batch_size])
        return quantize(self.data.preprocess(x)), y


class NewSamples:
    """New samples: sample i has the seed of the context + i, as that of `diffguide-sample seed=...` has."""

    def __init__(self, metric: Quality, context: EvalContext):
        self.metric, self.context, self.guide = metric, context, metric.guide(context)
        self.classes = metric.sample_labels(context, self.guide)

    def batch(self, first: int) -> tuple[Tensor, Tensor]:
        metric, context, count = self.metric, self.context, self.metric.count
        rows = range(first, min(first + context.batch_size, count))
        labels = None if self.classes is None else self.classes[rows.start : rows.stop]

        def on_step(step: int, x: Tensor) -> None:
            done = first + len(rows) * (step - 1) // max(metric.sampler.steps, step)  # all of it once it is kept
            context.progress(done, count, "samples")  # where a signal stops it

        seeds = range(context.seed + rows.start, context.seed + rows.stop)
        (x,) = generate(self.guide, metric.sampler, seeds, labels, context.shape, len(rows), context.device, on_step)
        if lost := int((~x.flatten(1).isfinite().all(1)).sum()):
            raise MetricError(
                f"{lost} of the {len(rows)} samples from {first} on are not finite: a smaller guidance scale or more "
                "sampler steps may help"
            )
        return quantize(x.float()).cpu(), torch.tensor(labels or [-1] * len(rows))

    def facts(self) -> dict[str, Any]:
        sampler, guide = self.metric.sampler, self.guide
        name = Unguided.__name__ if isinstance(guide, EvaluationCounter) else type(guide).__name__
        return {
            "guidance": name, "sampler": type(sampler).__name__, "steps": sampler.steps,
            "labels": self.metric.asked if self.classes else None, "sampled": "here",
        }  # fmt: skip


class StoredSamples:
    """The first samples of a run of `diffguide-sample`.

    Raises:
        ValueError: no finished run, one of another checkpoint or shape, or with fewer samples.
    """

    def __init__(self, folder: Path, count: int, context: EvalContext):
        self.folder, self.count, self.batch_size = folder, count, context.batch_size
        self.file = folder / "samples.npz"
        try:
            with open(folder / "manifest.jsonl", encoding="utf-8") as lines:
                self.header = dict(json.loads(next(lines)))
            with numpy.load(self.file, allow_pickle=False) as arrays:
                self.y = torch.from_numpy(arrays["arr_1"][:count])
            ends = read_rows(self.file, {0, len(self.y) - 1})
        except (OSError, ValueError, TypeError, KeyError, StopIteration, BadZipFile) as error:
            raise ValueError(
                f"metric.samples={folder} is no finished run of diffguide-sample: it needs its manifest.jsonl and samples.npz"
            ) from error
        shape, classes = ends.shape[1:], len(context.class_names)
        channels, *sides = context.shape
        if shape != (*sides, channels):
            raise ValueError(
                f"metric.samples={folder} has images {list(shape)}, and the model makes {[*sides, channels]}"
            )
        if len(self.y) < count:
            raise ValueError(f"metric.samples={folder} has {len(self.y)} samples, fewer than metric.count={count}")
        if ends.dtype != numpy.uint8:
            raise ValueError(f"metric.samples={folder} has images of {ends.dtype}, and diffguide-sample writes uint8")
        if int(self.y.min()) < -1 or int(self.y.max()) >= classes:
            raise ValueError(
                f"metric.samples={folder} has labels from {int(self.y.min())} to {int(self.y.max())}, and the data have "
                f"{classes} classes (-1 = no label)"
            )
        theirs = self.header.get("checkpoint_sha256")
        if context.checkpoint is not None and theirs != (ours := hash_file(context.checkpoint)):
            raise ValueError(
                f"metric.samples={folder} was sampled from a checkpoint with SHA-256 {str(theirs)[:12]}, and this one has "
                f"{ours[:12]}"
            )

    def batch(self, first: int) -> tuple[Tensor, Tensor]:
        rows = range(first, min(first + self.batch_size, self.count))
        images = torch.from_numpy(read_rows(self.file, rows)).permute(0, 3, 1, 2).contiguous()
        return images, self.y[rows.start : rows.stop]

    def facts(self) -> dict[str, Any]:
        kept = {key: self.header.get(key) for key in ("guidance", "sampler", "network_evaluations")}
        return kept | {"sampled": str(self.folder)}
