"""The error of a model's log-density on data of a known distribution, and the excess error of the same model as denoiser."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ...figures.plot_spec import Panel, Plot
from ...models.protocols import Denoiser, LogDensity
from ...oracles import Oracle
from ...randomness import fold
from ...runtime.ranges import check_whole
from ..class_conditional import ClassConditionalMetric
from ..denoising import find_law
from ..metric import EvalContext
from ..results import Figure, MetricResult, mean

__all__ = ["DensityError"]

LAW_PURPOSE = 13  # purpose of the seed
MAX_BATCH = 4000  # examples at a time


class DensityError(ClassConditionalMetric):
    """E |log p_t(x) - log p_t*(x)| in nats, over new exact examples of the distribution of the data.

    abs_error is the value at t = 0, for the data without noise. excess is the squared error of eps of the model divided by
    that of the exact denoiser, minus 1, each averaged over the levels with noise. excess_ratios is the mean of the ratios of
    the levels; the noisiest levels dominate it, because the exact denoiser has a very small error there.

    Arguments:
        levels: noise levels besides t = 0, evenly spaced in time, at least 1; at most as many as the model has.
        exact: examples per level, at least 10; twenty times as many at t = 0.
        conditional: whether a model with classes gets labels; the exact value is then log p(x | y).

    Raises:
        ValueError: a number out of range; from check: data of an unknown distribution, a log-density up to a constant.
    """

    name = "density_error"
    needs = (LogDensity,)

    def __init__(self, levels: int = 100, exact: int = 1000, conditional: bool = True):
        super().__init__(conditional)
        self.levels = check_whole("levels", levels, 1)
        self.exact = check_whole("exact", exact, 10)

    def check(self, context: EvalContext) -> None:
        super().check(context)
        if not context.require(LogDensity).normalized:
            raise ValueError(
                f"metric={self.name}: the log-density of this {context.model_name} is known up to a constant only"
            )
        if find_law(context.data, context.schedule) is None:
            raise ValueError(
                f"metric={self.name} needs data of a known distribution, such as dataset=gmm2d or anisotropic"
            )

    def times(self, context: EvalContext) -> list[Tensor]:
        """The times above 0, ascending."""
        levels = context.levels
        if levels is None:
            return list(torch.linspace(0, 1, self.levels + 1, dtype=torch.float64)[1:])
        ascending = levels[levels > 0].sort().values
        if not len(ascending):  # objective=nce has the level t = 0 only
            return []
        count = min(self.levels, len(ascending))
        return list(ascending[torch.linspace(len(ascending) / count - 1, len(ascending) - 1, count).round().long()])

    @torch.no_grad()
    def measure(self, context: EvalContext) -> MetricResult:
        law = find_law(context.data, context.schedule)
        assert law is not None  # see check
        times = [torch.tensor(0.0, dtype=torch.float64), *self.times(context)]
        is_denoiser = context.as_protocol(Denoiser) is not None and len(times) > 1
        curve = list[dict[str, float | None]]()
        errors, excess, smallest = list[Tensor](), list[Tensor](), list[Tensor]()
        for index, t in enumerate(times):
            n = self.exact if index else 20 * self.exact
            batches = self.measure_batches(context, law, t, n, index)
            error, eps_error, exact_error = (torch.cat(part) for part in zip(*batches))
            figure = mean(error.abs(), "nats")
            row: dict[str, float | None] = {"time": float(t), "log_snr": float(context.schedule.log_snr(t))}
            row |= {"abs_error": figure.value, "abs_error_se": figure.standard_error}
            row["error"] = mean(error, "nats").value
            if index and is_denoiser:
                excess.append(eps_error.mean())
                smallest.append(exact_error.mean())
                row["excess"] = float(excess[-1] / smallest[-1])
            errors.append(error.abs())
            curve.append(row)
            context.progress(index + 1, len(times), "noise levels")
        figures = {"abs_error": mean(errors[0], "nats")}
        if len(times) > 1:
            figures["abs_error_all_levels"] = mean(torch.stack(errors[1:]).mean(0), "nats")
        figures["entropy"] = self.estimate_entropy(context, law)
        if is_denoiser:
            ratios = torch.stack(excess) / torch.stack(smallest)
            share = Figure(float(sum(excess) / sum(smallest)), None, self.exact, "share of the smallest error")
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

    def measure_batches(
        self, context: EvalContext, law: Oracle, t: Tensor, n: int, index: int
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """log p - log p*, |eps_hat - eps_exact|^2 / D and |eps - eps_exact|^2 / D of n examples in batches, [b] each.

        Arguments:
            index: of the noise level; at the first, t = 0, the two errors are 0.
        """
        rng = torch.Generator().manual_seed(fold(context.seed, LAW_PURPOSE, index))
        alpha, sigma = law.schedule.alpha_sigma(t)
        for first in range(0, n, MAX_BATCH):
            x_0, labels = law.sample(min(MAX_BATCH, n - first), rng)
            noise = torch.randn(x_0.shape, generator=rng, dtype=torch.float64)
            x = alpha * x_0 + sigma * noise
            y = labels if self.uses_labels(context) else None
            x_device = x.float().to(context.device)
            y_device = None if y is None else y.to(context.device)
            log_density = context.require(LogDensity).log_density(x_device, t, y_device).double().cpu()
            eps_error = exact_error = torch.zeros(len(x), dtype=torch.float64)
            if index and context.as_protocol(Denoiser) is not None:
                exact = law(x, t, y).eps
                predicted = context.denoiser(x_device, t, y_device).eps.double().cpu()
                eps_error = (predicted - exact).square().flatten(1).mean(1)
                exact_error = (noise - exact).square().flatten(1).mean(1)
            yield log_density - law.log_density(x, t, y), eps_error, exact_error

    def estimate_entropy(self, context: EvalContext, law: Oracle) -> Figure:
        """The entropy of the distribution without noise, nats."""
        x, y = law.sample(20 * self.exact, torch.Generator().manual_seed(fold(context.seed, LAW_PURPOSE)))
        return mean(-law.log_density(x, None, y if self.uses_labels(context) else None), "nats")
