"""Alignment of samples with their prompts, as a metric of a checkpoint."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...datasets import Shapes
from ...datasets.shape_pictures import ATTRIBUTES
from ...guidance.potentials.clip import ClipEncoder, PretrainedClip
from ...models.protocols import Denoiser, DenoiserWrapper
from ...runtime.ranges import check_whole
from ...samplers import Sampler
from ..latents import pictures_of
from ..metric import EvalContext, MetricError
from ..results import Figure, MetricResult, mean
from .alignment import chance_share, diversity_figures, judge_pictures, prompt_values, share_figures
from .clip_score import clip_scores
from .dual_encoder import DualEncoder
from .local import load_images
from .prompted_samples import PromptedSamples, Prompts, choose_prompts, list_captions
from .recall import choose_candidates, find_related, is_nearest
from .sampled import SampledMetric

__all__ = ["Alignment"]

NEW_SAMPLES = 400  # where no number is given


class Alignment(SampledMetric):
    """How well samples fit their prompts.

    For `dataset=shapes` an exact judge reads the attributes off the pixels (`shape_judge`): the share of pictures that show
    all that their prompts ask for, each attribute, diversity. For other data with captions a `DualEncoder` measures
    recall@1: the share of pictures that are nearer to their own text than to all others of K, beside that of real
    pictures, each once, and their captions. With K = 100 this is the R-precision of Xu et al., "AttnGAN", 2018, arXiv
    1711.10485, section 4. A CLIP model measures the CLIP score (`clip_score`) of either.

    Arguments:
        guidance: of new samples, model -> guided denoiser; None = no guidance.
        sampler: of new samples; None = `Heun()`.
        encoder: None = `DualEncoder()`; not used for shapes.
        samples: folder of a run of diffguide-sample of this checkpoint with prompts; None = new samples, with prompts of
            seen and of never shown combinations for shapes, else with held-out captions.
        count: number of samples, the first ones of a folder; None = all of a folder, or 400 new ones.
        candidates: K, at least 2; fewer where the data have not so many texts that say something else.
        clip: folder of a CLIP model of transformers, or its name on the hub; None = no CLIP score.
    """

    name = "alignment"
    conditions = False

    def __init__(
        self,
        guidance: Callable[[Denoiser], DenoiserWrapper] | None = None,
        sampler: Sampler | None = None,
        encoder: DualEncoder | None = None,
        samples: str | None = None,
        count: int | None = None,
        candidates: int = 100,
        clip: str | None = None,
    ):
        super().__init__(guidance, sampler, samples)
        self.encoder = encoder or DualEncoder()
        self.count = count if count is None else check_whole("metric.count", count, 1)
        self.candidates = check_whole("metric.candidates", candidates, 2)
        self.clip = clip
        self.clip_encoder: ClipEncoder | None = None

    def check(self, context: EvalContext) -> None:
        super().check(context)
        data = pictures_of(context.data)
        if not isinstance(data, Shapes):
            self.encoder.check(data)
            if context.split == "train":
                raise ValueError("metric=alignment needs captions on which no model was trained, got split=train")
        if self.folder is None:
            self.check_model(context)
            self.check_conditioning(context)
            self.check_sampler(context)
            choose_prompts(context, 1)
        else:
            self.check_texts(PromptedSamples(self, context, None, self.count).texts, data)
        if self.clip is not None:
            try:
                self.clip_encoder = PretrainedClip(self.clip)
            except ValueError as error:
                raise ValueError(f"metric.clip: {error}") from error

    def check_conditioning(self, context: EvalContext) -> None:
        """Raises ValueError unless the model reads texts."""
        conditioning = context.model.conditioning
        if conditioning is None or not conditioning.reads_text:
            raise ValueError(
                "metric=alignment draws samples of prompts, and this model takes no texts: take a model that was trained with "
                "condition=text, or metric.samples=<folder> of samples that guidance=clip drew; metric=quality measures classes"
            )

    def check_texts(self, texts: list[str], data: Any) -> None:
        """Raises ValueError for prompts with words that the judge of shapes does not have, and for none at all."""
        if not any(texts):
            raise ValueError(f"metric.samples={self.folder} has empty prompts alone")
        if isinstance(data, Shapes):
            try:
                prompt_values(texts)
            except ValueError as error:
                raise ValueError(f"metric.samples={self.folder}: {error}") from error

    def measure(self, context: EvalContext) -> MetricResult:
        prompts = choose_prompts(context, self.count or NEW_SAMPLES) if self.folder is None else None
        samples = PromptedSamples(self, context, prompts, self.count)
        x, texts = samples.load(), samples.texts
        with torch.autocast(context.device.type, enabled=False):
            if isinstance(pictures_of(context.data), Shapes):
                result = judge_shapes(x, texts)
            else:
                result = self.measure_recall(context, x, texts, prompts)
            figures = result.figures
            if self.clip_encoder is not None:
                figures = figures | self.score(context, "clip_score", x, texts)
        return result._replace(figures=figures, facts=samples.facts() | {"clip": self.clip} | result.facts)

    def measure_recall(
        self, context: EvalContext, x: Tensor, texts: list[str], prompts: Prompts | None
    ) -> MetricResult:
        """Recall@1 of the samples with a prompt, and of real pictures with their first captions."""
        data, captions = pictures_of(context.data), list_captions(context)
        asked = torch.tensor([bool(text) for text in texts])
        x, texts = x[asked], [text for text in texts if text]
        held_out = torch.tensor([row for row in context.rows.tolist() if captions[row]])
        rows = held_out[: len(texts)]
        if (
            prompts is not None and prompts.rows is not None
        ):  # every picture once: more samples do not make more of them
            rows = torch.tensor(list(dict.fromkeys(prompts.rows.tolist())))
        own = [captions[row][0] for row in rows.tolist()]
        real = load_images(data, context.split, rows)[0]
        said = [captions[row] for row in held_out.tolist()]
        pool = list(dict.fromkeys([*texts, *own, *(text for each in said for text in each)]))
        related = find_related([*said, *data.train.columns["captions"]])
        self.encoder.prepare(data, context.device, context.progress)
        vectors = self.encoder.encode_texts(pool)
        figures, count = {}, 0
        for name, pictures, given in (("recall_at_1", x, texts), ("recall_at_1_real", real, own)):
            try:
                candidates = choose_candidates(given, pool, related, self.candidates, context.seed)
            except ValueError as error:
                raise MetricError(str(error)) from error
            count = candidates.shape[1] if name == "recall_at_1" else count
            figures[name] = mean(is_nearest(self.encoder.encode_pictures(pictures), vectors, candidates), "share")
        figures["recall_at_1_chance"] = Figure(1 / count, None, len(x), "share")
        if self.clip_encoder is not None:
            figures |= self.score(context, "clip_score_real", real, own)
        return MetricResult(figures, {"candidates": count, "encoder": self.encoder.facts()})

    def score(self, context: EvalContext, name: str, x: Tensor, texts: list[str]) -> dict[str, Figure]:
        """The mean CLIP score of the pictures with a text."""
        assert self.clip_encoder is not None
        asked = torch.tensor([bool(text) for text in texts])
        given = [text for text in texts if text]
        return {name: mean(clip_scores(self.clip_encoder, x[asked], given, context.device), "of 2.5")}


def judge_shapes(x: Tensor, texts: list[str]) -> MetricResult:
    """What pictures of shapes show, against their prompts."""
    judgement = judge_pictures(x, texts)
    return MetricResult(
        share_figures(judgement) | diversity_figures(x, judgement),
        {"chance": chance_share(judgement.asked)},
        details={"attributes": {name: list(values) for name, values in ATTRIBUTES.items()}},
        arrays={"attributes": {"found": judgement.found.numpy(), "asked": judgement.asked.numpy()}},
    )
