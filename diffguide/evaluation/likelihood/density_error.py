"""The error of a stated log-density where the truth is known, and the excess error of the same model as a denoiser."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ...figures.plot_spec import Panel, Plot
from ...models.protocols import Denoiser, LogDensity
from ...oracles import Oracle
from ...randomness import fold
from ..class_conditional import ClassConditionalMetric
from ..denoising import law_of
from ..metric import EvalContext, Figure, MetricResult, mean

__all__ = ["DensityError"]

LAW_PURPOSE = 13  # purpose of the seed
MAX_BATCH = 4000  # examples at a time


class DensityError(ClassConditionalMetric):
    """E |log p_t(x) - log p_t*(x)| in nats, over fresh exact examples of the law that the data are drawn from.

    abs_error is that at t = 0, the data themselves. excess is the squared error of eps of the model over that of the exact
    denoiser, minus 1, each averaged over the levels with noise. excess_ratios averages the ratio of each level; the noisiest
    levels dominate it, where the exact denoiser almost knows eps.

    Arguments:
        levels: noise levels besides t = 0, evenly spaced in time, at least 1; at most as many as the model has.
        exact: examples per level, at least 10; twenty times as many at t = 0.
        conditional: whether a model with classes gets labels; the truth is then log p(x | y).

    Raises:
        ValueError: a number out of range; from check: data of no known law, a log-density up to a constant.
    """

    name, needs = "density_error", (LogDensity,)

    def __init__(self, levels: int = 100, exact: int = 1000, conditional: bool = True):
        if levels < 1 or exact < 10:
            raise ValueError(f"levels must be at least 1 and exact at least 10, got {levels} and {exact}")
        super().__init__(conditional)
        self.levels, self.exact = levels, exact

    def check(self, context: EvalContext) -> None:
        super().check(context)
        if not context.require(LogDensity).normalized:
            raise ValueError(
                f"metric={self.name}: the log-density of this {context.model_name} is known up to a constant only"
            )
        if law_of(context.data, context.schedule) is None:
            raise ValueError(f"metric={self.name} needs data of a known law, such as dataset=gmm2d or anisotropic")

    def times(self, context: EvalContext) -> list[Tensor]:
        """Those with noise, ascending."""
        levels = context.levels
        if levels is None:
            return list(torch.linspace(0, 1, self.levels + 1, dtype=torch.float64)[1:])
        rising = levels[levels > 0].sort().values
        if not len(rising):  # noise-contrastive estimation has the level of the data only
            return []
        count = min(self.levels, len(rising))
        return list(rising[torch.linspace(len(rising) / count - 1, len(rising) - 1, count).round().long()])

    @torch.no_grad()
    def measure(self, context: EvalContext) -> MetricResult:
        law = law_of(context.data, context.schedule)
        assert law is not None  # see check
        times = [torch.tensor(0.0, dtype=torch.float64), *self.times(context)]
        denoises = context.as_protocol(Denoiser) is not None and len(times) > 1
        curve, errors, excess, least = list[dict[str, float | None]](), list[Tensor](), list[Tensor](), list[Tensor]()
        for place, t in enumerate(times):
            n = self.exact if place else 20 * self.exact
            error, own, best = (torch.cat(part) for part in zip(*self.batches(context, law, t, n, place)))
            figure = mean(error.abs(), "nats")
            row: dict[str, float | None] = {"time": float(t), "log_snr": float(context.schedule.log_snr(t))}
            row |= {"abs_error": figure.value, "abs_error_se": figure.standard_error}
            row["error"] = mean(error, "nats").value
            if place and denoises:
                excess.append(own.mean())
                least.append(best.mean())
                row["excess"] = float(excess[-1] / least[-1])
            errors.append(error.abs())
            curve.append(row)
            context.progress(place + 1, len(times), "noise levels")
        figures = {"abs_error": mean(errors[0], "nats")}
        if len(times) > 1:
            figures["abs_error_all_levels"] = mean(torch.stack(errors[1:]).mean(0), "nats")
        figures["entropy"] = self.entropy(context, law)
        if denoises:
            ratios = torch.stack(excess) / torch.stack(least)
            share = Figure(float(sum(excess) / sum(least)), None, self.exact, "share of the smallest error")
            figures |= {"excess": share, "excess_ratios": share._replace(value=float(ratios.mean()))}
        labels = self.uses_labels(context)
        facts = {
            "law": type(law).__name__,
            "levels": len(times) - 1,
            "given_class": labels,
            "entropy_is": "-E log p(x given its class)" if labels else "-E log p(x)",
        }
        panels = [
            Panel("abs_error", "E |log p - exact|, nats"),
            Panel("excess", "excess over the smallest error of eps"),
        ]
        return MetricResult(figures, facts, curve, [Plot("density_error", "time", "time t", False, panels)])

    def batches(
        self, context: EvalContext, law: Oracle, t: Tensor, n: int, place: int
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """log p - log p*, the squared distance of eps from the exact one, and the squared error of that, [b] each."""
        rng = torch.Generator().manual_seed(fold(context.seed, LAW_PURPOSE, place))
        alpha, sigma = law.schedule.alpha_sigma(t)
        for first in range(0, n, MAX_BATCH):
            x_0, labels = law.sample(min(MAX_BATCH, n - first), rng)
            noise = torch.randn(x_0.shape, generator=rng, dtype=torch.float64)
            x, y = alpha * x_0 + sigma * noise, labels if self.uses_labels(context) else None
            seen, label = x.float().to(context.device), None if y is None else y.to(context.device)
            found = context.require(LogDensity).log_density(seen, t, label).double().cpu()
            own = best = torch.zeros(len(x), dtype=torch.float64)
            if place and context.as_protocol(Denoiser) is not None:
                exact, eps = law(x, t, y).eps, context.denoiser(seen, t, label).eps.double().cpu()
                own = (eps - exact).square().flatten(1).mean(1)
                best = (noise - exact).square().flatten(1).mean(1)
            yield found - law.log_density(x, t, y), own, best

    def entropy(self, context: EvalContext, law: Oracle) -> Figure:
        """Of the law without noise, nats."""
        x, y = law.sample(20 * self.exact, torch.Generator().manual_seed(fold(context.seed, LAW_PURPOSE)))
        return mean(-law.log_density(x, None, y if self.uses_labels(context) else None), "nats")
