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
from ..metric import Measured, Metric, Subject, mean
from .base import Answer, Arrays, Density, OfPoints, Within, parts_of
from .control_variate import GaussianFit
from .dequantization import Decoded, Dequantization
from .elbo import Control, Piece, elbo, pieces, reconstruction, tuned
from .flow_ode import Solver, Trace, flow_log_density

__all__ = ["ELBO", "ExactDensity", "FlowODE", "Likelihoods"]

FIT, PILOT = 10000, 11  # training examples for the Gaussian; a purpose of the seed
VARIATIONAL = "diffguide.objectives.variational.Variational"  # the objective whose `steps` are those of a bound


def starts(terms: list[Piece]) -> list[int]:
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

    def check(self, subject: Subject) -> None:
        super().check(subject)
        if self.steps is not None and subject.model.levels is not None:
            raise ValueError(
                f"{self.key}.steps={self.steps}: this {subject.holds} has noise levels of its own, and is asked there: "
                "leave null"
            )
        if self.log_snr_max is not None and subject.model.levels is not None:
            raise ValueError(f"a bound of discrete levels ends where they do: leave {self.key}.log_snr_max null")
        if self.log_snr_max is not None and self.steps_of(subject):
            instead = f", or take {self.key}.steps=0 for continuous time" if self.steps is None else ""
            raise ValueError(
                f"a bound of discrete steps ends where they do: leave {self.key}.log_snr_max null{instead}"
            )

    def steps_of(self, subject: Subject) -> int:
        """T; 0 = continuous time, or levels of the model's own."""
        if self.steps is not None or subject.model.levels is not None:
            return self.steps or 0
        objective = subject.config.get("objective") or {}
        return objective.get("steps") or 0 if objective.get("_target_") == VARIATIONAL else 0

    def terms(self, subject: Subject) -> list[Piece]:
        times = subject.model.levels
        if steps := self.steps_of(subject):
            times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        elif times is not None:
            times = torch.cat([times[times > 0].cpu(), torch.zeros(1, dtype=torch.float64)])
        return pieces(subject.model.schedule, self.levels, times, self.log_snr_max)

    def control(self, subject: Subject, terms: list[Piece]) -> Control | None:
        """Fitted and tuned on the training split."""
        if not self.pilot:
            return None

        def tell(done: int) -> None:
            subject.progress(done, len(terms), "levels of the pilot run")

        tell(0)
        train, schedule = subject.data.train, subject.model.schedule
        order = torch.randperm(len(train.y), generator=torch.Generator().manual_seed(fold(subject.seed, PILOT)))
        fit = GaussianFit.to_data(subject.data.preprocess(fetch_examples(train, order[:FIT])[0]), self.floor).to(
            subject.device
        )
        rows = order[: self.pilot]
        x, y = fetch_examples(train, rows)
        x, y = subject.data.preprocess(x).to(subject.device), y.to(subject.device) if self.given(subject) else None
        seeds = [fold(subject.seed, PILOT, row) for row in rows.tolist()]
        noise = Noise(seeds, subject.shape, schedule, subject.device, x.dtype)
        return tuned(fit, subject.model, x, y, noise, terms, lambda share: tell(round(share * len(terms))))

    def nats(self, subject: Subject) -> Answer:
        terms, values = self.terms(subject), self.values_of(subject)
        decoder, control = Discretized(values) if values else Gaussian(), self.control(subject, terms)

        def bound(x: Tensor, y: Tensor | None, noise: Noise, within: Within) -> Arrays:
            found = elbo(subject.model, x, y, decoder, noise, terms, self.replicates, self.draws, control, within)
            samples = [noise.normal(len(terms), k) for k in (0, 1)]
            codes = [reconstruction(x, decoder, terms[k].end, samples).mean(0) for k in starts(terms)]
            later = found.prior + found.terms.cumsum(0)[starts(terms)] + torch.stack(codes)
            later[-1] = found.nats  # the same bound, with all of its draws
            parts = {name: getattr(found, name) for name in ("prior", "reconstruction", "diffusion", "noise")}
            return parts | {"starts": later.mT}

        return bound

    def curve(
        self, subject: Subject, later: Tensor, column: str, unit: str
    ) -> tuple[list[dict[str, float]], list[Plot]]:
        terms, rows = self.terms(subject), []
        for k, nats in zip(starts(terms), later.mT):
            found = mean(nats, unit)
            rows.append({"log_snr_max": float(terms[k].end), column: found.value, f"{column}_se": found.standard_error})
        return rows, [Plot("elbo_start", "log_snr_max", "log-SNR of z_0", False, [Panel(column, unit)])]

    def facts(self, subject: Subject) -> dict[str, object]:
        count, steps = len(self.terms(subject)), self.steps_of(subject)
        return {
            "estimate": "variational bound", "steps": steps or None, "levels": count,
            "steps_of": "the model's objective" if steps and self.steps is None else "the metric",
            "replicates": self.replicates, "pilot": self.pilot, "evaluations_per_example": count * self.replicates,
            "dequantisation": "discretised decoder" if self.values_of(subject) else "none: continuous, Gaussian decoder",
        }  # fmt: skip


