"""The metrics elbo, ode, log_density and likelihood: how probable a model finds a split, in bits or nats per dimension."""

import itertools
import math

import torch
from torch import Tensor

from ...datasets.base import fetch_examples
from ...figures.plot_spec import Panel, Plot
from ...models.decoders import Discretized, Gaussian
from ...models.protocols import Denoiser, LogDensity
from ...randomness import Noise, fold
from ..metric import EvalContext, Metric, MetricResult, mean
from .base import Answer, Arrays, Density, PointDensity, Within, nll_parts
from .control_variate import GaussianFit
from .dequantization import DecoderDequantization, Dequantization
from .elbo import Control, Piece, elbo, fit_control, pieces, reconstruction
from .flow_ode import Solver, Trace, flow_log_density

__all__ = ["ELBO", "ExactDensity", "FlowODE", "Likelihoods"]

FIT_EXAMPLES, PILOT_PURPOSE = 10000, 11  # training examples for the Gaussian; a purpose of the seed
VARIATIONAL = "diffguide.objectives.variational.Variational"  # the objective whose `steps` are those of a bound


def start_indices(terms: list[Piece]) -> list[int]:
    """The pieces behind which z_0 might lie as well: at most 32, evenly spread, the last one among them."""
    return list(range(len(terms) - 1, -1, -math.ceil(len(terms) / 32)))[::-1]


