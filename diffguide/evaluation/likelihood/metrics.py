"""The metrics elbo, ode and log_density: -log p of a split, in bits or nats per dimension."""

import math
from typing import Any

import torch
from torch import Tensor

from ...backbones.conditions import Condition
from ...datasets.base import fetch_examples
from ...figures.plot_spec import Panel, Plot
from ...models.decoders import Discretized, Gaussian
from ...models.protocols import Denoiser, LogDensity
from ...randomness import Noise, fold
from ...runtime.ranges import check_range, check_whole
from ..metric import EvalContext, Report
from ..noise_levels import time_of_log_snr
from ..results import mean
from .base import NLL, Arrays, Density
from .control_variate import GaussianFit
from .dequantization import DecoderDequantization, Dequantization
from .elbo import Control, Piece, elbo, fit_control, pieces, reconstruction
from .flow_ode import FixedGrid, Hutchinson, Solver, Trace, flow_log_density
from .point_density import PointDensity

__all__ = ["ELBO", "ExactDensity", "FlowODE"]

FIT_EXAMPLES = 10000  # training examples for the Gaussian
PILOT_PURPOSE = 11  # purpose of the seed
VARIATIONAL = "diffguide.objectives.variational.Variational"  # its `steps` are the steps of a bound


def choose_starts(terms: list[Piece]) -> list[int]:
    """The pieces after which the curve has a point: at most 32, evenly spaced, including the last one."""
    return list(range(len(terms) - 1, -1, -math.ceil(len(terms) / 32)))[::-1]


