"""The metrics elbo, ode and log_density: -log p of a split, in bits or nats per dimension."""

import math
from typing import Any

import torch
from torch import Tensor

from ...datasets.base import fetch_examples
from ...figures.plot_spec import Panel, Plot
from ...models.decoders import Discretized, Gaussian
from ...models.protocols import Denoiser, LogDensity
from ...randomness import Noise, fold
from ..metric import EvalContext, mean
from .base import NLL, Arrays, Density, PointDensity, Within
from .control_variate import GaussianFit
from .dequantization import DecoderDequantization, Dequantization
from .elbo import Control, Piece, elbo, fit_control, pieces, reconstruction
from .flow_ode import FixedGrid, Hutchinson, Solver, Trace, flow_log_density

__all__ = ["ELBO", "ExactDensity", "FlowODE"]

FIT_EXAMPLES = 10000  # training examples for the Gaussian
PILOT_PURPOSE = 11  # purpose of the seed
VARIATIONAL = "diffguide.objectives.variational.Variational"  # the objective whose `steps` are those of a bound


def start_indices(terms: list[Piece]) -> list[int]:
    """The pieces that may as well end in z_0: at most 32, evenly spread, with the last one."""
    return list(range(len(terms) - 1, -1, -math.ceil(len(terms) / 32)))[::-1]


class ELBO(Density):
    """The variational bound of a denoiser: prior + reconstruction + diffusion. Kingma et al. 2021, arXiv 2107.00630, eq. 18.

    The decoder is discretised for discrete data, Gaussian for continuous ones. A control variate lowers the noise: the error
    of a Gaussian fitted to the training split, whose mean is known, with a coefficient per stratum from a pilot run.

    The curve is the bound against the log-SNR of z_0, the least noisy latent; each point is a valid bound. Where a network was
    not trained for discrete data at small noise, an earlier decoder (a lower log_snr_max) gives a better bound.

    Arguments:
        levels: strata of log-SNR with one evaluation each, at least 1. A model with discrete levels is evaluated at each.
        steps: T, instead of strata: the bound of T ancestral steps at t = k / T (eq. 13); 0 = continuous time; None =
            objective.steps of the run if it has such, else continuous time.
        replicates: independent repetitions, at least 2; evaluations per example = levels x replicates.
        draws: of the reconstruction, at least 2; they cost no evaluation.
        pilot: training examples for the coefficients, evaluated 2 x levels times each; 0 = no control variate.
        floor: variance added to that of the Gaussian in every direction, in units of x squared; positive.
        conditional, values, log_snr_max: see `Density`.
    """

    name, part, needs = "elbo", "elbo", (Denoiser,)

    def __init__(
        self, levels: int = 128, steps: int | None = None, replicates: int = 2, draws: int = 16, pilot: int = 64,
        floor: float = 0.001, conditional: bool | None = None, values: int | None = None,
        log_snr_max: float | None = None,
    ):  # fmt: skip
        super().__init__(conditional, values, log_snr_max)
        least = levels >= 1 and (steps is None or steps >= 0) and replicates >= 2 and draws >= 2 and pilot >= 0
        if not least or not 0 < floor < math.inf:
            raise ValueError(
                "levels must be at least 1, replicates and draws at least 2, steps and pilot at least 0, floor finite and "
                f"above 0; got levels={levels}, steps={steps}, replicates={replicates}, draws={draws}, pilot={pilot}, "
                f"floor={floor}"
            )
        self.levels, self.steps, self.replicates = levels, steps, replicates
        self.draws, self.pilot, self.floor = draws, pilot, float(floor)

    def check(self, context: EvalContext) -> None:
        super().check(context)
        discrete = context.levels is not None
        if self.steps is not None and discrete:
            raise ValueError(
                f"{self.key}.steps={self.steps} has no effect: this {context.model_name} has discrete noise levels; remove it"
            )
        if self.log_snr_max is not None and discrete:
            raise ValueError(f"a bound of discrete levels starts at the first: remove {self.key}.log_snr_max")
        if self.log_snr_max is not None and self.steps_of(context):
            instead = f", or use {self.key}.steps=0 for continuous time" if self.steps is None else ""
            raise ValueError(f"a bound of discrete steps starts at the first: remove {self.key}.log_snr_max{instead}")

    def steps_of(self, context: EvalContext) -> int:
        """T; 0 = continuous time, or discrete levels of the model."""
        if self.steps is not None or context.levels is not None:
            return self.steps or 0
        objective = context.config.get("objective") or {}
        return objective.get("steps") or 0 if objective.get("_target_") == VARIATIONAL else 0

    def terms(self, context: EvalContext) -> list[Piece]:
        times = context.levels
        if steps := self.steps_of(context):
            times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        elif times is not None:
            times = torch.cat([times[times > 0].cpu(), torch.zeros(1, dtype=torch.float64)])
        return pieces(context.schedule, self.levels, times, self.log_snr_max)

    def control(self, context: EvalContext, terms: list[Piece]) -> Control | None:
        """The control variate, fitted to the training split."""
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

    def nll_fn(self, context: EvalContext) -> NLL:
        terms, values = self.terms(context), self.num_values(context)
        decoder, control = Discretized(values) if values else Gaussian(), self.control(context, terms)
        starts = start_indices(terms)

        def nll(x: Tensor, y: Tensor | None, noise: Noise, within: Within) -> Arrays:
            bound = elbo(context.denoiser, x, y, decoder, noise, terms, self.replicates, self.draws, control, within)
            samples = [noise.normal(len(terms), k) for k in (0, 1)]
            codes = [reconstruction(x, decoder, terms[k].end, samples).mean(0) for k in starts]
            bounds = bound.prior + bound.terms.cumsum(0)[starts] + torch.stack(codes)
            bounds[-1] = bound.nats  # the same bound, with all of its draws
            parts = {name: getattr(bound, name) for name in ("prior", "reconstruction", "diffusion", "noise")}
            return parts | {"starts": bounds.mT}

        return nll

    def curve(
        self, context: EvalContext, later: Tensor, column: str, unit: str
    ) -> tuple[list[dict[str, float | None]], list[Plot]]:
        terms, rows = self.terms(context), list[dict[str, float | None]]()
        for k, nats in zip(start_indices(terms), later.mT):
            found = mean(nats, unit)
            rows.append({"log_snr_max": float(terms[k].end), column: found.value, f"{column}_se": found.standard_error})
        return rows, [Plot("elbo_start", "log_snr_max", "log-SNR of z_0", False, [Panel(column, unit)])]

    def facts(self, context: EvalContext) -> dict[str, Any]:
        count, steps = len(self.terms(context)), self.steps_of(context)
        return {
            "estimate": "variational bound",
            "steps": steps or None,
            "levels": count,
            "steps_of": "the model's objective" if steps and self.steps is None else "the metric",
            "replicates": self.replicates,
            "pilot": self.pilot,
            "evaluations_per_example": count * self.replicates,
            "dequantisation": "discretised decoder"
            if self.num_values(context)
            else "none: continuous, Gaussian decoder",
        }


