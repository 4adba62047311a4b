"""Accuracy of a conditional denoiser as a classifier, and its cost."""

from collections import Counter
from collections.abc import Sequence

import numpy
import torch
from torch import Tensor

from ...figures.plot_spec import Panel, Plot
from ...models.protocols import Denoiser
from ...randomness import fold
from ..metric import EXAMPLE_PURPOSE, EvalContext, Figure, Metric, MetricResult, mean
from .calibration import calibration_error
from .weighting import Spacing, Weighting
from .zero_shot import STAGES, Budget, ZeroShot, ZeroShotAnswers

__all__ = ["ZeroShotClassifier"]


class ZeroShotClassifier(Metric):
    """Accuracy, NLL and calibration of p(y | x) from the conditional bounds, and accuracy against evaluations.

    Li et al. 2023, arXiv 2303.16203; see `ZeroShot` for the equation. Evaluations are network calls per image divided by the
    number of classes, their mean over images.

    Arguments:
        weighting: over log-SNR, None = 1 from -6 to 6; `Exact` is that of the likelihood.
        spacing: of the log-SNRs at which the integral is evaluated, None = `Bell()`; changes only the noise of the answers.
        evaluations: of a class that is never dropped.
        stages: [evaluations, keep], see `Budget`.
        margin: standard errors below the leader at which a stage drops a class, None = only their number counts.
        temperature: of the softmax.
        class_frequencies: whether p(y) is the frequency of the class in the training split, or the same for all.
        bins: of confidence, for the calibration error, 1 to 1000.
        chunk: network evaluations in one batch; changes no figure.

    Raises:
        ValueError: as `Budget` and `ZeroShot`, or no bins.
    """

    name = "zero_shot"
    needs = (Denoiser,)
    conditional = True
    labels = True

    def __init__(
        self, weighting: Weighting | None = None, spacing: Spacing | None = None, evaluations: int = 400,
        stages: Sequence[Sequence[int]] = STAGES, margin: float | None = 3.0, temperature: float = 1.0,
        class_frequencies: bool = False, bins: int = 15, chunk: int = 640,
    ):  # fmt: skip
        if not 1 <= bins <= 1000:
            raise ValueError(f"bins must be 1 to 1000, got {bins}")
        self.budget = Budget(evaluations, stages, margin)
        self.classifier = ZeroShot(weighting, spacing, self.budget, temperature, chunk)
        self.weighting, self.spacing = self.classifier.weighting, self.classifier.spacing
        self.class_frequencies, self.bins = bool(class_frequencies), int(bins)

    def check(self, context: EvalContext) -> None:
        super().check(context)
        model = context.denoiser
        if model.num_classes < 2:
            raise ValueError(f"metric=zero_shot needs two classes or more, and this {context.model_name} has one")
        if model.class_names and list(model.class_names) != list(context.class_names):
            raise ValueError(
                f"metric=zero_shot needs data of the model's classes: it has {', '.join(map(str, model.class_names))}, "
                f"and the data have {', '.join(map(str, context.class_names))}"
            )
        if model.stateful:
            raise ValueError(
                "metric=zero_shot needs a denoiser without memory, whose prediction depends on x_t, t and y only"
            )
        low, high = self.weighting.support(context.schedule)
        density = self.spacing(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64), low, high)[1]
        if not bool((density > 0).all() and density.isfinite().all()):
            raise ValueError(
                f"metric.spacing lies outside the log-SNR {low:g} to {high:g} of metric.weighting: use a centre within, or "
                "metric/spacing=even"
            )
        self.prior(context)

    def prior(self, context: EvalContext) -> Tensor:
        """p(y), [C].

        Raises:
            ValueError: class_frequencies=true, and a class without training examples.
        """
        classes = context.num_classes
        if not self.class_frequencies:
            return torch.full((classes,), 1 / classes, dtype=torch.float64)
        y = context.data.train.y
        members = y[y >= 0].bincount(minlength=classes).double()
        if not bool((members > 0).all()):
            raise ValueError(
                "metric.class_frequencies=true needs training examples of every class, and "
                f"{context.class_names[int(members.argmin())]} has none"
            )
        return members / members.sum()

    def measure(self, context: EvalContext) -> MetricResult:
        prior, y = self.prior(context), context.labels
        classes = len(prior)
        answers = self.classify(context, prior)
        right = (answers.running == y).double()
        given = answers.log_prob.gather(1, y[:, None])[:, 0]
        confidence, answer = answers.log_prob.max(1)
        ece, ece_error = calibration_error(confidence.exp(), right[-1], self.bins, context.seed)
        cost = mean(answers.evaluations, "per class and image")
        low, high = self.weighting.support(context.schedule)
        pairs = Counter((int(a), int(b)) for a, b in zip(y, answer) if a != b)
        names = context.class_names
        return MetricResult(
            figures={
                "accuracy": mean(right[-1], "share"),
                "nll": mean(-given, "nats"),
                "ece": Figure(ece, ece_error, len(y), "share"),
                "evaluations": cost._replace(
                    value=cost.value / classes, standard_error=cost.standard_error and cost.standard_error / classes
                ),
            },
            facts={
                "most_evaluations": self.budget.max_evaluations(classes),
                "stages": [list(stage) for stage in self.budget.stages],
                "temperature": self.classifier.temperature,
                "prior": prior.tolist(),
                "log_snr": [low, high],
                "bins": self.bins,
            },
            curve=[
                {"evaluations": float(spent.mean()) / classes, "accuracy": found.value, "accuracy_se": found.standard_error}
                for spent, found in zip(answers.spent, (mean(row, "share") for row in right))
            ],
            plots=[
                Plot("accuracy", "evaluations", "network evaluations per class and image", True,
                     [Panel("accuracy", "accuracy", ("by chance", 1 / classes))]),
            ],
            details={
                "confusions": [{"class": names[a], "answer": names[b], "n": n} for (a, b), n in pairs.most_common()],
                "recall": {names[c]: float(right[-1][y == c].mean()) for c in y.unique().tolist()},
            },
            arrays={
                "posteriors": {
                    "row": context.rows.numpy(), "label": y.numpy(), "answer": answer.numpy(),
                    "posterior": answers.log_prob.exp().numpy(), "classes": numpy.array(names),
                },
            },
        )  # fmt: skip

    def classify(self, context: EvalContext, prior: Tensor) -> ZeroShotAnswers:
        """The answers for all examples, computed for as many images at once as fill a chunk."""
        parts, images = [], self.classifier.chunk_images(len(prior))
        for first in context.firsts:
            x, _ = context.batch(first)
            rows = context.rows[first : first + len(x)].tolist()
            for place in range(0, len(x), images):
                seeds = [fold(context.seed, EXAMPLE_PURPOSE, row) for row in rows[place : place + images]]
                few = x[place : place + images]

                def tell(share: float, done=first + place, few=few):
                    context.progress(done + int(share * len(few)), context.n, "images")

                def compute(few=few, seeds=seeds, tell=tell):
                    tell(0.0)
                    found = self.classifier(context.denoiser, few, seeds, prior, tell)
                    return {name: value.numpy() for name, value in found._asdict().items()}

                arrays = context.parts.part(f"{first + place:08d}", compute)
                parts.append(ZeroShotAnswers(**{name: torch.from_numpy(value) for name, value in arrays.items()}))
                tell(1.0)
        return ZeroShotAnswers.concatenate(parts)
