"""How far a stated log-density is from the truth, where the truth is known, and what the same model denoises worse."""

import torch

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
    """E |log p_t(x) - log p_t*(x)| in nats, of fresh exact examples of the law that the data are drawn from.

    abs_error is that of the data themselves, t = 0. excess is the model's squared error of eps over that of the exact
    denoiser, minus 1, each the mean over the levels with noise; excess_ratios the mean over levels of the ratio at each,
    which the noisiest rule, where the exact denoiser knows eps almost.

    Arguments:
        levels: noise levels besides t = 0, evenly spread in time, at least 1; at most as many as the model has.
        exact: examples per level, at least 10; twenty times as many at t = 0.
        conditional: whether a model with classes is told them; the truth is then log p(x | y).

    Raises:
        ValueError: a number out of range; from check: data of no known law, a log-density up to a constant.
    """

    name, needs = "density_error", (LogDensity,)

    def __init__(self, levels: int, exact: int, conditional: bool):
        if levels < 1 or exact < 10:
            raise ValueError(f"levels must be at least 1 and exact at least 10, got {levels} and {exact}")
        super().__init__(conditional)
        self.levels, self.exact = levels, exact

    def check(self, context: EvalContext) -> None:
        super().check(context)
        if not context.as_protocol(LogDensity).normalized:
            raise ValueError(
                f"metric={self.name}: the log-density of this {context.model_name} is known up to a constant only"
            )
        if law_of(context.data, context.model.schedule) is None:
            raise ValueError(f"metric={self.name} needs data of a known law, such as dataset=gmm2d or anisotropic")

    def times(self, context: EvalContext) -> list[torch.Tensor]:
        """Those with noise, ascending."""
        levels = context.model.levels
        if levels is None:
            return list(torch.linspace(0, 1, self.levels + 1, dtype=torch.float64)[1:])
        rising = levels[levels > 0].sort().values
        if not len(rising):  # noise-contrastive estimation knows the data's own level alone
            return []
        count = min(self.levels, len(rising))
        return list(rising[torch.linspace(len(rising) / count - 1, len(rising) - 1, count).round().long()])

    @torch.no_grad()
    def measure(self, context: EvalContext) -> MetricResult:
        law = law_of(context.data, context.model.schedule)
        times = [torch.tensor(0.0, dtype=torch.float64), *self.times(context)]
        denoises = context.as_protocol(Denoiser) is not None and len(times) > 1
        curve, excess, least, errors = [], [], [], []
        for place, t in enumerate(times):
            n = self.exact if place else 20 * self.exact
            error, own, best = (torch.cat(part) for part in zip(*self.batches(context, law, t, n, place)))
            figure, signed = mean(error.abs(), "nats"), mean(error, "nats")
            row = {"time": float(t), "log_snr": float(context.model.schedule.log_snr(t))}
            row |= {"abs_error": figure.value, "abs_error_se": figure.standard_error, "error": signed.value}
            if place and denoises:
                excess, least = [*excess, own.mean()], [*least, best.mean()]
                row |= {"excess": float(excess[-1] / least[-1])}
            errors, curve = [*errors, error.abs()], [*curve, row]
            context.progress(place + 1, len(times), "noise levels")
        entropy = self.entropy(context, law)
        own = mean(errors[0], "nats")
        noisy = {"abs_error_all_levels": mean(torch.stack(errors[1:]).mean(0), "nats")} if len(times) > 1 else {}
        figures = {"abs_error": own, **noisy, "entropy": entropy}
        if denoises:
            ratios = torch.stack(excess) / torch.stack(least)
            share = Figure(float(sum(excess) / sum(least)), None, self.exact, "share of the smallest error")
            figures |= {"excess": share, "excess_ratios": share._replace(value=float(ratios.mean()))}
        facts = {
            "law": type(law).__name__, "levels": len(times) - 1, "given_class": self.uses_labels(context),
            "entropy_is": "-E log p(x given its class)" if self.uses_labels(context) else "-E log p(x)",
        }  # fmt: skip
        panels = [
            Panel("abs_error", "E |log p - exact|, nats"),
            Panel("excess", "excess over the smallest error of eps"),
        ]
        return MetricResult(figures, facts, curve, [Plot("density_error", "time", "time t", False, panels)])

    def batches(self, context: EvalContext, law: Oracle, t: torch.Tensor, n: int, place: int):
        """(log p - log p*, squared distance of eps from the exact one, squared error of that one) of each, by batches."""
        rng = torch.Generator().manual_seed(fold(context.seed, LAW_PURPOSE, place))
        alpha, sigma = law.schedule.alpha_sigma(t)
        for first in range(0, n, MAX_BATCH):
            x_0, y = law.sample(min(MAX_BATCH, n - first), rng)
            noise = torch.randn(x_0.shape, generator=rng, dtype=torch.float64)
            x, y = alpha * x_0 + sigma * noise, y if self.uses_labels(context) else None
            shown, told = x.float().to(context.device), None if y is None else y.to(context.device)
            found = context.as_protocol(LogDensity).log_density(shown, t, told).double().cpu()
            own = best = torch.zeros(len(x), dtype=torch.float64)
            if place and context.as_protocol(Denoiser) is not None:
                exact, eps = law(x, t, y).eps, context.model(shown, t, told).eps.double().cpu()
                own, best = ((a - b).square().flatten(1).mean(1) for a, b in ((eps, exact), (noise, exact)))
            yield found - law.log_density(x, t, y), own, best

    def entropy(self, context: EvalContext, law: Oracle) -> Figure:
        """Of the law without noise, nats."""
        x, y = law.sample(20 * self.exact, torch.Generator().manual_seed(fold(context.seed, LAW_PURPOSE)))
        return mean(-law.log_density(x, None, y if self.uses_labels(context) else None), "nats")
