"""How well a classifier of the noise level tells noise levels apart, and how well its gradient denoises at each."""

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

    The three columns of Yadin, Elata, Michaeli 2024, arXiv 2402.10095, table 1. Guessing has the cross-entropy ln(T + 2) and
    the accuracy 1 / (T + 2) where the levels are equally frequent, else the entropy of their P(k) and the largest of them;
    the best possible are not known, since neighbouring levels look alike. Data of discrete values are spread by
    uniform noise, as they were in training.

    Arguments:
        draws: levels per example, drawn as in training, evenly spread; at least 1.
        conditional: whether a model with classes is told the examples' classes.
        bands: of equally many levels, for the curve, at least 1.

    Raises:
        ValueError: a number out of range.
    """

    name, needs = "levels", (LevelClassifier,)

    def __init__(self, draws: int, conditional: bool, bands: int):
        if draws < 1 or bands < 1:
            raise ValueError(f"draws and bands must be at least 1, got {draws} and {bands}")
        super().__init__(conditional)
        self.draws, self.bands = draws, bands

    def measure(self, context: EvalContext) -> MetricResult:
        model = context.as_protocol(LevelClassifier)
        parts = [self.measure_batch(context, model, first) for first in context.firsts]
        k, ce, accuracy, mse = (
            torch.from_numpy(numpy.concatenate([part[name] for part in parts]))
            for name in ("k", "ce", "accuracy", "mse")
        )  # [N, draws]
        seen = torch.tensor(model.prior, dtype=torch.float64)
        has_noise = ~mse.isnan()
        figures = {
            "cross_entropy": mean(ce.mean(1), "nats"),
            "accuracy": mean(accuracy.mean(1), "share"),
            "mse_eps": mean(mse.nansum(1) / has_noise.double().mean() / self.draws, "per value of eps"),
        }
        guessing = {"cross_entropy": float(-(seen * seen.log()).sum()), "accuracy": float(seen.max())}
        facts = {
            "levels": model.steps + 2, "draws": self.draws, "given_class": self.uses_labels(context),
            "values": self.quantization_levels(context), "guessing": guessing,
        }  # fmt: skip
        curve, columns, levels = [], {"cross_entropy": ce, "accuracy": accuracy}, model.steps + 2
        edges = torch.linspace(0, levels, min(self.bands, levels) + 1).round().long().tolist()
        for low, high in zip(edges, edges[1:]):
            rows = (k >= low) & (k < high)
            if not bool(rows.any()):
                continue
            row = {"level": (low + high - 1) / 2} | {name: float(part[rows].mean()) for name, part in columns.items()}
            noisy = mse[rows & has_noise]
            curve.append(row | ({"mse_eps": float(noisy.mean())} if len(noisy) else {}))
        panels = [
            Panel("cross_entropy", "-log p(level | x), nats", ("guessing", guessing["cross_entropy"])),
            Panel("accuracy", "accuracy", ("guessing", guessing["accuracy"])),
            Panel("mse_eps", "E |eps - eps_hat|^2 / D", ("answering 0", 1.0)),
        ]
        return MetricResult(figures, facts, curve, [Plot("levels", "level", "noise level k", False, panels)])

    def quantization_levels(self, context: EvalContext) -> int:
        """Of an element of the data, which training spread; 0 = it took them as they are."""
        return int((context.config.get("objective") or {}).get("quantization_levels") or 0)

    def measure_batch(self, context: EvalContext, model: LevelClassifier, first: int) -> dict[str, numpy.ndarray]:
        """Of a batch, [b, draws] each."""

        def compute() -> dict[str, numpy.ndarray]:
            (x_0, y), noise = context.batch(first), context.noise(first)
            y = y if self.uses_labels(context) else None
            drawn = [
                self.measure_draw(model, x_0, y, noise, draw, self.quantization_levels(context))
                for draw in range(self.draws)
            ]
            return {name: torch.stack([part[name] for part in drawn], 1).cpu().numpy() for name in drawn[0]}

        found = context.parts.part(f"{first:010d}", compute)
        context.progress(min(first + context.batch_size, context.n), context.n, "examples")
        return found

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
