"""How well a denoiser denoises, level by level; where the truth is known, how much worse than the best possible."""

import math
import statistics
from collections.abc import Sequence

import torch
from torch import Tensor

from ..datasets import GMM2D, Dataset, Mixture, Tree
from ..figures.plot_spec import Panel, Plot
from ..models.protocols import Denoiser
from ..oracles import AutoguidanceTree, GaussianMixture, GMM2DLaw, Oracle
from ..randomness import fold
from ..schedules import Schedule
from .metric import EvalContext, Figure, Metric, MetricResult, mean

__all__ = ["DenoisingError", "relative_excess_risk", "law_of", "squared_errors"]

LAWS = {  # of data sets that are drawn from one
    GMM2D: lambda data, schedule: GMM2DLaw(schedule),
    Tree: lambda data, schedule: AutoguidanceTree(7, 2, schedule),
    Mixture: lambda data, schedule: GaussianMixture(*data.law, schedule),
}
MAX_LOG_SNR = 20.0  # log-SNR at which an infinite end of a schedule is cut
EXACT_PURPOSE, NUM_ESTIMATES = 3, 5  # purpose of the seed; independent estimates of the excess, for its standard error


@torch.no_grad()
def relative_excess_risk(
    denoiser: Denoiser, oracle: Oracle, edges: Sequence[float], n: int, seed: int, conditional: bool = True, levels: int = 8,
    device: torch.device | str = "cpu",
) -> list[float]:  # fmt: skip
    """E ||D(x_t) - E[x_0 | x_t]||^2 / E ||x_0 - E[x_0 | x_t]||^2 per band of log-SNR: what training has left, 0 = perfect.

    The posterior variance below is the error of the perfect denoiser, so that 0.03 is a mean squared error 3 % above the
    smallest one possible. In a band it is the mean of the ratios at levels of equal distance.

    Arguments:
        denoiser: under test.
        oracle: the law of its data, with the denoiser's schedule.
        edges: of the bands, increasing, within the schedule's ends; B + 1 of them.
        n: noised examples per level.
        seed: of the examples.
        conditional: whether both get the examples' labels, or no condition.
        levels: per band.
        device: where the denoiser is; the oracle is on the CPU.

    Returns:
        One ratio per band.

    Raises:
        ValueError: edges that do not increase, or lie outside the schedule.
    """
    schedule, rng = denoiser.schedule, torch.Generator().manual_seed(seed)
    if any(low >= high for low, high in zip(edges, edges[1:])) or not (
        schedule.log_snr_min <= edges[0] and edges[-1] <= schedule.log_snr_max
    ):
        raise ValueError(
            f"edges must increase within the schedule's log-SNR {schedule.log_snr_min:g} to {schedule.log_snr_max:g}, "
            f"got {list(edges)}"
        )
    bands = []
    for low, high in zip(edges, edges[1:]):
        ratios = []
        for k in range(levels):
            t = time_of(denoiser, low + (high - low) * (k + 0.5) / levels)
            alpha, sigma = schedule.alpha_sigma(t)
            x_0, y = oracle.sample(n, rng)
            x_t = alpha * x_0 + sigma * torch.randn(x_0.shape, generator=rng, dtype=torch.float64)
            y = y if conditional else None
            exact = oracle(x_t, t, y).x_0
            found = denoiser(x_t.float().to(device), t, None if y is None else y.to(device)).x_0.double().cpu()
            error = (found - exact).square().mean()
            ratios.append(float(error / (x_0 - exact).square().mean()))
        bands.append(sum(ratios) / levels)
    return bands


def time_of(denoiser: Denoiser, log_snr: float) -> Tensor:
    """The time of a log-SNR, or the nearest legal one with noise."""
    t = denoiser.schedule.t_of(torch.tensor(log_snr, dtype=torch.float64)).clamp(0, 1)
    if denoiser.levels is None:
        return t
    levels = denoiser.levels[denoiser.schedule.log_snr(denoiser.levels).isfinite()]
    return levels[(levels - t).abs().argmin()]