class ELBO(Density):
    """The variational bound of a denoiser: prior + reconstruction + diffusion. Kingma et al. 2021, arXiv 2107.00630, eq. 18.

    Discrete data through the discretised decoder, continuous ones through a Gaussian. The error of the Gaussian fitted to
    the training split, whose mean is known, is subtracted draw by draw, with a coefficient per stratum from a pilot run.

    The curve is the bound against the log-SNR of z_0, the least noisy latent: each of its points is a valid bound. A network
    that was not trained to see a grid of values at small noise is better relieved by the decoder earlier (log_snr_max).

    Arguments:
        levels: strata of log-SNR, each with one evaluation; at least 1. A model with discrete levels is asked at each.
        steps: T, in place of the strata: the bound of T ancestral steps at t = k / T (eq. 13); 0 = that of continuous time;
            None = as the model was trained, objective.steps of the run, where that says so, else continuous time.
        replicates: independent repetitions, at least 2; evaluations per example = levels x replicates.
        draws: of the reconstruction, at least 2; they cost no evaluation.
        pilot: training examples for the coefficients, evaluated 2 x levels times each; 0 = no control variate.
        floor: variance added to the Gaussian's in every direction, in units of x squared; positive.
        conditional, values, log_snr_max: see `Density`.
    """

    name, part, needs = "elbo", "elbo", (Denoiser,)

    def __init__(
        self, levels: int, steps: int | None, replicates: int, draws: int, pilot: int, floor: float, conditional: bool | None,
        values: int | None, log_snr_max: float | None,
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
        if self.steps is not None and context.model.levels is not None:
            raise ValueError(
                f"{self.key}.steps={self.steps}: this {context.model_name} has noise levels of its own, and is asked there: "
                "leave null"
            )
        if self.log_snr_max is not None and context.model.levels is not None:
            raise ValueError(f"a bound of discrete levels ends where they do: leave {self.key}.log_snr_max null")
        if self.log_snr_max is not None and self.steps_of(context):
            instead = f", or take {self.key}.steps=0 for continuous time" if self.steps is None else ""
            raise ValueError(
                f"a bound of discrete steps ends where they do: leave {self.key}.log_snr_max null{instead}"
            )

    def steps_of(self, context: EvalContext) -> int:
        """T; 0 = continuous time, or levels of the model's own."""
        if self.steps is not None or context.model.levels is not None:
            return self.steps or 0
        objective = context.config.get("objective") or {}
        return objective.get("steps") or 0 if objective.get("_target_") == VARIATIONAL else 0

    def terms(self, context: EvalContext) -> list[Piece]:
        times = context.model.levels
        if steps := self.steps_of(context):
            times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        elif times is not None:
            times = torch.cat([times[times > 0].cpu(), torch.zeros(1, dtype=torch.float64)])
        return pieces(context.model.schedule, self.levels, times, self.log_snr_max)

    def control(self, context: EvalContext, terms: list[Piece]) -> Control | None:
        """Fitted and tuned on the training split."""
        if not self.pilot:
            return None

        def tell(done: int) -> None:
            context.progress(done, len(terms), "levels of the pilot run")

        tell(0)
        train, schedule = context.data.train, context.model.schedule
        order = torch.randperm(len(train.y), generator=torch.Generator().manual_seed(fold(context.seed, PILOT_PURPOSE)))
        x = context.data.preprocess(fetch_examples(train, order[:FIT_EXAMPLES])[0])
        fit = GaussianFit.to_data(x, self.floor).to(context.device)
        rows = order[: self.pilot]
        x, y = fetch_examples(train, rows)
        x, y = (
            context.data.preprocess(x).to(context.device),
            y.to(context.device) if self.uses_labels(context) else None,
        )
        seeds = [fold(context.seed, PILOT_PURPOSE, row) for row in rows.tolist()]
        noise = Noise(seeds, context.shape, schedule, context.device, x.dtype)
        return fit_control(fit, context.model, x, y, noise, terms, lambda share: tell(round(share * len(terms))))

    def nll_fn(self, context: EvalContext) -> Answer:
        terms, values = self.terms(context), self.num_values(context)
        decoder, control = Discretized(values) if values else Gaussian(), self.control(context, terms)

        def bound(x: Tensor, y: Tensor | None, noise: Noise, within: Within) -> Arrays:
            found = elbo(context.model, x, y, decoder, noise, terms, self.replicates, self.draws, control, within)
            samples = [noise.normal(len(terms), k) for k in (0, 1)]
            codes = [reconstruction(x, decoder, terms[k].end, samples).mean(0) for k in start_indices(terms)]
            later = found.prior + found.terms.cumsum(0)[start_indices(terms)] + torch.stack(codes)
            later[-1] = found.nats  # the same bound, with all of its draws
            parts = {name: getattr(found, name) for name in ("prior", "reconstruction", "diffusion", "noise")}
            return parts | {"starts": later.mT}

        return bound

    def curve(
        self, context: EvalContext, later: Tensor, column: str, unit: str
    ) -> tuple[list[dict[str, float]], list[Plot]]:
        terms, rows = self.terms(context), []
        for k, nats in zip(start_indices(terms), later.mT):
            found = mean(nats, unit)
            rows.append({"log_snr_max": float(terms[k].end), column: found.value, f"{column}_se": found.standard_error})
        return rows, [Plot("elbo_start", "log_snr_max", "log-SNR of z_0", False, [Panel(column, unit)])]

    def facts(self, context: EvalContext) -> dict[str, object]:
        count, steps = len(self.terms(context)), self.steps_of(context)
        return {
            "estimate": "variational bound", "steps": steps or None, "levels": count,
            "steps_of": "the model's objective" if steps and self.steps is None else "the metric",
            "replicates": self.replicates, "pilot": self.pilot, "evaluations_per_example": count * self.replicates,
            "dequantisation": "discretised decoder" if self.num_values(context) else "none: continuous, Gaussian decoder",
        }  # fmt: skip


class FlowODE(PointDensity):
    """log p by the probability-flow ODE. Song et al. 2021, arXiv 2011.13456, eq. 39.

    Arguments:
        trace, solver: how the divergence and the ODE are computed.
        dequantization, draws: see `PointDensity`; every draw is a whole ODE, with other probes.
        conditional, values, log_snr_max: see `Density`.

    Raises:
        ValueError: from check: a model with discrete levels, with a solver that leaves them, or the other way round.
    """

    name, part, needs = "ode", "ode", (Denoiser,)

    def __init__(
        self, trace: Trace, solver: Solver, dequantization: Dequantization, draws: int, conditional: bool | None,
        values: int | None, log_snr_max: float | None,
    ):  # fmt: skip
        super().__init__(dequantization, draws, conditional, values, log_snr_max)
        self.trace, self.solver, self.random = trace, solver, trace.random

    def check(self, context: EvalContext) -> None:
        super().check(context)
        self.trace.check(math.prod(context.shape))
        if (context.model.levels is not None) != self.solver.at_levels:
            node = f"metric/solver@{self.key}.solver" if self.key != "metric" else "metric/solver"
            raise ValueError(
                f"{self.key}.solver is for models of discrete noise levels; this {context.model_name} has continuous time: "
                f"take {node}=fixed_grid"
                if self.solver.at_levels
                else f"this {context.model_name} has discrete noise levels, which {self.key}.solver leaves: take {node}=levels"
            )

    def log_density(
        self, context: EvalContext, x: Tensor, y: Tensor | None, noise: Noise, index: int, within: Within
    ) -> Tensor:
        return flow_log_density(
            context.model, x, y, self.trace, self.solver, noise, index, self.start_log_snr(context), within
        ).log_density

    def facts(self, context: EvalContext) -> dict[str, object]:
        own = {"estimate": "probability-flow ODE", "trace": self.trace.text, "solver": self.solver.text}
        return own | super().facts(context)


class ExactDensity(PointDensity):
    """log p of a model that states it, normalised: of z_0 = x_t / alpha, as the ODE has it.

    Arguments:
        dequantization, draws: see `PointDensity`.
        conditional, values, log_snr_max: see `Density`.

    Raises:
        ValueError: from check: a log-density that is known up to a constant, or a dequantisation that is not the model's.
    """

    name, part, needs = "log_density", "exact", (LogDensity,)

    def check(self, context: EvalContext) -> None:
        super().check(context)
        if not context.as_protocol(LogDensity).normalized:
            raise ValueError(
                f"metric={self.name}: the log-density of this {context.model_name} is known up to a constant only"
            )
        spread = (context.config.get("objective") or {}).get("quantization_levels")
        if not self.num_values(context) or not isinstance(self.dequantization, DecoderDequantization):
            return
        node = f"metric/dequantization@{self.key}.dequantization" if self.key != "metric" else "metric/dequantization"
        if math.isinf(self.start_log_snr(context)):
            raise ValueError(f"{self.key}.dequantization=decoded needs noise, and t = 0 has none: take {node}=uniform")
        if spread and self.log_snr_max is None:
            raise ValueError(
                f"{self.key}.dequantization=decoded asks at values, and this {context.model_name} was trained on values spread "
                f"by uniform noise: take {node}=uniform, or a lower {self.key}.log_snr_max"
            )

    def start_log_snr(self, context: EvalContext) -> float:
        """Of a model of discrete levels the first, exact data too: it states their density."""
        known = self.log_snr_max is None and context.model.levels is not None
        return context.model.schedule.log_snr_max if known else super().start_log_snr(context)

    def log_density(
        self, context: EvalContext, x: Tensor, y: Tensor | None, noise: Noise, index: int, within: Within
    ) -> Tensor:
        schedule, levels = context.model.schedule, context.model.levels
        t = schedule.t_of(torch.tensor(self.start_log_snr(context), dtype=torch.float64)).clamp(0, 1)
        t = t if levels is None else levels[(levels - t).abs().argmin()]
        alpha = float(schedule.alpha_sigma(t)[0])
        return context.as_protocol(LogDensity).log_density(alpha * x, t, y) + x[0].numel() * math.log(alpha)

    def facts(self, context: EvalContext) -> dict[str, object]:
        return {"estimate": "the model's own log-density"} | super().facts(context)


class Likelihoods(Metric):
    """The estimates of one likelihood side by side, each with its own figure, and their differences on the same examples.

    A difference has a standard error of its own, far below those of the two: examples vary more than estimates of one do.
    Estimates that start at different log-SNRs of z_0 state different laws, and have none.

    Arguments:
        elbo, ode: None = without it.
        exact: for models that state a normalised log-density, with others it is left out; None = without it.

    Raises:
        ValueError: none of them; from check: what they cannot answer.
    """

    name, needs = "likelihood", (Denoiser,)

    def __init__(self, elbo: ELBO | None, ode: FlowODE | None, exact: ExactDensity | None):
        parts = {"elbo": elbo, "ode": ode, "exact": exact}
        self.members = [member for member in parts.values() if member is not None]
        for name, member in parts.items():
            if member is not None:
                member.key = f"metric.{name}"
        if not self.members:
            raise ValueError("metric=likelihood needs one of metric.elbo, metric.ode, metric.exact, and all are null")

    def applicable(self, context: EvalContext) -> list[Density]:
        """Those that this model can be asked."""
        density = context.as_protocol(LogDensity)
        exact = density is not None and density.normalized
        return [member for member in self.members if exact or not isinstance(member, ExactDensity)]

    def check(self, context: EvalContext) -> None:
        super().check(context)
        if not self.applicable(context):
            raise ValueError(
                f"metric.elbo and metric.ode are null, and this {context.model_name} states no log-density"
            )
        for member in self.applicable(context):
            member.check(context)

    def measure(self, context: EvalContext) -> MetricResult:
        figures, facts, curve, plots, found = {}, {}, [], [], []
        for member in self.applicable(context):
            examples = member.nll_of_examples(context)
            measured = member.summarize(context, examples)
            (name,) = measured.figures
            law = measured.figures[name].unit, name.endswith("_given_class"), member.start_log_snr(context)
            found.append((name, law, sum(nll_parts(examples).values())))
            figures |= measured.figures
            facts |= measured.facts
            curve, plots = [*curve, *measured.curve], [*plots, *measured.plots]
        for (name, law, nats), (other, same, others) in itertools.combinations(found, 2):
            if law == same:
                unit = law[0]
                scale = (math.log(2) if unit == "bits/dim" else 1.0) * math.prod(context.shape)
                figures[f"{name}_minus_{other.removeprefix('nll_')}"] = mean((nats - others) / scale, unit)
        return MetricResult(figures, facts, curve, plots)
