"""Samples with prompts to measure: new ones, with prompts of the data, or those of a run of diffguide-sample."""

from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor

from ...backbones.conditions import RowCondition, concatenate_conditions
from ...datasets import Shapes
from ...datasets.shapes import prompts as draw_prompts
from ...guidance.potentials.values import find_text_potentials
from ...models.protocols import Denoiser, Energy
from ...randomness import fold
from ..latents import pictures_of
from ..metric import EvalContext
from .dual_encoder import CAPTIONS
from .image_sources import NewSamples, StoredSamples
from .sampled import SampledMetric

__all__ = ["Prompts", "PromptedSamples", "choose_prompts", "list_captions"]

PROMPT_PURPOSE = 9  # purpose of the seed


class Prompts(NamedTuple):
    """The texts of new samples, and the example of the split that each is from.

    Attributes:
        texts: one per sample.
        rows: of the split [N]; None = the texts are drawn from a grammar.
    """

    texts: list[str]
    rows: Tensor | None


class PromptedSamples:
    """Samples with prompts.

    Arguments:
        metric: with guidance, sampler and folder; its samples if it has a folder, else new ones.
        prompts: of new samples.
        count: number of samples; None = all of the folder.

    Attributes:
        texts: the prompt of each sample.

    Raises:
        ValueError: a folder that does not fit, or has samples without prompts.
    """

    source: NewSamples | StoredSamples

    def __init__(self, metric: SampledMetric, context: EvalContext, prompts: Prompts | None, count: int | None):
        self.context = context
        if prompts is None:
            assert metric.folder is not None
            self.source, self.texts = open_run(StoredSamples(metric.folder, count, context))
            return
        guided, self.texts = metric.guide(context), prompts.texts
        for potential in find_text_potentials(guided):
            potential.give_texts(range(context.seed, context.seed + len(self.texts)), self.texts)
        y = read_conditions(context, guided, prompts)
        self.source = NewSamples(context, guided, metric.sampler, len(self.texts), y, "prompts of the data")

    def load(self) -> Tensor:
        """All samples as bytes [N, C, H, W]; each batch of new ones is saved as a part."""
        context, count, parts = self.context, len(self.texts), []
        for first in range(0, count, context.batch_size):
            context.progress(first, count, "samples")

            def compute() -> dict[str, numpy.ndarray]:
                return {"images": self.source.batch(first)[0].numpy()}

            is_new = isinstance(self.source, NewSamples)
            part = context.parts.load_or_compute(f"samples_{first:010d}", compute) if is_new else compute()
            parts.append(torch.from_numpy(part["images"]))
        context.progress(count, count, "samples")
        return torch.cat(parts)

    def facts(self) -> dict[str, Any]:
        return {"samples": len(self.texts), "prompts": len(set(self.texts)), **self.source.facts()}


def open_run(source: StoredSamples) -> tuple[StoredSamples, list[str]]:
    """The samples of a run and their prompts; raises ValueError where there are none."""
    if source.prompts is None:
        raise ValueError(f"metric.samples={source.folder} has samples without prompts: sample with prompts=...")
    if len(source.prompts) < source.count:
        raise ValueError(f"metric.samples={source.folder} has {source.count} samples and {len(source.prompts)} prompts")
    return source, source.prompts


def choose_prompts(context: EvalContext, count: int) -> Prompts:
    """Prompts for new samples, a function of the seed.

    For `dataset=shapes` every second one asks for a combination that is never shown in training. For other data they are the
    first captions of examples of the split, each example once in every round through them.

    Raises:
        ValueError: data without captions.
    """
    if isinstance(pictures_of(context.data), Shapes):
        kinds = [draw_prompts(split, context.seed, (count + 1) // 2) for split in ("validation", "test")]
        return Prompts([text for pair in zip(*kinds) for text, _ in pair][:count], None)
    columns = getattr(pictures_of(context.data), context.split).columns
    captions = columns.get(CAPTIONS, ())
    rows = [row for row in context.rows.tolist() if len(captions) and captions[row] and captions[row][0]]
    if not rows:
        raise ValueError(f"metric=alignment needs captions, and the {context.split} split has none")
    rng = torch.Generator().manual_seed(fold(context.seed, PROMPT_PURPOSE))
    order = [rows[place] for place in torch.randperm(len(rows), generator=rng).tolist()]
    chosen = [order[place % len(order)] for place in range(count)]
    return Prompts([captions[row][0] for row in chosen], torch.tensor(chosen))


def list_captions(context: EvalContext) -> list[list[str]]:
    """The captions of every example of the split, without empty ones."""
    columns = getattr(pictures_of(context.data), context.split).columns
    return [[text for text in texts if text] for texts in columns.get(CAPTIONS, ())]


def read_conditions(context: EvalContext, guided: Denoiser | Energy, prompts: Prompts) -> RowCondition:
    """The conditions of prompts, a row each: those of the examples that they are from, or as the model reads the texts."""
    assert guided.conditioning is not None
    if prompts.rows is None:
        y = guided.conditioning.read(prompts.texts)
    else:  # every example once: an encoder of texts has encoded it already
        distinct, place = prompts.rows.unique(return_inverse=True)
        parts = [context.examples.fetch(part, context.device)[1] for part in distinct.split(context.batch_size)]
        y = concatenate_conditions([part.to("cpu") for part in parts])[place]
    assert isinstance(y, RowCondition)
    return y
