"""The error of a denoiser per noise level; for data of a known distribution also its excess over the smallest error."""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy
import torch
from torch import Tensor

from ..backbones.conditions import Condition
from ..datasets import GMM2D, Dataset, Mixture, Tree
from ..figures.plot_spec import Panel, Plot
from ..models.protocols import Denoiser
from ..oracles import AutoguidanceTree, GaussianMixture, GMM2DLaw, Oracle
from ..randomness import fold
from ..runtime.ranges import check_whole
from ..schedules import Schedule
from .class_conditional import ClassConditionalMetric
from .metric import EvalContext
from .noise_levels import time_of_log_snr
from .results import Figure, MetricResult, mean

__all__ = ["DenoisingError", "find_law", "relative_excess_risk", "squared_errors"]


def build_mixture(data: Mixture, schedule: Schedule) -> GaussianMixture:
    weights, means, covariances, labels = (part.tolist() for part in data.law)
    return GaussianMixture(weights, means, covariances, labels, schedule)


LAWS: dict[type, Callable[[Any, Schedule], Oracle]] = {  # of synthetic data sets
    GMM2D: lambda data, schedule: GMM2DLaw(schedule),
    Tree: lambda data, schedule: AutoguidanceTree(7, 2, schedule),
    Mixture: build_mixture,
}
MAX_LOG_SNR = 20.0  # replaces an infinite end of a schedule
EXACT_PURPOSE = 3  # purpose of the seed
NUM_ESTIMATES = 5  # independent estimates of the excess, for its standard error