class ELBO(Density):
    """The variational bound of a denoiser: prior + reconstruction + diffusion. Kingma et al. 2021, arXiv 2107.00630, eq. 18.

    The decoder is discretized for discrete data, and Gaussian for continuous data. A control variate lowers the noise: the
    error of a Gaussian fitted to the training split, whose mean is known, with a coefficient per stratum from a pilot run.

    The curve is the bound against the log-SNR of z_0, the least noisy latent; each point is a valid bound. If a network was
    not trained on discrete data at small noise, an earlier decoder (a lower log_snr_max) gives a better bound.

    Arguments:
        levels: strata of log-SNR with one evaluation each, at least 1; ignored for a model with discrete levels, which is
            evaluated at every level.
        steps: T, instead of strata: the bound of T ancestral steps at t = k / T (eq. 13); 0 = continuous time; None =
            objective.steps of a run with objective=vdm, else continuous time.
        replicates: independent repetitions, at least 2; evaluations per example = levels x replicates.
        draws: of the reconstruction, at least 2; they need no evaluation.
        pilot: training examples for the coefficients, evaluated 2 x levels times each; 0 = no control variate.
        floor: variance added to the Gaussian in every direction, in units of x squared; positive.
        conditional, quantization_levels, log_snr_max: see `Density`.
    """

    name = "elbo"
    part = "elbo"
    needs = (Denoiser,)

    def __init__(
        self,
        levels: int = 128,
        steps: int | None = None,
        replicates: int = 2,
        draws: int = 16,
        pilot: int = 64,
        floor: float = 0.001,
        conditional: bool | None = None,
        quantization_levels: int | None = None,
        log_snr_max: float | None = None,
    ):
        super().__init__(conditional, quantization_levels, log_snr_max)
        self.levels = check_whole("levels", levels, 1)
        self.steps = None if steps is None else check_whole("steps", steps, 0)
        self.replicates = check_whole("replicates", replicates, 2)
        self.draws = check_whole("draws", draws, 2)
        self.pilot = check_whole("pilot", pilot, 0)
        self.floor = check_range("floor", floor, "(0, inf)")

    def check(self, context: EvalContext) -> None:
        super().check(context)
        discrete = context.levels is not None
        if self.steps is not None and discrete:
            raise ValueError(
                f"{self.key}.steps={self.steps} has no effect: this {context.model_name} has discrete noise levels; remove it"
            )
        if self.log_snr_max is not None and (discrete or self.num_steps(context)):
            continuous = not discrete and self.steps is None
            instead = f", or use {self.key}.steps=0 for continuous time" if continuous else ""
            raise ValueError(f"a bound of discrete steps starts at the first: remove {self.key}.log_snr_max{instead}")

    def num_steps(self, context: EvalContext) -> int:
        """T; 0 = continuous time, or a model with discrete levels."""
        if self.steps is not None or context.levels is not None:
            return self.steps or 0
        objective = context.config.get("objective") or {}
        return objective.get("steps") or 0 if objective.get("_target_") == VARIATIONAL else 0

    def terms(self, context: EvalContext) -> list[Piece]:
        """The pieces of the diffusion term."""
        times = context.levels
        if steps := self.num_steps(context):
            times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        elif times is not None:
            times = torch.cat([times[times > 0].cpu(), torch.zeros(1, dtype=torch.float64)])
        return pieces(context.schedule, self.levels, times, self.log_snr_max)

    def fit_control(self, context: EvalContext, terms: list[Piece]) -> Control | None:
        """Fits the control variate to the training split."""
        if not self.pilot:
            return None

        def report(share: float) -> None:
            context.progress(round(share * len(terms)), len(terms), "levels of the pilot run")

        report(0.0)
        data, train = context.data, context.data.train
        order = torch.randperm(len(train.y), generator=torch.Generator().manual_seed(fold(context.seed, PILOT_PURPOSE)))
        examples, _ = fetch_examples(train, order[:FIT_EXAMPLES])
        fit = GaussianFit.to_data(data.preprocess(examples), self.floor).to(context.device)
        rows = order[: self.pilot]
        examples, labels = fetch_examples(train, rows)
        x = data.preprocess(examples).to(context.device)
        y = labels.to(context.device) if self.uses_labels(context) else None
        seeds = [fold(context.seed, PILOT_PURPOSE, row) for row in rows.tolist()]
        noise = Noise(seeds, context.shape, context.schedule, context.device, x.dtype)
        return fit_control(fit, context.denoiser, x, y, noise, terms, report)

    def build_nll(self, context: EvalContext) -> NLL:
        terms, values = self.terms(context), self.num_values(context)
        decoder = Discretized(values) if values else Gaussian()
        control = self.fit_control(context, terms)
        starts = choose_starts(terms)

        def nll(x: Tensor, y: Condition | None, noise: Noise, report: Report) -> Arrays:
            bound = elbo(context.denoiser, x, y, decoder, noise, terms, self.replicates, self.draws, control, report)
            samples = [noise.normal(len(terms), k) for k in (0, 1)]
            reconstructions = [reconstruction(x, decoder, terms[k].end, samples).mean(0) for k in starts]
            bounds = bound.prior + bound.terms.cumsum(0)[starts] + torch.stack(reconstructions)
            bounds[-1] = bound.nats  # the same bound, with all of its draws
            parts = {name: getattr(bound, name) for name in ("prior", "reconstruction", "diffusion", "noise")}
            return parts | {"starts": bounds.mT}

        return nll

    def curve(
        self, context: EvalContext, later: Tensor, column: str, unit: str
    ) -> tuple[list[dict[str, float | None]], list[Plot]]:
        terms, rows = self.terms(context), list[dict[str, float | None]]()
        for k, nats in zip(choose_starts(terms), later.mT):
            bound = mean(nats, unit)
            rows.append({"log_snr_max": float(terms[k].end), column: bound.value, f"{column}_se": bound.standard_error})
        return rows, [Plot("elbo_start", "log_snr_max", "log-SNR of z_0", False, [Panel(column, unit)])]

    def facts(self, context: EvalContext) -> dict[str, Any]:
        count, steps = len(self.terms(context)), self.num_steps(context)
        decoder = "discretised decoder" if self.num_values(context) else "none: continuous, Gaussian decoder"
        return {
            "estimate": "variational bound",
            "steps": steps or None,
            "levels": count,
            "steps_of": "the model's objective" if steps and self.steps is None else "the metric",
            "replicates": self.replicates,
            "pilot": self.pilot,
            "evaluations_per_example": count * self.replicates,
            "dequantisation": decoder,
        }


