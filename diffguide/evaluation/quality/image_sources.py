"""Images to compare: examples of a split, new samples, and those of a run of diffguide-sample."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy
import torch
from torch import Tensor

from ...datasets.base import fetch_examples
from ...figures.image_grids import quantize
from ...files.run_folders import hash_file
from ...files.shards import read_rows
from ...guidance import Unguided
from ...models.protocols import is_guided
from ...samplers import generate
from ..metric import EvalContext, MetricError

if TYPE_CHECKING:
    from .metric import Quality

__all__ = ["NewSamples", "RealImages", "StoredSamples"]


class RealImages:
    """Examples of a split as bytes [B, C, H, W], with their classes."""

    def __init__(self, context: EvalContext, split: str, rows: Tensor):
        self.data, self.split, self.rows, self.batch_size = context.data, split, rows, context.batch_size

    def batch(self, first: int) -> tuple[Tensor, Tensor]:
        x, y = fetch_examples(getattr(self.data, self.split), self.rows[first : first + self.batch_size])
        return quantize(self.data.preprocess(x)), y


class NewSamples:
    """New samples, with the seeds of `diffguide-sample seed=<seed of the context>`."""

    def __init__(self, metric: "Quality", context: EvalContext):
        self.metric, self.context, self.guided = metric, context, metric.guide(context)
        self.classes = metric.sample_labels(context, self.guided)

    def batch(self, first: int) -> tuple[Tensor, Tensor]:
        metric, context, count = self.metric, self.context, self.metric.count
        rows = range(first, min(first + context.batch_size, count))
        labels = None if self.classes is None else self.classes[rows.start : rows.stop]

        def on_step(step: int, x: Tensor) -> None:
            steps = max(metric.sampler.steps, step)
            done = first + len(rows) * (step - 1) // steps  # a batch is done when it is kept
            context.progress(done, count, "samples")

        seeds = range(context.seed + rows.start, context.seed + rows.stop)
        (x,) = generate(self.guided, metric.sampler, seeds, labels, context.shape, len(rows), context.device, on_step)
        if lost := int((~x.flatten(1).isfinite().all(1)).sum()):
            raise MetricError(
                f"{lost} of the {len(rows)} samples from {first} on are not finite: use a smaller guidance scale or more "
                "sampler steps"
            )
        return quantize(x.float()).cpu(), torch.tensor(labels or [-1] * len(rows))

    def facts(self) -> dict[str, Any]:
        sampler, guided = self.metric.sampler, self.guided
        name = type(guided).__name__ if is_guided(guided) else Unguided.__name__
        return {
            "guidance": name,
            "sampler": type(sampler).__name__,
            "steps": sampler.steps,
            "labels": self.metric.new_labels if self.classes else None,
            "sampled": "here",
        }


class StoredSamples:
    """The first samples of a run of `diffguide-sample`.

    Raises:
        ValueError: no finished run, another checkpoint or shape, or fewer samples.
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
                f"metric.samples={folder} is no finished run of diffguide-sample, with manifest.jsonl and samples.npz"
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
