"""Out-of-distribution detection: AUROC of density, confidence or gradient norm between the data and other inputs."""

import math
from collections.abc import Sequence
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.nn import functional

from ...datasets import Dataset
from ...datasets.base import fetch_examples
from ...models.level_classifier import value_and_gradient
from ...models.protocols import Classifier, LogDensity
from ...randomness import Noise, fold
from ..latents import refuse_latents
from ..metric import PROTOCOLS, EvalContext, Metric
from ..results import Figure, MetricResult

__all__ = ["OOD", "ConfidenceScore", "DensityScore", "OODScore", "SlopeScore", "auroc"]

OTHER_PURPOSE = 6  # purpose of the seed: examples of another data set


def auroc(inside: Tensor, outside: Tensor, paired: bool) -> tuple[float, float]:
    """P(inside > outside) + P(inside = outside) / 2 and its standard error.

    DeLong, DeLong, Clarke-Pearson, "Comparing the Areas under Two or More Correlated Receiver Operating Characteristic
    Curves", 1988, eq. 5: from the variance, over examples, of the fraction of the other set below them.

    Arguments:
        inside, outside: scores [N] and [M], at least two each.
        paired: whether outside[i] is a function of inside[i], so that they are not independent.
    """
    below = fraction_below(inside, outside)
    above = 1 - fraction_below(outside, inside)
    value = float(below.mean())
    if paired:
        return value, float((below + above).std()) / math.sqrt(len(inside))
    return value, math.sqrt(float(below.var()) / len(inside) + float(above.var()) / len(outside))


def fraction_below(scores: Tensor, others: Tensor) -> Tensor:
    """The fraction of others [M] below each of the scores [N], plus half the fraction equal to it; [N] float64."""
    ordered = others.double().sort().values
    below = torch.searchsorted(ordered, scores.double())
    not_above = torch.searchsorted(ordered, scores.double(), right=True)
    return (below + not_above).double() / (2 * len(others))


class OODScore:
    """A score of each example that is larger for data like the training data.

    Attributes:
        name: in the names of figures.
        needs: the protocol that a model must implement.
    """

    name: str
    needs: type[LogDensity] | type[Classifier]

    def __call__(self, model: Any, t: Tensor | None, x: Tensor) -> Tensor:
        """Scores [B] of x [B, ...]; t is None for a model without noise levels."""
        raise NotImplementedError


class DensityScore(OODScore):
    """log p(x), up to a constant."""

    name = "density"
    needs = LogDensity

    def __call__(self, model, t: Tensor | None, x: Tensor) -> Tensor:
        with torch.no_grad():
            return model.log_density(x, t, None)


class ConfidenceScore(OODScore):
    """max_y p(y | x): Hendrycks & Gimpel 2017, arXiv 1610.02136; as log-odds, which are not rounded near p = 1."""

    name = "confidence"
    needs = Classifier

    def __call__(self, model, t: Tensor | None, x: Tensor) -> Tensor:
        with torch.no_grad():
            log_prob = model.log_prob(x, t).double()
        best, label = log_prob.max(1)
        rest = log_prob.scatter(1, label[:, None], -math.inf).logsumexp(1)
        return best - rest


class SlopeScore(OODScore):
    """-|grad log p(x)|: the gradient is small where the model has mass, Grathwohl et al. 2020, section 5.3.3."""

    name = "slope"
    needs = LogDensity

    def __call__(self, model, t: Tensor | None, x: Tensor) -> Tensor:
        with torch.no_grad():
            _, slope = value_and_gradient(lambda x: model.log_density(x, t, None), x)
        return -slope.flatten(1).norm(dim=1)


def perturb(x: Tensor, noise: Noise) -> dict[str, Tensor]:
    """The inputs that examples x are compared with, by name; images are also blurred and mirrored.

    noise: uniform in [-1, 1]. constant: the mean of the example. inverted: -x. blurred: the mean over 3 x 3 pixels.
    """
    uniform = 2 * torch.special.ndtr(noise.normal(0.0, 0).double()) - 1
    mean = x.flatten(1).mean(1).reshape(-1, *[1] * (x.ndim - 1))
    inputs = {"noise": uniform.to(x), "constant": mean.expand_as(x), "inverted": -x}
    if x.ndim == 4:
        padded = functional.pad(x, [1] * 4, mode="replicate")
        inputs |= {"blurred": functional.avg_pool2d(padded, 3, stride=1), "mirrored": x.flip(-1)}
    return inputs


SCORES = (DensityScore(), ConfidenceScore(), SlopeScore())
PERTURBATIONS = ("noise", "constant", "inverted", "blurred", "mirrored")  # the last two are for images