class FlowODE(PointDensity):
    """log p by the probability-flow ODE. Song et al. 2021, arXiv 2011.13456, eq. 39.

    Arguments:
        trace: of the divergence, None = `Hutchinson()`.
        solver: of the ODE, None = `FixedGrid()`.
        dequantization, draws: see `PointDensity`; every draw solves the ODE once, with its own probes.
        conditional, quantization_levels, log_snr_max: see `Density`.

    Raises:
        ValueError: from check: a solver for discrete levels and a model in continuous time, or the other way round.
    """

    name = "ode"
    part = "ode"
    needs = (Denoiser,)
    differentiates = True

    def __init__(
        self,
        trace: Trace | None = None,
        solver: Solver | None = None,
        dequantization: Dequantization | None = None,
        draws: int = 1,
        conditional: bool | None = None,
        quantization_levels: int | None = None,
        log_snr_max: float | None = None,
    ):
        super().__init__(dequantization, draws, conditional, quantization_levels, log_snr_max)
        self.trace, self.solver = trace or Hutchinson(), solver or FixedGrid()
        self.random = self.trace.random

    def check(self, context: EvalContext) -> None:
        super().check(context)
        self.trace.check(math.prod(context.shape))
        discrete = context.levels is not None
        if discrete != self.solver.at_levels:
            times, right = ("discrete noise levels", "levels") if discrete else ("continuous time", "fixed_grid")
            raise ValueError(
                f"{self.key}.solver does not fit this {context.model_name}, which has {times}: use "
                f"{self.name_option('solver')}={right}"
            )

    def log_density(
        self, context: EvalContext, x: Tensor, y: Condition | None, noise: Noise, index: int, report: Report
    ) -> Tensor:
        start = self.start_log_snr(context)
        return flow_log_density(context.denoiser, x, y, self.trace, self.solver, noise, index, start, report)

    def facts(self, context: EvalContext) -> dict[str, Any]:
        settings = {"estimate": "probability-flow ODE", "trace": self.trace.text, "solver": self.solver.text}
        return settings | super().facts(context)


class ExactDensity(PointDensity):
    """log p of a model with a normalised log-density, of z_0 = x_t / alpha as for the ODE.

    Arguments:
        dequantization, draws: see `PointDensity`.
        conditional, quantization_levels, log_snr_max: see `Density`.

    Raises:
        ValueError: from check: a log-density up to a constant, or a dequantization other than that in training.
    """

    name = "log_density"
    part = "exact"
    needs = (LogDensity,)

    def check(self, context: EvalContext) -> None:
        super().check(context)
        if not context.require(LogDensity).normalized:
            raise ValueError(
                f"metric={self.name}: the log-density of this {context.model_name} is known up to a constant only"
            )
        spread = (context.config.get("objective") or {}).get("quantization_levels")
        if not self.num_values(context) or not isinstance(self.dequantization, DecoderDequantization):
            return
        option = self.name_option("dequantization")
        if math.isinf(self.start_log_snr(context)):
            raise ValueError(f"{self.key}.dequantization=decoded needs noise, and t = 0 has none: use {option}=uniform")
        if spread and self.log_snr_max is None:
            raise ValueError(
                f"{self.key}.dequantization=decoded does not fit this {context.model_name}, which was trained on uniformly "
                f"dequantized data: use {option}=uniform, or a lower {self.key}.log_snr_max"
            )

    def start_log_snr(self, context: EvalContext) -> float:
        """The log-SNR of z_0; for discrete levels by default the first level, which may have no noise."""
        if self.log_snr_max is None and context.levels is not None:
            return context.schedule.log_snr_max
        return super().start_log_snr(context)

    def log_density(
        self, context: EvalContext, x: Tensor, y: Condition | None, noise: Noise, index: int, report: Report
    ) -> Tensor:
        start = torch.tensor(self.start_log_snr(context), dtype=torch.float64)
        t = time_of_log_snr(start, context.schedule, context.levels)
        alpha = float(context.schedule.alpha_sigma(t)[0])
        return context.require(LogDensity).log_density(alpha * x, t, y) + x[0].numel() * math.log(alpha)

    def facts(self, context: EvalContext) -> dict[str, Any]:
        return {"estimate": "log-density of the model"} | super().facts(context)
