"""Out-of-distribution detection: AUROC of density, confidence or slope between the data and other inputs."""

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
from ..metric import PROTOCOLS, EvalContext, Figure, Metric, MetricResult

__all__ = ["OOD", "ConfidenceScore", "DensityScore", "OODScore", "SlopeScore", "auroc"]

OTHER_PURPOSE = 6  # purpose of the seed: the examples of another data set


def auroc(inside: Tensor, outside: Tensor, paired: bool) -> tuple[float, float]:
    """P(inside > outside) + P(inside = outside) / 2 and its standard error.

    DeLong, DeLong, Clarke-Pearson, "Comparing the Areas under Two or More Correlated Receiver Operating Characteristic
    Curves", 1988, eq. 5: from the variance, over examples, of the fraction of the other set below them.

    Arguments:
        inside, outside: scores [N] and [M], at least two each.
        paired: whether outside[i] was made from inside[i], so that they are not independent.
    """
    below = fraction_below(inside, outside)
    above = 1 - fraction_below(outside, inside)
    value = float(below.mean())
    if paired:
        return value, float((below + above).std()) / math.sqrt(len(inside))
    return value, math.sqrt(float(below.var()) / len(inside) + float(above.var()) / len(outside))


def fraction_below(of: Tensor, others: Tensor) -> Tensor:
    """The fraction of others [M] below each of [N], with half of those equal to it; float64."""
    ordered = others.double().sort().values
    low, high = (torch.searchsorted(ordered, of.double(), right=right) for right in (False, True))
    return (low + high).double() / (2 * len(others))


class OODScore:
    """A score of each example that is larger for data like those of the training.

    Attributes:
        name: in the names of figures.
        needs: the protocol that a model must have.
    """

    name: str
    needs: type[LogDensity] | type[Classifier]

    def __call__(self, model: Any, t: Tensor | None, x: Tensor) -> Tensor:
        """Scores [B] of x [B, ...]; t is None for a model without noise levels."""
        raise NotImplementedError


class DensityScore(OODScore):
    """log p(x), up to a constant."""

    name, needs = "density", LogDensity

    def __call__(self, model, t: Tensor | None, x: Tensor) -> Tensor:
        with torch.no_grad():
            return model.log_density(x, t, None)


class ConfidenceScore(OODScore):
    """max_y p(y | x): Hendrycks & Gimpel 2017, arXiv 1610.02136; as log-odds, so that none is rounded to 1."""

    name, needs = "confidence", Classifier

    def __call__(self, model, t: Tensor | None, x: Tensor) -> Tensor:
        with torch.no_grad():
            log_prob = model.log_prob(x, t).double()
        best, place = log_prob.max(1)
        rest = log_prob.scatter(1, place[:, None], -math.inf).logsumexp(1)
        return best - rest


class SlopeScore(OODScore):
    """-|grad log p(x)|: small where there is mass and not only density, Grathwohl et al. 2020, section 5.3.3."""

    name, needs = "slope", LogDensity

    def __call__(self, model, t: Tensor | None, x: Tensor) -> Tensor:
        with torch.no_grad():
            _, slope = value_and_gradient(lambda x: model.log_density(x, t, None), x)
        return -slope.flatten(1).norm(dim=1)


def uniform_noise(x: Tensor, noise: Noise) -> Tensor:
    """Uniform in [-1, 1]."""
    return (2 * torch.special.ndtr(noise.normal(0.0, 0).double()) - 1).to(x)


def make_constant(x: Tensor, noise: Noise) -> Tensor:
    """The mean of an example in every element."""
    return x.flatten(1).mean(1).reshape(-1, *[1] * (x.ndim - 1)).expand_as(x)


def invert(x: Tensor, noise: Noise) -> Tensor:
    """-x: the negative of an image."""
    return -x


def blur_box(x: Tensor, noise: Noise) -> Tensor:
    """An image blurred by means over 3 x 3 pixels."""
    return functional.avg_pool2d(functional.pad(x, [1] * 4, mode="replicate"), 3, stride=1)


def mirror(x: Tensor, noise: Noise) -> Tensor:
    """An image, flipped left to right."""
    return x.flip(-1)


PERTURBATIONS = {
    "noise": uniform_noise,
    "constant": make_constant,
    "inverted": invert,
}  # (example, noise) -> input
IMAGE_PERTURBATIONS = {"blurred": blur_box, "mirrored": mirror}


SCORES = (DensityScore(), ConfidenceScore(), SlopeScore())


