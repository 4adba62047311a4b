"""Accuracy of a conditional denoiser as a classifier, and its cost."""

from collections import Counter
from collections.abc import Sequence

import numpy
import torch
from torch import Tensor

from ...figures.plot_spec import Panel, Plot
from ...models.protocols import Denoiser
from ...randomness import fold
from ...runtime.ranges import check_whole
from ..metric import EXAMPLE_PURPOSE, EvalContext, Metric
from ..results import Figure, MetricResult, mean
from .calibration import calibration_error
from .weighting import Spacing, Weighting
from .zero_shot import STAGES, Budget, ZeroShot, ZeroShotPredictions

__all__ = ["ZeroShotClassifier"]


class ZeroShotClassifier(Metric):
    """Accuracy, NLL and calibration of p(y | x) from the conditional bounds, and accuracy against evaluations.

    Li et al. 2023, arXiv 2303.16203; see `ZeroShot` for the equation. Evaluations are network calls per image divided by the
    number of classes, their mean over images.

    Arguments:
        weighting: over log-SNR, None = 1 from -6 to 6; `Exact` is that of the likelihood.
        spacing: of the log-SNRs at which the integral is evaluated, None = `Bell()`; changes only the noise of the predictions.
        evaluations: of a class that is never dropped.
        stages: [evaluations, keep], see `Budget`.
        margin: standard errors below the leader at which a stage drops a class, None = only `keep` drops classes.
        temperature: of the softmax.
        class_frequencies: whether p(y) is the frequency of the class in the training split; False = uniform.
        bins: of confidence, for the calibration error, 1 to 1000.
        chunk: network evaluations in one batch; does not change the figures.
    """

    name = "zero_shot"
    needs = (Denoiser,)
    conditional = True
    labels = True

    def __init__(
        self,
        weighting: Weighting | None = None,
        spacing: Spacing | None = None,
        evaluations: int = 400,
        stages: Sequence[Sequence[int]] = STAGES,
        margin: float | None = 3.0,
        temperature: float = 1.0,
        class_frequencies: bool = False,
        bins: int = 15,
        chunk: int = 640,
    ):
        self.bins = check_whole("bins", bins, 1, 1000)
        self.budget = Budget(evaluations, stages, margin)
        self.classifier = ZeroShot(weighting, spacing, self.budget, temperature, chunk)
        self.weighting, self.spacing = self.classifier.weighting, self.classifier.spacing
        self.class_frequencies = bool(class_frequencies)

    def check(self, context: EvalContext) -> None:
        super().check(context)
        model = context.denoiser
        if model.num_classes < 2:
            raise ValueError(f"metric=zero_shot needs at least two classes; this {context.model_name} has one")
        if model.class_names and list(model.class_names) != list(context.class_names):
            raise ValueError(
                f"metric=zero_shot needs data with the model's classes {', '.join(map(str, model.class_names))}; the data "
                f"have {', '.join(map(str, context.class_names))}"
            )
        if model.stateful:
            raise ValueError("metric=zero_shot needs a denoiser whose prediction depends on x_t, t and y only")
        low, high = self.weighting.support(context.schedule)
        density = self.spacing(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64), low, high)[1]
        if not bool((density > 0).all() and density.isfinite().all()):
            raise ValueError(
                f"metric.spacing lies outside the log-SNR {low:g} to {high:g} of metric.weighting: use a centre within that "
                "range, or metric/spacing=even"
            )
        self.prior(context)

    def prior(self, context: EvalContext) -> Tensor:
        """p(y), [C]; ValueError if class_frequencies=true and a class has no training examples."""
        classes = context.num_classes
        if not self.class_frequencies:
            return torch.full((classes,), 1 / classes, dtype=torch.float64)
        y = context.data.train.y
        counts = y[y >= 0].bincount(minlength=classes).double()
        if not bool((counts > 0).all()):
            raise ValueError(
                "metric.class_frequencies=true needs training examples of every class; "
                f"{context.class_names[int(counts.argmin())]} has none"
            )
        return counts / counts.sum()

    def measure(self, context: EvalContext) -> MetricResult:
        prior, y, names = self.prior(context), context.labels, context.class_names
        classes = len(prior)
        predictions = self.classify(context, prior)
        correct = (predictions.running == y).double()
        log_prob = predictions.log_prob.gather(1, y[:, None])[:, 0]
        confidence, answer = predictions.log_prob.max(1)
        ece, ece_error = calibration_error(confidence.exp(), correct[-1], self.bins, context.seed)
        cost = mean(predictions.evaluations, "per class and image")
        cost_error = cost.standard_error and cost.standard_error / classes
        figures = {
            "accuracy": mean(correct[-1], "share"),
            "nll": mean(-log_prob, "nats"),
            "ece": Figure(ece, ece_error, len(y), "share"),
            "evaluations": cost._replace(value=cost.value / classes, standard_error=cost_error),
        }
        facts = {
            "most_evaluations": self.budget.max_evaluations(classes),
            "stages": [list(stage) for stage in self.budget.stages],
            "temperature": self.classifier.temperature,
            "prior": prior.tolist(),
            "log_snr": list(self.weighting.support(context.schedule)),
            "bins": self.bins,
        }
        curve = list[dict[str, float | None]]()
        for spent, accuracy in zip(predictions.spent, (mean(row, "share") for row in correct)):
            row: dict[str, float | None] = {"evaluations": float(spent.mean()) / classes}
            curve.append(row | {"accuracy": accuracy.value, "accuracy_se": accuracy.standard_error})
        panel = Panel("accuracy", "accuracy", ("by chance", 1 / classes))
        plot = Plot("accuracy", "evaluations", "network evaluations per class and image", True, [panel])
        pairs = Counter((int(label), int(wrong)) for label, wrong in zip(y, answer) if label != wrong)
        details = {
            "confusions": [{"class": names[a], "answer": names[b], "n": n} for (a, b), n in pairs.most_common()],
            "recall": {names[c]: float(correct[-1][y == c].mean()) for c in y.unique().tolist()},
        }
        posteriors = {
            "row": context.rows.numpy(),
            "label": y.numpy(),
            "answer": answer.numpy(),
            "posterior": predictions.log_prob.exp().numpy(),
            "classes": numpy.array(names),
        }
        return MetricResult(figures, facts, curve, [plot], details, {"posteriors": posteriors})

    def classify(self, context: EvalContext, prior: Tensor) -> ZeroShotPredictions:
        """The predictions for all examples, in parts of images that are classified together."""
        parts = []
        count = self.classifier.images_per_chunk(len(prior))
        for first in context.firsts:
            x, _ = context.batch(first)
            for offset in range(0, len(x), count):
                parts.append(self.classify_part(context, prior, x[offset : offset + count], first + offset))
        return ZeroShotPredictions.concatenate(parts)

    def classify_part(self, context: EvalContext, prior: Tensor, x: Tensor, first: int) -> ZeroShotPredictions:
        """The predictions for examples x from position `first` on: read from a saved part, or computed."""
        rows = context.rows[first : first + len(x)].tolist()
        seeds = [fold(context.seed, EXAMPLE_PURPOSE, row) for row in rows]

        def report(share: float) -> None:
            context.progress(first + int(share * len(x)), context.n, "images")

        def compute() -> dict[str, numpy.ndarray]:
            report(0.0)
            predictions = self.classifier(context.denoiser, x, seeds, prior, report)
            return {name: value.numpy() for name, value in predictions._asdict().items()}

        arrays = context.parts.load_or_compute(f"{first:08d}", compute)
        report(1.0)
        return ZeroShotPredictions(**{name: torch.from_numpy(value) for name, value in arrays.items()})