class FlowODE(PointDensity):
    """log p by the probability-flow ODE. Song et al. 2021, arXiv 2011.13456, eq. 39.

    Arguments:
        trace: of the divergence, None = `Hutchinson()`.
        solver: of the ODE, None = `FixedGrid()`.
        dequantization, draws: see `PointDensity`; every draw is a whole ODE, with other probes.
        conditional, values, log_snr_max: see `Density`.

    Raises:
        ValueError: from check: a model with discrete levels and a solver that leaves them, or a model without and a solver
            that needs them.
    """

    name, part, needs = "ode", "ode", (Denoiser,)

    def __init__(
        self, trace: Trace | None = None, solver: Solver | None = None, dequantization: Dequantization | None = None,
        draws: int = 1, conditional: bool | None = None, values: int | None = None, log_snr_max: float | None = None,
    ):  # fmt: skip
        super().__init__(dequantization, draws, conditional, values, log_snr_max)
        self.trace, self.solver = trace or Hutchinson(), solver or FixedGrid()
        self.random = self.trace.random

    def check(self, context: EvalContext) -> None:
        super().check(context)
        self.trace.check(math.prod(context.shape))
        discrete, node = context.levels is not None, self.option("solver")
        if discrete and not self.solver.at_levels:
            raise ValueError(
                f"this {context.model_name} has discrete noise levels, which {self.key}.solver leaves: use {node}=levels"
            )
        if self.solver.at_levels and not discrete:
            raise ValueError(
                f"{self.key}.solver is for discrete noise levels, and this {context.model_name} has continuous time: use "
                f"{node}=fixed_grid"
            )

    def log_density(
        self, context: EvalContext, x: Tensor, y: Tensor | None, noise: Noise, index: int, within: Within
    ) -> Tensor:
        start = self.start_log_snr(context)
        density = flow_log_density(context.denoiser, x, y, self.trace, self.solver, noise, index, start, within)
        return density.log_density

    def facts(self, context: EvalContext) -> dict[str, Any]:
        own = {"estimate": "probability-flow ODE", "trace": self.trace.text, "solver": self.solver.text}
        return own | super().facts(context)


class ExactDensity(PointDensity):
    """log p of a model with a normalised log-density, of z_0 = x_t / alpha as for the ODE.

    Arguments:
        dequantization, draws: see `PointDensity`.
        conditional, values, log_snr_max: see `Density`.

    Raises:
        ValueError: from check: a log-density up to a constant, or a dequantisation unlike that of the training.
    """

    name, part, needs = "log_density", "exact", (LogDensity,)

    def check(self, context: EvalContext) -> None:
        super().check(context)
        if not context.require(LogDensity).normalized:
            raise ValueError(
                f"metric={self.name}: the log-density of this {context.model_name} is known up to a constant only"
            )
        spread = (context.config.get("objective") or {}).get("quantization_levels")
        if not self.num_values(context) or not isinstance(self.dequantization, DecoderDequantization):
            return
        node = self.option("dequantization")
        if math.isinf(self.start_log_snr(context)):
            raise ValueError(f"{self.key}.dequantization=decoded needs noise, and t = 0 has none: use {node}=uniform")
        if spread and self.log_snr_max is None:
            raise ValueError(
                f"{self.key}.dequantization=decoded does not fit this {context.model_name}, which was trained on uniformly "
                f"dequantised data: use {node}=uniform, or a lower {self.key}.log_snr_max"
            )

    def start_log_snr(self, context: EvalContext) -> float:
        """As for every likelihood; for discrete levels the first, which may be that of data without noise."""
        if self.log_snr_max is None and context.levels is not None:
            return context.schedule.log_snr_max
        return super().start_log_snr(context)

    def log_density(
        self, context: EvalContext, x: Tensor, y: Tensor | None, noise: Noise, index: int, within: Within
    ) -> Tensor:
        schedule, levels = context.schedule, context.levels
        t = schedule.t_of(torch.tensor(self.start_log_snr(context), dtype=torch.float64)).clamp(0, 1)
        t = t if levels is None else levels[(levels - t).abs().argmin()]
        alpha = float(schedule.alpha_sigma(t)[0])
        return context.require(LogDensity).log_density(alpha * x, t, y) + x[0].numel() * math.log(alpha)

    def facts(self, context: EvalContext) -> dict[str, Any]:
        return {"estimate": "the model's own log-density"} | super().facts(context)