@torch.no_grad()
def squared_errors(
    denoiser: Denoiser, x_0: Tensor, y: Tensor | None, t: Tensor, eps: Tensor
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(mean_d (x_0 - x_0_hat)_d^2, mean_d (eps - eps_hat)_d^2) of x_t = alpha_t x_0 + sigma_t eps, [B] each, on the CPU.

    Arguments:
        x_0, eps: [B, ...] on the denoiser's device.
        y: classes [B], None = no condition.
        t: 0-d.
    """
    alpha, sigma = (float(part) for part in denoiser.schedule.alpha_sigma(t))
    found = denoiser(alpha * x_0 + sigma * eps, t, y)
    return tuple((truth - guess).square().flatten(1).mean(1).cpu().double() for truth, guess in zip((x_0, eps), found))


def law_of(data: Dataset, schedule: Schedule) -> Oracle | None:
    """The exact law that a data set is drawn from, None where nobody knows it."""
    return LAWS[type(data)](data, schedule) if type(data) in LAWS else None


class DenoisingError(Metric):
    """E ||eps - eps_hat||^2 / D and E ||x_0 - x_0_hat||^2 / D on held-out data, at levels of equal distance in log-SNR.

    The mean over them is the integral over log-SNR by its length: half of the sum over D of the first, times the length, is
    the diffusion term of the likelihood bound (Kingma et al. 2021, arXiv 2107.00630, eq. 15), here by a few levels. Where
    the data are drawn from a known law there is also the `relative_excess_risk`, 0 = perfect.

    Arguments:
        levels: noise levels, the middles of equal parts of the schedule's range of log-SNR, 1 to 1000; an infinite end is
            cut at 20. A model with levels of its own is asked at the nearest of them, each once.
        conditional: whether a model with classes is told the examples' classes.
        exact: exact examples per level for the excess, at least 10; 0 = leave it out.

    Raises:
        ValueError: an argument out of its range.
    """

    name, needs = "denoising", (Denoiser,)

    def __init__(self, levels: int, conditional: bool, exact: int):
        if not 1 <= levels <= 1000:
            raise ValueError(f"levels must be 1 to 1000, got {levels}")
        if exact != 0 and exact < 2 * NUM_ESTIMATES:
            raise ValueError(
                f"exact must be 0 (no excess) or at least {2 * NUM_ESTIMATES} examples per level, got {exact}"
            )
        self.levels, self.give_labels, self.exact = levels, conditional, exact

    def check(self, context: EvalContext) -> None:
        super().check(context)
        if not self.give_labels and not context.model.has_null:
            raise ValueError(
                "metric.conditional=false needs a model that dropped labels in training (guidance=cfg); this one never did"
            )
        told = self.give_labels and context.model.num_classes
        if told and not context.model.has_null and bool((context.labels < 0).any()):
            raise ValueError(
                f"metric.conditional=true: the {context.split} split has examples without a class, and this model never "
                "dropped a label in training"
            )

    def measure(self, context: EvalContext) -> MetricResult:
        edges, schedule = self.edges(context.model.schedule), context.model.schedule
        middles = [(low + high) / 2 for low, high in zip(edges, edges[1:])]
        kept = list(range(self.levels))
        if context.model.levels is not None:  # the nearest of its own, each once
            middles = [float(schedule.log_snr(time_of(context.model, middle))) for middle in middles]
            kept = [k for k, middle in enumerate(middles) if middle not in middles[:k]]
            middles = [middles[k] for k in kept]
        errors = torch.cat([self.errors(context, first, middles) for first in context.firsts], dim=2)
        x_0, eps = errors
        curve = [
            {"log_snr": log_snr, "noise_level": math.exp(-log_snr / 2)}
            | mean_columns("mse_x_0", a)
            | mean_columns("mse_eps", b)
            for log_snr, a, b in zip(middles, x_0, eps)
        ]
        figures = {
            "mse_eps": mean(eps.mean(0), "per value of eps"),
            "mse_x_0": mean(x_0.mean(0), "per value of x_0"),
        }
        panels = [
            Panel("mse_eps", "E |eps - eps_hat|^2 / D", ("answering 0", 1.0)),
            Panel("mse_x_0", "E |x_0 - x_0_hat|^2 / D"),
        ]
        law = law_of(context.data, context.model.schedule) if self.exact else None
        if law is not None:
            ratios = self.ratios(context, law, edges)[:, kept]
            for row, ratio in zip(curve, ratios.T.tolist()):
                row |= {"excess": statistics.mean(ratio), "excess_se": statistics.stdev(ratio) / NUM_ESTIMATES**0.5}
            figures["excess"] = mean(ratios.mean(1), "share of the smallest error")._replace(
                n=self.exact // NUM_ESTIMATES * NUM_ESTIMATES
            )
            panels.append(Panel("excess", "excess over the smallest error"))
        own = "" if context.model.levels is None else " of the model's own, the nearest to levels"
        facts = {
            "weighting": f"mean over {len(kept)} levels{own} uniform in log-SNR from {edges[0]:g} to {edges[-1]:g}",
            "conditional": bool(self.uses_labels(context)),
            "law": None if law is None else type(law).__name__,
        }
        plot = Plot("denoising", "noise_level", "noise level sigma / alpha", True, panels)
        return MetricResult(figures, facts, curve, [plot])

    def edges(self, schedule: Schedule) -> list[float]:
        """Of the parts of the range of log-SNR, ascending."""
        low, high = max(schedule.log_snr_min, -MAX_LOG_SNR), min(schedule.log_snr_max, MAX_LOG_SNR)
        return [low + (high - low) * k / self.levels for k in range(self.levels)] + [high]

    def uses_labels(self, context: EvalContext) -> bool:
        """Whether the model is told classes."""
        return self.give_labels and context.model.num_classes > 0

    def errors(self, context: EvalContext, first: int, middles: Sequence[float]) -> Tensor:
        """Squared errors of a batch, of x_0 and of eps, [2, levels, b]."""

        def compute() -> dict:
            x_0, y = context.batch(first)
            noise, found = context.noise(first), []
            for log_snr in middles:
                t = time_of(context.model, log_snr)
                eps = noise.normal(t, 0)
                found.append(
                    torch.stack(squared_errors(context.model, x_0, y if self.uses_labels(context) else None, t, eps))
                )
            return {"errors": torch.stack(found, dim=1).numpy()}

        found = torch.from_numpy(context.parts.part(f"{first:010d}", compute)["errors"])
        context.progress(first + found.shape[2], context.n, "examples")
        return found

    def ratios(self, context: EvalContext, law: Oracle, edges: Sequence[float]) -> Tensor:
        """The excess at each level by independent exact examples, [repetitions, levels]."""
        return torch.tensor(
            [
                relative_excess_risk(
                    context.model, law, edges, self.exact // NUM_ESTIMATES, fold(context.seed, EXACT_PURPOSE, k),
                    self.uses_labels(context), 1, context.device,
                )
                for k in range(NUM_ESTIMATES)
            ],
            dtype=torch.float64,
        )  # fmt: skip


def mean_columns(name: str, values: Tensor) -> dict[str, float | None]:
    """The mean of values [N] and its standard error, as two columns."""
    figure: Figure = mean(values, "")
    return {name: figure.value, f"{name}_se": figure.standard_error}