class OOD(Metric):
    """AUROC of a split against noise, constants, negatives, blurred and mirrored images, and another data set.

    1 = each example of the split has a higher score, 0.5 = chance, below 0.5 = the score is misled. Grathwohl et al. 2020,
    arXiv 1912.03263, section 5.3; on misled densities: Nalisnick et al. 2019, arXiv 1810.09136. A model with noise levels is
    evaluated at t = 0. Figures auroc_<score>_<against>, with DeLong's standard error.

    Arguments:
        scores: what to score examples by.
        other: a data set of the same shape, whose split of the same name is compared too; None = none.
    """

    name = "ood"

    def __init__(self, scores: Sequence[OODScore] = SCORES, other: Dataset | None = None):
        if not scores:
            raise ValueError("scores must hold at least one score")
        self.scores, self.other = list(scores), other

    def check(self, context: EvalContext) -> None:
        super().check(context)
        for score in self.scores:
            if context.as_protocol(score.needs) is None:
                raise ValueError(
                    f"metric=ood needs {PROTOCOLS[score.needs]} for the score {score.name}; this checkpoint holds a "
                    f"{context.model_name}"
                )
            if score.needs is Classifier and not context.num_classes:
                raise ValueError(
                    f"metric=ood needs classes for the score {score.name}; this {context.model_name} has none: use the others, "
                    "metric.scores=[{_target_:diffguide.evaluation.classification.ood.DensityScore}]"
                )
            if score.needs is LogDensity and context.num_classes and not context.has_null:
                raise ValueError(
                    "metric=ood needs log p(x), so a model that dropped labels in training (p_uncond above 0); this "
                    f"{context.model_name} did not"
                )
        if self.other is not None and tuple(self.other.shape) != tuple(context.shape):
            raise ValueError(
                f"metric.other: its examples are of shape {list(self.other.shape)}, and the model's of {list(context.shape)}"
            )
        if context.n < 2:
            raise ValueError(f"metric=ood needs at least 2 examples of the {context.split} split, got {context.n}")

    def measure(self, context: EvalContext) -> MetricResult:
        perturbations = PERTURBATIONS | (IMAGE_PERTURBATIONS if len(context.shape) == 3 else {})

        def score_batch(first: int) -> dict[str, numpy.ndarray]:
            (x, _), noise = context.batch(first), context.noise(first)
            sets = {"data": x} | {name: perturb(x, noise) for name, perturb in perturbations.items()}
            return {f"{kind}_{name}": value for name, x in sets.items() for kind, value in self.score(context, x)}

        found = to_tensors(context.compute(score_batch)) | self.score_other(context)
        figures = {}
        against = [*perturbations, *([] if self.other is None else ["other"])]
        for score in self.scores:
            for name in against:
                inside, outside = found[f"{score.name}_data"], found[f"{score.name}_{name}"]
                value, error = auroc(inside, outside, paired=name != "other")
                figures[f"auroc_{score.name}_{name}"] = Figure(value, error, len(inside) + len(outside), "share")
        facts = {
            "against": against,
            "scores": [score.name for score in self.scores],
            "at": "the data, without noise" if self.model_of(context, self.scores[0]).schedule is None else "t = 0",
            "other": None if self.other is None else type(self.other).__name__,
        }
        means = {name: float(value.mean()) for name, value in found.items()}
        return MetricResult(figures, facts, details={"mean_scores": means})

    def model_of(self, context: EvalContext, score: OODScore) -> Any:
        """The model as a score needs it: a density or a classifier, with a schedule or None."""
        return context.require(score.needs)

    def score(self, context: EvalContext, x: Tensor) -> list[tuple[str, numpy.ndarray]]:
        """Every score of x, float64."""
        result = []
        for score in self.scores:
            model = self.model_of(context, score)
            t = None if model.schedule is None else torch.tensor(0.0, dtype=torch.float64)
            result.append((score.name, score(model, t, x).double().cpu().numpy()))
        return result

    def score_other(self, context: EvalContext) -> dict[str, Tensor]:
        """The scores of as many examples of the other data set, or of all if it has fewer."""
        other = self.other
        if other is None:
            return {}
        split = getattr(other, context.split)
        rng = torch.Generator().manual_seed(fold(context.seed, OTHER_PURPOSE))
        rows = torch.randperm(len(split.y), generator=rng)[: context.n].sort().values
        found: dict[str, list[numpy.ndarray]] = {}
        for first in range(0, len(rows), context.batch_size):

            def score_batch() -> dict[str, numpy.ndarray]:
                examples, _ = fetch_examples(split, rows[first : first + context.batch_size])
                x = other.preprocess(examples).to(context.device)
                return {f"{kind}_other": value for kind, value in self.score(context, x)}

            for name, scores in context.parts.part(f"other_{first:010d}", score_batch).items():
                found.setdefault(name, []).append(scores)
            context.progress(min(first + context.batch_size, len(rows)), len(rows), "other examples")
        return to_tensors(found)


def to_tensors(batches: dict[str, list[numpy.ndarray]]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(numpy.concatenate(arrays)) for name, arrays in batches.items()}
