"""How well a classifier of the noise level classifies noise levels, and how well its gradient denoises at each."""

import numpy
import torch
from torch import Tensor

from ...figures.plot_spec import Panel, Plot
from ...models.level_classifier import LevelClassifier
from ...objectives.cdm import add_uniform_noise, level_terms
from ...randomness import Noise
from ..class_conditional import ClassConditionalMetric
from ..metric import EvalContext, MetricResult, mean

__all__ = ["LevelAccuracy"]


class LevelAccuracy(ClassConditionalMetric):
    """Cross-entropy, accuracy and squared error of eps of a classifier of noise levels, over the levels of its training.

    The three columns of Yadin, Elata, Michaeli 2024, arXiv 2402.10095, table 1. With equally frequent levels guessing has the
    cross-entropy ln(T + 2) and the accuracy 1 / (T + 2); else the entropy of P(k) and the largest P(k). The best possible
    values are unknown, since neighbouring levels look alike. Data of discrete values get uniform noise, as in training.

    Arguments:
        draws: levels per example, evenly spaced in the training distribution of levels; at least 1.
        conditional: whether a model with classes gets the labels of the examples.
        bands: of equally many levels, for the curve, at least 1.

    Raises:
        ValueError: a number out of range.
    """

    name, needs = "levels", (LevelClassifier,)

    def __init__(self, draws: int = 8, conditional: bool = True, bands: int = 20):
        if draws < 1 or bands < 1:
            raise ValueError(f"draws and bands must be at least 1, got {draws} and {bands}")
        super().__init__(conditional)
        self.draws, self.bands = draws, bands

    def measure(self, context: EvalContext) -> MetricResult:
        model = context.require(LevelClassifier)
        batches = context.compute(lambda first: self.measure_batch(context, model, first))
        found = {name: torch.from_numpy(numpy.concatenate(arrays)) for name, arrays in batches.items()}  # [N, draws]
        ce, accuracy, mse = found["ce"], found["accuracy"], found["mse"]
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
            Panel("mse_eps", "E |eps - eps_hat|^2 / D", ("answering 0", 1.0)),
        ]
        plot = Plot("levels", "level", "noise level k", False, panels)
        return MetricResult(figures, facts, self.curve(model.steps + 2, **found), [plot])

    def curve(self, levels: int, k: Tensor, ce: Tensor, accuracy: Tensor, mse: Tensor) -> list[dict[str, float | None]]:
        """The means over each band of levels."""
        curve = list[dict[str, float | None]]()
        edges = torch.linspace(0, levels, min(self.bands, levels) + 1).round().long().tolist()
        for low, high in zip(edges, edges[1:]):
            rows = (k >= low) & (k < high)
            if not bool(rows.any()):
                continue
            curve.append({
                "level": (low + high - 1) / 2,
                "cross_entropy": float(ce[rows].mean()),
                "accuracy": float(accuracy[rows].mean()),
            })  # fmt: skip
            noisy = mse[rows & ~mse.isnan()]
            if len(noisy):
                curve[-1]["mse_eps"] = float(noisy.mean())
        return curve

    def quantization_levels(self, context: EvalContext) -> int:
        """Values of an element of the data, dequantised by uniform noise in training; 0 = continuous."""
        return int((context.config.get("objective") or {}).get("quantization_levels") or 0)

    def measure_batch(self, context: EvalContext, model: LevelClassifier, first: int) -> dict[str, numpy.ndarray]:
        """Level and errors of every draw, [b, draws] each."""
        (x_0, labels), noise = context.batch(first), context.noise(first)
        y = labels if self.uses_labels(context) else None
        values = self.quantization_levels(context)
        draws = [self.measure_draw(model, x_0, y, noise, draw, values) for draw in range(self.draws)]
        return {name: torch.stack([draw[name] for draw in draws], 1).cpu().numpy() for name in draws[0]}

    @torch.no_grad()
    def measure_draw(
        self, model: LevelClassifier, x_0: Tensor, y: Tensor | None, noise: Noise, draw: int, values: int
    ) -> dict[str, Tensor]:  # fmt: skip
        """One level of each example."""
        place = torch.special.ndtr(noise.of((1,)).normal(0.0, 0).double()[:, 0])
        k = model.level_at((place + draw / self.draws) % 1)
        if values:
            x_0 = add_uniform_noise(x_0, torch.special.ndtr(noise.normal(1.0, 3 * draw + 1).double()).to(x_0), values)
        _, ce, mse, hit = level_terms(model, x_0, y, k, noise.normal(1.0, 3 * draw + 2))
        return {"k": k, "ce": ce.double(), "accuracy": hit.double(), "mse": mse.double()}
