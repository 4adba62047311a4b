"""A conditional denoiser as a classifier: the class whose condition predicts the noise of an image best.

For a denoiser that is E[eps | x_t, y], with w = 1 over all log-SNRs (I-MMSE; Kingma et al. 2021, arXiv 2107.00630, eq. 17-18),

    log p(x | y) - log p(x | y') = 1/2 int w(log_snr) (E||eps - eps_y'||^2 - E||eps - eps_y||^2) d log_snr.

Li et al., "Your Diffusion Model is Secretly a Zero-Shot Classifier", 2023, arXiv 2303.16203; Clark & Jaini, "Text-to-Image
Diffusion Models are Zero-Shot Classifiers", 2023, arXiv 2303.15233; Chen et al., "Robust Classification via a Single
Diffusion Model", 2023, arXiv 2305.15241.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...models.protocols import Denoiser
from ...randomness import Noise, fold
from ...runtime.ranges import check_range, check_whole
from ..metric import Report
from ..noise_levels import time_of_log_snr
from ..parts import MetricError
from .weighting import Bell, Piecewise, Spacing, Weighting

__all__ = ["Budget", "ZeroShot", "ZeroShotPredictions"]

LEVEL_PURPOSE = 1  # purpose of an image's seed, besides its noise
STAGES = ((8, 4), (16, 3), (32, 2), (64, 2), (128, 2), (256, 2))  # (evaluations, classes that remain after them)
GOLDEN_RATIO = (math.sqrt(5) - 1) / 2  # its first k multiples modulo 1 are evenly spaced for any k
# evaluations at which predictions are recorded
MARKS = tuple(digit * 10**power for power in range(6) for digit in (1, 2, 5))


class Budget:
    """The number of evaluations of each class of an image: the same for all, or more for the leading classes.

    The stages are those of the adaptive evaluation of Li et al. 2023, arXiv 2303.16203; the margin adds a paired test.

    Arguments:
        evaluations: of a class that is never dropped, at least 1.
        stages: [evaluations, keep]: after `evaluations` of each remaining class at most `keep` classes remain.
        margin: a stage drops classes whose mean is more than `margin` standard errors of the paired differences below that
            of the leader; None = only `keep` drops classes. An image with one remaining class is finished.

    Attributes:
        stages: those within the budget.

    Raises:
        ValueError: numbers below 1, stages that do not increase in evaluations and decrease in classes, a margin below 0
            or without stages.
    """

    def __init__(self, evaluations: int = 400, stages: Sequence[Sequence[int]] = STAGES, margin: float | None = 3.0):
        self.evaluations = check_whole("evaluations", evaluations, 1)
        pairs = [list(stage) for stage in stages]
        ends = [0, *(pair[0] for pair in pairs)]
        if any(len(pair) != 2 or pair[1] < 1 for pair in pairs) or any(a >= b for a, b in zip(ends, ends[1:])):
            raise ValueError(f"stages must be pairs [evaluations, keep] >= 1 with increasing evaluations, got {pairs}")
        if any(a[1] < b[1] for a, b in zip(pairs, pairs[1:])):
            raise ValueError(f"a stage must not keep more classes than an earlier stage, got {pairs}")
        if margin is not None and (not stages or not margin >= 0):
            raise ValueError(f"margin must be at least 0 and needs stages, got {margin:g} and {len(stages)} stages")
        if margin is not None and pairs[0][0] < 2:
            raise ValueError(f"a margin needs at least 2 evaluations before the first stage, got {pairs[0][0]}")
        self.margin = margin
        self.stages = [(last, keep) for last, keep in pairs if last < evaluations]

    def segments(self) -> list[tuple[int, int, int | None]]:
        """(first, last + 1, classes to keep after them or None) of the evaluations between two marks or stages."""
        keep = dict(self.stages)
        ends = sorted({mark for mark in MARKS if mark < self.evaluations} | set(keep) | {self.evaluations})
        return [(first, last, keep.get(last)) for first, last in zip([0, *ends], ends)]

    def select_remaining(self, logits: Tensor, errors: Tensor, keep: int) -> Tensor:
        """The classes that a stage keeps, [B, C] bool, from logits [B, C] and the errors [B, C, k] of k evaluations."""
        rank = logits.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        remaining = rank < keep
        if self.margin is not None:
            leader = logits.argmax(1, keepdim=True)
            differences = errors - errors.gather(1, leader[..., None].expand(-1, -1, errors.shape[2]))
            allowed = self.margin * differences.std(2) / math.sqrt(errors.shape[2])
            remaining &= logits >= logits.gather(1, leader) - allowed
        return remaining

    def max_evaluations(self, classes: int) -> float:
        """The maximum number of evaluations of an image, per class."""
        spent = 0
        remaining = classes
        first = 0
        for last, keep in [*self.stages, (self.evaluations, 1)]:
            spent += remaining * (last - first)
            remaining = min(remaining, keep)
            first = last
        return spent / classes


class ZeroShotPredictions(NamedTuple):
    """The predictions for N images.

    log_prob: [N, C] normalised log-probabilities, float64.
    evaluations: [N] network evaluations of each image, over all classes.
    running: [M, N] the leading class after each mark.
    spent: [M, N] evaluations up to each mark.
    """

    log_prob: Tensor
    evaluations: Tensor
    running: Tensor
    spent: Tensor

    @classmethod
    def concatenate(cls, parts: Sequence["ZeroShotPredictions"]) -> "ZeroShotPredictions":
        """The predictions for the images of all parts."""
        log_prob, evaluations, running, spent = zip(*parts)
        return cls(torch.cat(log_prob), torch.cat(evaluations), torch.cat(running, 1), torch.cat(spent, 1))


class ZeroShot:
    """log p(y | x) = -1/(2 T) int w(log_snr) E||eps - eps_hat(x_t, y)||^2 d log_snr + log p(y) + const.

    All classes of an image get the same (log_snr, eps), so that their common part cancels (arXiv 2303.16203, "variance
    reduction via difference testing"). The log-SNRs of an image are quantiles of the spacing at multiples of the golden
    ratio modulo 1, from a random start: evenly spaced after any number of evaluations. All random numbers of an image are
    functions of its seed.

    A dropped class keeps its distance from the leader of that stage, so every class has a probability.

    Arguments:
        weighting: w; None = 1 for log-SNRs from -6 to 6.
        spacing: of the log-SNRs at which the integral is evaluated; None = `Bell()`.
        budget: number of evaluations; None = `Budget()`.
        temperature: T, positive; 1 = the likelihood of the network.
        chunk: network evaluations in one batch, at least 1; does not change the predictions.
    """

    def __init__(
        self,
        weighting: Weighting | None = None,
        spacing: Spacing | None = None,
        budget: Budget | None = None,
        temperature: float = 1.0,
        chunk: int = 640,
    ):
        self.weighting = weighting or Piecewise()
        self.spacing = spacing or Bell()
        self.budget = budget or Budget()
        self.temperature = check_range("temperature", temperature, "(0, inf)")
        self.chunk = check_whole("chunk", chunk, 1)

    @torch.no_grad()
    def __call__(
        self,
        denoiser: Denoiser,
        x_0: Tensor,
        seeds: Sequence[int],
        prior: Tensor | None = None,
        progress: Report | None = None,
    ) -> ZeroShotPredictions:
        """The predictions for images x_0 [N, ...], on the device of the denoiser.

        Arguments:
            seeds: one non-negative integer per image.
            prior: p(y), [C] positive; None = uniform.
            progress: called with the fraction of the evaluations done, for the images that are classified together.

        Raises:
            ValueError: a denoiser with fewer than two classes, an invalid prior, a schedule without support of the weighting.
            MetricError: predictions that are not finite.
        """
        classes = denoiser.num_classes
        if classes < 2:
            raise ValueError(f"a zero-shot classifier needs a denoiser with at least two classes, got {classes}")
        prior = torch.full((classes,), 1 / classes) if prior is None else prior.detach().cpu()
        if prior.shape != (classes,) or not bool((prior > 0).all()) or not bool(prior.isfinite().all()):
            raise ValueError(
                f"prior must be a positive probability for each of {classes} classes, got {prior.tolist()}"
            )
        log_prior = prior.double().log().log_softmax(0)
        images = self.images_per_chunk(classes)
        parts = []
        for first in range(0, len(x_0), images):
            rows = slice(first, first + images)
            parts.append(self.classify_chunk(denoiser, x_0[rows], list(seeds[rows]), log_prior, progress))
        return ZeroShotPredictions.concatenate(parts)

    def images_per_chunk(self, classes: int) -> int:
        """The number of images that are classified together: one evaluation of every class fills a chunk."""
        return max(1, self.chunk // classes)

    def classify_chunk(
        self, denoiser: Denoiser, x_0: Tensor, seeds: Sequence[int], log_prior: Tensor, progress: Report | None
    ) -> ZeroShotPredictions:
        """The predictions for images that are classified together."""
        shape = len(x_0), len(log_prior)
        errors = torch.zeros(*shape, self.budget.evaluations, dtype=torch.float64)
        remaining = torch.ones(shape, dtype=torch.bool)
        count = torch.zeros(shape, dtype=torch.float64)
        drops, running, spent = [], [], []
        for first, last, keep in self.budget.segments():
            evaluated = remaining & (remaining.sum(1, keepdim=True) > 1)
            errors[..., first:last] = self.errors(denoiser, x_0, seeds, evaluated, first, last, progress)
            count += evaluated * (last - first)
            logits = log_prior - errors.sum(2) / count
            candidates = logits.masked_fill(~remaining, -torch.inf)
            leader = candidates.argmax(1, keepdim=True)
            running.append(leader[:, 0])
            spent.append(count.sum(1))
            if keep is not None:
                kept = remaining & self.budget.select_remaining(candidates, errors[..., :last], keep)
                drops.append((remaining & ~kept, leader, logits.gather(1, leader) - logits))
                remaining = kept
        for dropped, leader, gap in reversed(drops):
            logits = torch.where(dropped, logits.gather(1, leader) - gap, logits)
        return ZeroShotPredictions(logits.log_softmax(1), spent[-1], torch.stack(running), torch.stack(spent))

    def errors(
        self,
        denoiser: Denoiser,
        x_0: Tensor,
        seeds: Sequence[int],
        evaluated: Tensor,
        first: int,
        last: int,
        progress: Report | None,
    ) -> Tensor:
        """w / q ||eps - eps_hat(x_t, y)||^2 / (2 T) of the evaluations from first to last - 1, [B, C, last - first].

        Arguments:
            evaluated: classes to evaluate, [B, C] bool; the others have the value 0.
        """
        schedule, result = denoiser.schedule, torch.zeros(*evaluated.shape, last - first, dtype=torch.float64)
        low, high = self.weighting.support(schedule)
        image, label = evaluated.nonzero(as_tuple=True)
        if not len(image):
            return result
        images, index = image.unique(return_inverse=True)
        seeds = [seeds[row] for row in images.tolist()]
        start = torch.tensor([fold(seed, LEVEL_PURPOSE) / 2**63 for seed in seeds], dtype=torch.float64)
        noise = Noise(seeds, x_0.shape[1:], schedule, x_0.device, x_0.dtype)
        for entries in torch.arange(len(image) * (last - first)).split(self.chunk):
            k, pair = entries // len(image), entries % len(image)
            draws = torch.stack([noise.normal(0.0, first + draw) for draw in range(int(k[0]), int(k[-1]) + 1)])
            eps = draws[k - k[0], index[pair]]
            log_snr, density = self.spacing((start[index[pair]] + GOLDEN_RATIO * (first + k)) % 1, low, high)
            t = time_of_log_snr(log_snr, schedule, denoiser.levels)
            alpha, sigma = (scale.to(x_0) for scale in schedule.alpha_sigma(t, x_0.ndim))
            x_t = alpha * x_0[image[pair]] + sigma * eps
            eps_hat = denoiser(x_t, t.to(x_0.device), label[pair].to(x_0.device)).eps
            error = (eps - eps_hat).square().flatten(1).sum(1).cpu().double()
            weight = self.weighting(log_snr, schedule) / (2 * self.temperature * density)
            result[image[pair], label[pair], k] = weight * error
            if progress is not None:
                progress((first + int(k[-1]) + 1) / self.budget.evaluations)
        if not bool(result.isfinite().all()):
            raise MetricError(
                "the model predicts noise that is not finite for these data: its training diverged, or the data have another "
                "scale than in training"
            )
        return result