class FlowODE(OfPoints):
    """log p by the probability-flow ODE. Song et al. 2021, arXiv 2011.13456, eq. 39.

    Arguments:
        trace, solver: how the divergence and the ODE are computed.
        dequantization, draws: see `OfPoints`; every draw is a whole ODE, with other probes.
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

    def check(self, subject: Subject) -> None:
        super().check(subject)
        self.trace.check(math.prod(subject.shape))
        if (subject.model.levels is not None) != self.solver.at_levels:
            node = f"metric/solver@{self.key}.solver" if self.key != "metric" else "metric/solver"
            raise ValueError(
                f"{self.key}.solver is for models of discrete noise levels; this {subject.holds} has continuous time: take "
                f"{node}=fixed_grid"
                if self.solver.at_levels
                else f"this {subject.holds} has discrete noise levels, which {self.key}.solver leaves: take {node}=levels"
            )

    def log_density(
        self, subject: Subject, x: Tensor, y: Tensor | None, noise: Noise, index: int, within: Within
    ) -> Tensor:
        return flow_log_density(
            subject.model, x, y, self.trace, self.solver, noise, index, self.start(subject), within
        ).log_density

    def facts(self, subject: Subject) -> dict[str, object]:
        own = {"estimate": "probability-flow ODE", "trace": self.trace.text, "solver": self.solver.text}
        return own | super().facts(subject)


class ExactDensity(OfPoints):
    """log p of a model that states it, normalised: of z_0 = x_t / alpha, as the ODE has it.

    Arguments:
        dequantization, draws: see `OfPoints`.
        conditional, values, log_snr_max: see `Density`.

    Raises:
        ValueError: from check: a log-density that is known up to a constant, or a dequantisation that is not the model's.
    """

    name, part, needs = "log_density", "exact", (LogDensity,)

    def check(self, subject: Subject) -> None:
        super().check(subject)
        if not subject.able(LogDensity).normalized:
            raise ValueError(
                f"metric={self.name}: the log-density of this {subject.holds} is known up to a constant only"
            )
        spread = (subject.config.get("objective") or {}).get("quantization_levels")
        if not self.values_of(subject) or not isinstance(self.dequantization, Decoded):
            return
        node = f"metric/dequantization@{self.key}.dequantization" if self.key != "metric" else "metric/dequantization"
        if math.isinf(self.start(subject)):
            raise ValueError(f"{self.key}.dequantization=decoded needs noise, and t = 0 has none: take {node}=uniform")
        if spread and self.log_snr_max is None:
            raise ValueError(
                f"{self.key}.dequantization=decoded asks at values, and this {subject.holds} was trained on values spread by "
                f"uniform noise: take {node}=uniform, or a lower {self.key}.log_snr_max"
            )

    def start(self, subject: Subject) -> float:
        """Of a model of discrete levels the first, exact data too: it states their density."""
        known = self.log_snr_max is None and subject.model.levels is not None
        return subject.model.schedule.log_snr_max if known else super().start(subject)

    def log_density(
        self, subject: Subject, x: Tensor, y: Tensor | None, noise: Noise, index: int, within: Within
    ) -> Tensor:
        schedule, levels = subject.model.schedule, subject.model.levels
        t = schedule.t_of(torch.tensor(self.start(subject), dtype=torch.float64)).clamp(0, 1)
        t = t if levels is None else levels[(levels - t).abs().argmin()]
        alpha = float(schedule.alpha_sigma(t)[0])
        return subject.able(LogDensity).log_density(alpha * x, t, y) + x[0].numel() * math.log(alpha)

    def facts(self, subject: Subject) -> dict[str, object]:
        return {"estimate": "the model's own log-density"} | super().facts(subject)


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

    def answering(self, subject: Subject) -> list[Density]:
        """Those that this model can be asked."""
        density = subject.able(LogDensity)
        exact = density is not None and density.normalized
        return [member for member in self.members if exact or not isinstance(member, ExactDensity)]

    def check(self, subject: Subject) -> None:
        super().check(subject)
        if not self.answering(subject):
            raise ValueError(f"metric.elbo and metric.ode are null, and this {subject.holds} states no log-density")
        for member in self.answering(subject):
            member.check(subject)

    def measure(self, subject: Subject) -> Measured:
        figures, facts, curve, plots, found = {}, {}, [], [], []
        for member in self.answering(subject):
            examples = member.examples(subject)
            measured = member.told(subject, examples)
            (name,) = measured.figures
            law = measured.figures[name].unit, name.endswith("_given_class"), member.start(subject)
            found.append((name, law, sum(parts_of(examples).values())))
            figures |= measured.figures
            facts |= measured.facts
            curve, plots = [*curve, *measured.curve], [*plots, *measured.plots]
        for (name, law, nats), (other, same, others) in itertools.combinations(found, 2):
            if law == same:
                unit = law[0]
                scale = (math.log(2) if unit == "bits/dim" else 1.0) * math.prod(subject.shape)
                figures[f"{name}_minus_{other.removeprefix('nll_')}"] = mean((nats - others) / scale, unit)
        return Measured(figures, facts, curve, plots)
