"""Samples to compare: new ones, and those of a run of diffguide-sample."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy
import torch
from torch import Tensor

from ...backbones.conditions import RowCondition
from ...figures.image_grids import quantize
from ...files.shards import read_rows
from ...files.weights import hash_weights
from ...guidance import Unguided
from ...models.protocols import Denoiser, Energy, is_guided
from ...samplers import Sampler, generate
from ..latents import decode_samples, pictures_of
from ..metric import EvalContext, MetricError

__all__ = ["NewSamples", "StoredSamples"]


class NewSamples:
    """New samples as bytes [B, C, H, W] with their classes, with the seeds of `diffguide-sample seed=<seed of the context>`.

    Arguments:
        guided: the model of the context under guidance.
        labels: class of each sample, or a row of a condition for each; None = no condition.
        described: what they are, for the facts.
    """

    def __init__(
        self,
        context: EvalContext,
        guided: Denoiser | Energy,
        sampler: Sampler,
        count: int,
        labels: Sequence[int] | RowCondition | None,
        described: str | None,
    ):
        self.context, self.guided, self.sampler = context, guided, sampler
        self.count, self.labels, self.described = count, labels, described

    def batch(self, first: int) -> tuple[Tensor, Tensor]:
        context, sampler, count = self.context, self.sampler, self.count
        end = min(first + context.batch_size, count)
        labels = None if self.labels is None else self.labels[first:end]

        def on_step(step: int, x: Tensor) -> None:
            steps = max(sampler.steps, step)
            done = first + (end - first) * (step - 1) // steps  # the batch counts as done after it is saved
            context.progress(done, count, "samples")

        seeds = range(context.seed + first, context.seed + end)
        (x,) = generate(self.guided, sampler, seeds, labels, context.shape, len(seeds), context.device, on_step)
        if not_finite := int((~x.flatten(1).isfinite().all(1)).sum()):
            raise MetricError(
                f"{not_finite} of the {len(seeds)} samples from {first} on are not finite: use a smaller guidance scale or "
                "more sampler steps"
            )
        classes = [-1] * len(seeds) if labels is None or isinstance(labels, RowCondition) else list(labels)
        return quantize(decode_samples(context.data, x.float())).cpu(), torch.tensor(classes)

    def facts(self) -> dict[str, Any]:
        return {
            "guidance": type(self.guided).__name__ if is_guided(self.guided) else Unguided.__name__,
            "sampler": type(self.sampler).__name__,
            "steps": self.sampler.steps,
            "labels": self.described,
            "sampled": "here",
        }


class StoredSamples:
    """The first samples of a run of `diffguide-sample`, as bytes [B, C, H, W] with their classes.

    Samples with prompts have no classes.

    Arguments:
        count: number of samples; None = all.

    Attributes:
        prompts: of each sample, "" = none; None for a run with classes.

    Raises:
        ValueError: no finished run, another checkpoint or shape, or fewer samples.
    """

    def __init__(self, folder: Path, count: int | None, context: EvalContext):
        self.folder, self.batch_size = folder, context.batch_size
        self.file = folder / "samples.npz"
        try:
            with open(folder / "manifest.jsonl", encoding="utf-8") as lines:
                self.header = dict(json.loads(next(lines)))
                self.prompts = read_prompts(lines)
            with numpy.load(self.file, allow_pickle=False) as arrays:
                self.y = torch.from_numpy(arrays["arr_1"][:count])
            self.count = len(self.y) if count is None else count
            if self.prompts is not None:  # their labels count the prompts
                self.prompts, self.y = self.prompts[: self.count], torch.full_like(self.y, -1)
            ends = read_rows(self.file, {0, len(self.y) - 1})
        except (OSError, ValueError, TypeError, KeyError, StopIteration, BadZipFile) as error:
            raise ValueError(
                f"metric.samples={folder} is not a finished run of diffguide-sample with manifest.jsonl and samples.npz"
            ) from error
        if wrong := self.find_mismatch(context, ends):
            raise ValueError(f"metric.samples={folder} has {wrong}")

    def find_mismatch(self, context: EvalContext, ends: numpy.ndarray) -> str | None:
        """What the samples have that does not fit the context, None = nothing.

        Arguments:
            ends: the first and the last image.
        """
        channels, *sides = pictures_of(context.data).shape
        if ends.shape[1:] != (*sides, channels):
            return f"images {list(ends.shape[1:])}; the model makes {[*sides, channels]}"
        if len(self.y) < self.count:
            return f"{len(self.y)} samples, fewer than metric.count={self.count}"
        if ends.dtype != numpy.uint8:
            return f"images of {ends.dtype}; diffguide-sample writes uint8"
        lowest, highest, classes = int(self.y.min()), int(self.y.max()), len(context.class_names)
        if lowest < -1 or highest >= classes:
            return f"labels from {lowest} to {highest}; the data have {classes} classes (-1 = no label)"
        theirs = str(self.header.get("checkpoint_sha256"))
        if context.checkpoint is not None and theirs != (ours := hash_weights(context.checkpoint)):
            return f"samples of a checkpoint with SHA-256 {theirs[:12]}; this one has {ours[:12]}"
        return None

    def batch(self, first: int) -> tuple[Tensor, Tensor]:
        rows = range(first, min(first + self.batch_size, self.count))
        images = torch.from_numpy(read_rows(self.file, rows)).permute(0, 3, 1, 2).contiguous()
        return images, self.y[rows.start : rows.stop]

    def facts(self) -> dict[str, Any]:
        facts = {key: self.header.get(key) for key in ("guidance", "sampler", "network_evaluations")}
        return facts | {"sampled": str(self.folder)}


def read_prompts(lines: Iterable[str]) -> list[str] | None:
    """The prompt of each sample, from the lines of a manifest below its header; None for a run without prompts.

    Raises:
        ValueError, TypeError: a line that is no JSON object, or a prompt that is no text.
    """
    rows = [dict(json.loads(line)) for line in lines]
    if not any("prompt" in row for row in rows):
        return None
    prompts = [row.get("prompt") or "" for row in rows]
    if not all(isinstance(prompt, str) for prompt in prompts):
        raise ValueError("a prompt is no text")
    return prompts
