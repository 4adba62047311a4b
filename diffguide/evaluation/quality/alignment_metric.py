"""Alignment of samples with their prompts, as a metric of a checkpoint."""

import json
from pathlib import Path

import torch

from ...datasets.shape_pictures import ATTRIBUTES, SIDES
from ...runtime.ranges import check_whole
from ..metric import EvalContext, Metric, MetricResult
from .alignment import chance_share, diversity_figures, judge_pictures, prompt_values, share_figures
from .image_sources import StoredSamples

__all__ = ["Alignment", "read_prompts"]


class Alignment(Metric):
    """Share of pictures of shapes that show all that their prompts ask for, and each attribute; diversity.

    An exact judge reads the attributes off the pixels (`shape_judge`).

    Arguments:
        samples: folder of a run of diffguide-sample of this checkpoint with prompts.
        count: number of its samples, the first ones; None = all.
    """

    name = "alignment"

    def __init__(self, samples: str | None = None, count: int | None = None):
        self.folder = None if samples is None else Path(samples).expanduser()
        self.count = count if count is None else check_whole("metric.count", count, 1)

    def check(self, context: EvalContext) -> None:
        super().check(context)
        if tuple(context.shape) not in [(3, side, side) for side in SIDES]:
            raise ValueError(
                f"metric=alignment judges pictures of dataset=shapes, [3, 16, 16] or [3, 32, 32]; this model makes "
                f"{list(context.shape)}"
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
        prompts = read_prompts(self.folder)[: source.count]
        if len(prompts) < source.count:
            raise ValueError(f"metric.samples={self.folder} has {source.count} samples and {len(prompts)} prompts")
        try:
            prompt_values(prompts)
        except ValueError as error:
            raise ValueError(f"metric.samples={self.folder}: {error}") from error
        return source, prompts

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


def read_prompts(folder: Path) -> list[str]:
    """The prompt of each sample, from the manifest of a run of diffguide-sample.

    Raises:
        ValueError: a manifest that cannot be read, or a sample without a prompt.
    """
    try:
        lines = (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
        prompts = [json.loads(line)["prompt"] for line in lines[1:]]
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"metric.samples={folder} has no manifest.jsonl that can be read") from error
    except KeyError as error:
        raise ValueError(f"metric.samples={folder} has samples without a prompt: sample with prompts=...") from error
    if not all(isinstance(prompt, str) for prompt in prompts):
        raise ValueError(f"metric.samples={folder} has samples without a prompt: sample with prompts=...")
    return prompts
