"""Accuracy of a classifier of noise levels, and the error of the denoiser that is its gradient."""

import numpy
import torch
from torch import Tensor

from ...backbones.conditions import Condition
from ...figures.plot_spec import Panel, Plot
from ...models.level_classifier import LevelClassifier
from ...objectives.cdm import add_uniform_noise, level_terms
from ...randomness import Noise
from ...runtime.ranges import check_whole
from ..class_conditional import ClassConditionalMetric
from ..metric import EvalContext
from ..results import MetricResult, mean

__all__ = ["LevelAccuracy"]


class LevelAccuracy(ClassConditionalMetric):
    """Cross-entropy, accuracy and squared error of eps of a classifier of noise levels, over the levels of its training.

    The three columns of Yadin, Elata, Michaeli 2024, arXiv 2402.10095, table 1. The best constant classifier has the entropy
    of P(k) as cross-entropy and the largest P(k) as accuracy: ln(T + 2) and 1 / (T + 2) for equally frequent levels. The best
    possible values are unknown, since neighbouring levels overlap. Discrete data are dequantized as in training.

    Arguments:
        draws: levels per example, evenly spaced in the training distribution of levels; at least 1.
        conditional: whether a model with classes gets the labels of the examples.
        bands: of equally many levels, for the curve, at least 1.
    """

    name = "levels"
    needs = (LevelClassifier,)

    def __init__(self, draws: int = 8, conditional: bool = True, bands: int = 20):
        super().__init__(conditional)
        self.draws = check_whole("draws", draws, 1)
        self.bands = check_whole("bands", bands, 1)

    def measure(self, context: EvalContext) -> MetricResult:
        model = context.require(LevelClassifier)
        batches = context.compute_batches(lambda first: self.measure_batch(context, model, first))
        draws = {name: torch.from_numpy(numpy.concatenate(arrays)) for name, arrays in batches.items()}  # [N, draws]
        ce, accuracy, mse = draws["ce"], draws["accuracy"], draws["mse"]
        has_noise = ~mse.isnan()
        figures = {
            "cross_entropy": mean(ce.mean(1), "nats"),
            "accuracy": mean(accuracy.mean(1), "share"),
            "mse_eps": mean(mse.nansum(1) / has_noise.double().mean() / self.draws, "per value of eps"),
        }
        prior = torch.tensor(model.prior, dtype=torch.float64)
        guessing = {"cross_entropy": float(-(prior * prior.log()).sum()), "accuracy": float(prior.max())}
        facts = {
            "levels": model.steps + 2,
            "draws": self.draws,
            "given_class": self.uses_labels(context),
            "values": self.quantization_levels(context),
            "guessing": guessing,
        }
        panels = [
            Panel("cross_entropy", "-log p(level | x), nats", ("guessing", guessing["cross_entropy"])),
            Panel("accuracy", "accuracy", ("guessing", guessing["accuracy"])),
            Panel("mse_eps", "E |eps - eps_hat|^2 / D", ("predicting 0", 1.0)),
        ]
        plot = Plot("levels", "level", "noise level k", False, panels)
        return MetricResult(figures, facts, self.curve(model.steps + 2, **draws), [plot])

    def curve(self, levels: int, k: Tensor, ce: Tensor, accuracy: Tensor, mse: Tensor) -> list[dict[str, float | None]]:
        """The means over each band of levels."""
        curve = list[dict[str, float | None]]()
        edges = torch.linspace(0, levels, min(self.bands, levels) + 1).round().long().tolist()
        for low, high in zip(edges, edges[1:]):
            rows = (k >= low) & (k < high)
            if not bool(rows.any()):
                continue
            row: dict[str, float | None] = {"level": (low + high - 1) / 2}
            row |= {"cross_entropy": float(ce[rows].mean()), "accuracy": float(accuracy[rows].mean())}
            noisy = mse[rows & ~mse.isnan()]
            if len(noisy):
                row["mse_eps"] = float(noisy.mean())
            curve.append(row)
        return curve

    def quantization_levels(self, context: EvalContext) -> int:
        """K values of an element of the data, which training dequantizes by uniform noise; 0 = continuous."""
        return int((context.config.get("objective") or {}).get("quantization_levels") or 0)

    def measure_batch(self, context: EvalContext, model: LevelClassifier, first: int) -> dict[str, numpy.ndarray]:
        """Level and errors of every draw, [b, draws] each."""
        x_0, labels = context.batch(first)
        noise = context.noise(first)
        y = labels if self.uses_labels(context) else None
        values = self.quantization_levels(context)
        draws = [self.measure_draw(model, x_0, y, noise, draw, values) for draw in range(self.draws)]
        return {name: torch.stack([draw[name] for draw in draws], 1).cpu().numpy() for name in draws[0]}

    @torch.no_grad()
    def measure_draw(
        self, model: LevelClassifier, x_0: Tensor, y: Condition | None, noise: Noise, draw: int, values: int
    ) -> dict[str, Tensor]:
        """Level and errors of one draw, [b] each."""
        u = torch.special.ndtr(noise.of((1,)).normal(0.0, 0).double()[:, 0])
        k = model.level_at((u + draw / self.draws) % 1)
        if values:
            x_0 = add_uniform_noise(x_0, torch.special.ndtr(noise.normal(1.0, 3 * draw + 1).double()).to(x_0), values)
        _, ce, mse, correct = level_terms(model, x_0, y, k, noise.normal(1.0, 3 * draw + 2))
        return {"k": k, "ce": ce.double(), "accuracy": correct.double(), "mse": mse.double()}
