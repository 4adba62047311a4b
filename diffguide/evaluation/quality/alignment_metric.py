"""Alignment of samples with their prompts, as a metric of a checkpoint."""

from pathlib import Path

import torch

from ...datasets.shape_pictures import ATTRIBUTES, SIDES
from ...runtime.ranges import check_whole
from ..latents import pictures_of
from ..metric import EvalContext, Metric, MetricResult
from .alignment import chance_share, diversity_figures, judge_pictures, prompt_values, share_figures
from .image_sources import StoredSamples

__all__ = ["Alignment"]


class Alignment(Metric):
    """Share of pictures of shapes that show all that their prompts ask for, and each attribute; diversity.

    An exact judge reads the attributes off the pixels (`shape_judge`).

    Arguments:
        samples: folder of a run of diffguide-sample of this checkpoint with prompts.
        count: number of its samples, the first ones; None = all.
    """

    name = "alignment"
    conditions = False

    def __init__(self, samples: str | None = None, count: int | None = None):
        self.folder = None if samples is None else Path(samples).expanduser()
        self.count = count if count is None else check_whole("metric.count", count, 1)

    def check(self, context: EvalContext) -> None:
        super().check(context)
        shape = pictures_of(context.data).shape
        if tuple(shape) not in [(3, side, side) for side in SIDES]:
            raise ValueError(
                f"metric=alignment judges pictures of dataset=shapes, [3, 16, 16] or [3, 32, 32]; this model makes "
                f"{list(shape)}"
            )
        self.read(context)

    def read(self, context: EvalContext) -> tuple[StoredSamples, list[str]]:
        """The samples and their prompts.

        Raises:
            ValueError: no folder, a folder without prompts, or prompts with words of other data.
        """
        if self.folder is None:
            raise ValueError("metric.samples must be given: a folder of diffguide-sample with prompts=...")
        source = StoredSamples(self.folder, self.count, context)
        if source.prompts is None:
            raise ValueError(f"metric.samples={self.folder} has samples without prompts: sample with prompts=...")
        if len(source.prompts) < source.count:
            raise ValueError(
                f"metric.samples={self.folder} has {source.count} samples and {len(source.prompts)} prompts"
            )
        try:
            prompt_values(source.prompts)
        except ValueError as error:
            raise ValueError(f"metric.samples={self.folder}: {error}") from error
        return source, source.prompts

    def measure(self, context: EvalContext) -> MetricResult:
        source, prompts = self.read(context)
        parts = []
        for first in range(0, source.count, context.batch_size):
            context.progress(first, source.count, "samples")
            parts.append(source.batch(first)[0])
        x = torch.cat(parts)
        judgement = judge_pictures(x, prompts)
        context.progress(source.count, source.count, "samples")
        facts = {
            "samples": source.count,
            "prompts": len(set(prompts)),
            "chance": chance_share(judgement.asked),
            **source.facts(),
        }
        arrays = {"attributes": {"found": judgement.found.numpy(), "asked": judgement.asked.numpy()}}
        return MetricResult(
            share_figures(judgement) | diversity_figures(x, judgement),
            facts,
            details={"attributes": {name: list(values) for name, values in ATTRIBUTES.items()}},
            arrays=arrays,
        )