@torch.no_grad()
def relative_excess_risk(
    denoiser: Denoiser,
    oracle: Oracle,
    edges: Sequence[float],
    n: int,
    seed: int,
    conditional: bool = True,
    levels: int = 8,
    device: torch.device | str = "cpu",
) -> list[float]:
    """E ||D(x_t) - E[x_0 | x_t]||^2 / E ||x_0 - E[x_0 | x_t]||^2 per band of log-SNR, 0 = perfect.

    The denominator is the error of the exact denoiser: 0.03 means a mean squared error 3 % above the smallest possible. The
    value of a band is the mean of the ratios at equally spaced levels.

    Arguments:
        denoiser: the model that is measured.
        oracle: the distribution of its data, on the CPU, with the denoiser's schedule.
        edges: of the B bands, increasing, within the range of the schedule, B + 1 values.
        n: noised examples per level.
        seed: of the examples.
        conditional: whether both get the labels of the examples, or no condition.
        levels: per band.
        device: of the denoiser.

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
            t = find_noisy_time(denoiser, low + (high - low) * (k + 0.5) / levels)
            alpha, sigma = schedule.alpha_sigma(t)
            x_0, y = oracle.sample(n, rng)
            x_t = alpha * x_0 + sigma * torch.randn(x_0.shape, generator=rng, dtype=torch.float64)
            exact = oracle(x_t, t, y if conditional else None).x_0
            predicted = denoiser(x_t.float().to(device), t, y.to(device) if conditional else None).x_0.double().cpu()
            error = (predicted - exact).square().mean()
            ratios.append(float(error / (x_0 - exact).square().mean()))
        bands.append(sum(ratios) / levels)
    return bands


def find_noisy_time(denoiser: Denoiser, log_snr: float) -> Tensor:
    """The time of a log-SNR; for a model with discrete levels the nearest level whose log-SNR is finite."""
    schedule, levels = denoiser.schedule, denoiser.levels
    if levels is not None:
        levels = levels[schedule.log_snr(levels).isfinite()]
    return time_of_log_snr(torch.tensor(log_snr, dtype=torch.float64), schedule, levels)


@torch.no_grad()
def squared_errors(denoiser: Denoiser, x_0: Tensor, y: Condition | None, t: Tensor, eps: Tensor) -> Tensor:
    """mean_d (x_0 - x_0_hat)_d^2 and mean_d (eps - eps_hat)_d^2 at x_t = alpha_t x_0 + sigma_t eps, [2, B] on the CPU.

    Arguments:
        x_0, eps: [B, ...] on the denoiser's device.
        y: classes [B], None = no condition.
        t: 0-d.
    """
    alpha, sigma = (float(scale) for scale in denoiser.schedule.alpha_sigma(t))
    predicted = denoiser(alpha * x_0 + sigma * eps, t, y)
    errors = (x_0 - predicted.x_0).square(), (eps - predicted.eps).square()
    return torch.stack([error.flatten(1).mean(1).cpu().double() for error in errors])


def find_law(data: Dataset, schedule: Schedule) -> Oracle | None:
    """The exact distribution of a synthetic data set, None = unknown."""
    return LAWS[type(data)](data, schedule) if type(data) in LAWS else None


class DenoisingError(ClassConditionalMetric):
    """E ||eps - eps_hat||^2 / D and E ||x_0 - x_0_hat||^2 / D on held-out data, at levels equally spaced in log-SNR.

    Their mean over levels estimates the integral over log-SNR divided by its length: the diffusion term of the likelihood
    bound is D/2 times that length times the first (Kingma et al. 2021, arXiv 2107.00630, eq. 15). For data of a known
    distribution there is also the `relative_excess_risk`, 0 = perfect.

    Arguments:
        levels: noise levels, 1 to 1000: the middles of equal parts of the schedule's log-SNR range, in which 20 replaces an
            infinite end. A model with discrete levels is evaluated at the nearest levels, at each once.
        conditional: whether a model with classes gets the labels of the examples.
        exact: exact examples per level for the excess, at least 10; 0 = no excess.
    """

    name = "denoising"
    needs = (Denoiser,)

    def __init__(self, levels: int = 20, conditional: bool = True, exact: int = 2000):
        if exact != 0 and exact < 2 * NUM_ESTIMATES:
            raise ValueError(
                f"exact must be 0 (no excess) or at least {2 * NUM_ESTIMATES} examples per level, got {exact}"
            )
        super().__init__(conditional)
        self.levels = check_whole("levels", levels, 1, 1000)
        self.exact = exact

    def check(self, context: EvalContext) -> None:
        super().check(context)
        self.edges(context.schedule)  # raises without noise levels
        if self.uses_labels(context) and not context.has_null and bool((context.labels < 0).any()):
            raise ValueError(
                f"metric.conditional=true: the {context.split} split has examples without a label, and this model did not "
                "drop labels in training"
            )

    def measure(self, context: EvalContext) -> MetricResult:
        schedule = context.schedule
        edges = self.edges(schedule)
        middles = [(low + high) / 2 for low, high in zip(edges, edges[1:])]
        distinct = list(range(self.levels))
        if context.levels is not None:  # the nearest levels of the model, each once
            middles = [float(schedule.log_snr(find_noisy_time(context.denoiser, middle))) for middle in middles]
            distinct = [k for k, middle in enumerate(middles) if middle not in middles[:k]]
            middles = [middles[k] for k in distinct]
        batches = context.compute_batches(lambda first: {"errors": self.measure_batch(context, first, middles).numpy()})
        x_0, eps = torch.from_numpy(numpy.concatenate(batches["errors"], axis=2))
        curve = list[dict[str, float | None]]()
        for log_snr, x_0_errors, eps_errors in zip(middles, x_0, eps):
            row: dict[str, float | None] = {"log_snr": log_snr, "noise_level": math.exp(-log_snr / 2)}
            curve.append(row | mean_columns("mse_x_0", x_0_errors) | mean_columns("mse_eps", eps_errors))
        figures = {"mse_eps": mean(eps.mean(0), "per value of eps"), "mse_x_0": mean(x_0.mean(0), "per value of x_0")}
        panels = [
            Panel("mse_eps", "E |eps - eps_hat|^2 / D", ("predicting 0", 1.0)),
            Panel("mse_x_0", "E |x_0 - x_0_hat|^2 / D"),
        ]
        law = find_law(context.data, schedule) if self.exact else None
        if law is not None:
            figures["excess"] = self.add_excess(curve, self.measure_excess(context, law, edges)[:, distinct])
            panels.append(Panel("excess", "excess over the smallest error"))
        nearest = "" if context.levels is None else " of the model, the nearest to levels"
        facts = {
            "weighting": f"mean over {len(distinct)} levels{nearest} uniform in log-SNR from {edges[0]:g} to {edges[-1]:g}",
            "conditional": self.uses_labels(context),
            "law": None if law is None else type(law).__name__,
        }
        plot = Plot("denoising", "noise_level", "noise level sigma / alpha", True, panels)
        return MetricResult(figures, facts, curve, [plot])

    def edges(self, schedule: Schedule) -> list[float]:
        """The edges of equal parts of the log-SNR range, ascending."""
        low, high = max(schedule.log_snr_min, -MAX_LOG_SNR), min(schedule.log_snr_max, MAX_LOG_SNR)
        return [low + (high - low) * k / self.levels for k in range(self.levels)] + [high]

    def measure_batch(self, context: EvalContext, first: int, log_snrs: Sequence[float]) -> Tensor:
        """Squared errors of a batch, of x_0 and of eps, [2, levels, b]."""
        x_0, labels = context.batch(first)
        y = labels if self.uses_labels(context) else None
        noise = context.noise(first)
        errors = []
        for log_snr in log_snrs:
            t = find_noisy_time(context.denoiser, log_snr)
            errors.append(squared_errors(context.denoiser, x_0, y, t, noise.normal(t, 0)))
        return torch.stack(errors, dim=1)

    def measure_excess(self, context: EvalContext, law: Oracle, edges: Sequence[float]) -> Tensor:
        """The excess at each level, by independent sets of exact examples, [estimates, levels]."""
        n = self.exact // NUM_ESTIMATES
        labels = self.uses_labels(context)
        ratios = []
        for k in range(NUM_ESTIMATES):
            seed = fold(context.seed, EXACT_PURPOSE, k)
            ratios.append(relative_excess_risk(context.denoiser, law, edges, n, seed, labels, 1, context.device))
        return torch.tensor(ratios, dtype=torch.float64)

    def add_excess(self, curve: Sequence[dict[str, float | None]], ratios: Tensor) -> Figure:
        """Adds the excess of each level, [estimates, levels], to the curve; returns their mean."""
        for row, ratio in zip(curve, ratios.T.tolist()):
            row |= {"excess": statistics.mean(ratio), "excess_se": statistics.stdev(ratio) / NUM_ESTIMATES**0.5}
        n = self.exact // NUM_ESTIMATES * NUM_ESTIMATES
        return mean(ratios.mean(1), "share of the smallest error")._replace(n=n)


def mean_columns(name: str, values: Tensor) -> dict[str, float | None]:
    """The mean of values [N] and its standard error, as two columns."""
    figure: Figure = mean(values, "")
    return {name: figure.value, f"{name}_se": figure.standard_error}