class OOD(Metric):
    """AUROC of a split against noise, constants, negatives, blurred and mirrored images, and another data set.

    1 = each example of the split has a higher score, 0.5 = chance, below 0.5 = other inputs have higher scores (Nalisnick
    et al. 2019, arXiv 1810.09136). Grathwohl et al. 2020, arXiv 1912.03263, section 5.3. A model with noise levels is
    evaluated at t = 0. Figures auroc_<score>_<against>, with DeLong's standard error.

    Arguments:
        scores: of an example, at least one.
        other: a data set of the same shape, whose split of the same name is also compared; None = none.
    """

    name = "ood"

    def __init__(self, scores: Sequence[OODScore] = SCORES, other: Dataset | None = None):
        if not scores:
            raise ValueError("scores must hold at least one score")
        self.scores, self.other = list(scores), other

    def check(self, context: EvalContext) -> None:
        refuse_latents(self.name, context.data)
        super().check(context)
        for score in self.scores:
            if context.as_protocol(score.needs) is None:
                raise ValueError(
                    f"metric=ood needs {PROTOCOLS[score.needs]} for the score {score.name}; this checkpoint holds a "
                    f"{context.model_name}"
                )
            if score.needs is Classifier and not context.num_classes:
                raise ValueError(
                    f"metric=ood needs classes for the score {score.name}; this {context.model_name} has none: use "
                    "metric.scores=[{_target_:diffguide.evaluation.classification.ood.DensityScore}]"
                )
            if score.needs is LogDensity and context.num_classes and not context.has_null:
                raise ValueError(
                    "metric=ood needs log p(x), so a model that dropped labels in training (p_uncond above 0); this "
                    f"{context.model_name} did not"
                )
        if self.other is not None and tuple(self.other.shape) != tuple(context.shape):
            raise ValueError(
                f"metric.other has examples of shape {list(self.other.shape)}; the model needs {list(context.shape)}"
            )
        if context.n < 2:
            raise ValueError(f"metric=ood needs at least 2 examples of the {context.split} split, got {context.n}")

    def measure(self, context: EvalContext) -> MetricResult:
        scores = to_tensors(context.compute_batches(lambda first: self.score_batch(context, first))) | self.score_other(
            context
        )
        against = list(PERTURBATIONS if len(context.shape) == 3 else PERTURBATIONS[:3])
        if self.other is not None:
            against.append("other")
        figures = {}
        for score in self.scores:
            for name in against:
                inside, outside = scores[f"{score.name}_data"], scores[f"{score.name}_{name}"]
                value, error = auroc(inside, outside, paired=name != "other")
                figures[f"auroc_{score.name}_{name}"] = Figure(value, error, len(inside) + len(outside), "share")
        model: Any = context.require(self.scores[0].needs)
        facts = {
            "against": against,
            "scores": [score.name for score in self.scores],
            "at": "the data, without noise" if model.schedule is None else "t = 0",
            "other": None if self.other is None else type(self.other).__name__,
        }
        means = {name: float(value.mean()) for name, value in scores.items()}
        return MetricResult(figures, facts, details={"mean_scores": means})

    def score_batch(self, context: EvalContext, first: int) -> dict[str, numpy.ndarray]:
        """Every score of a batch and of its perturbations."""
        x, _ = context.batch(first)
        inputs = {"data": x} | perturb(x, context.noise(first))
        return {key: value for name, x in inputs.items() for key, value in self.score(context, x, name).items()}

    def score(self, context: EvalContext, x: Tensor, name: str) -> dict[str, numpy.ndarray]:
        """{<score>_<name>: scores of x, [B] float64}."""
        result = {}
        for score in self.scores:
            model: Any = context.require(score.needs)
            t = None if model.schedule is None else torch.tensor(0.0, dtype=torch.float64)
            result[f"{score.name}_{name}"] = score(model, t, x).double().cpu().numpy()
        return result

    def score_other(self, context: EvalContext) -> dict[str, Tensor]:
        """The scores of as many examples of the other data set, or of all if it has fewer."""
        other = self.other
        if other is None:
            return {}
        split = getattr(other, context.split)
        rng = torch.Generator().manual_seed(fold(context.seed, OTHER_PURPOSE))
        rows = torch.randperm(len(split.y), generator=rng)[: context.n].sort().values
        batches: dict[str, list[numpy.ndarray]] = {}
        for first in range(0, len(rows), context.batch_size):

            def score_batch() -> dict[str, numpy.ndarray]:
                examples, _ = fetch_examples(split, rows[first : first + context.batch_size])
                return self.score(context, other.preprocess(examples).to(context.device), "other")

            for name, scores in context.parts.load_or_compute(f"other_{first:010d}", score_batch).items():
                batches.setdefault(name, []).append(scores)
            context.progress(min(first + context.batch_size, len(rows)), len(rows), "other examples")
        return to_tensors(batches)


def to_tensors(batches: dict[str, list[numpy.ndarray]]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(numpy.concatenate(arrays)) for name, arrays in batches.items()}
