"""Base of the metrics of the likelihood of examples."""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy
import torch
from torch import Tensor

from ...figures.plot_spec import Plot
from ...models.decoders import Discretized
from ...models.protocols import Energy, is_guided
from ...randomness import Noise
from ..metric import EvalContext, Figure, Metric, MetricResult
from .dequantization import DecoderDequantization, Dequantization, estimate_likelihood
from .elbo import start_log_snr

__all__ = ["Density", "PointDensity", "nll_parts"]

Arrays = dict[str, Tensor]
Within = Callable[[float], None]  # gets the fraction of a batch that is done, after every evaluation
NLL = Callable[[Tensor, Tensor | None, Noise, Within], Arrays]


class Density(Metric):
    """Base of the metrics of -log p per dimension.

    Arguments:
        conditional: True: log p(x given its class); False: log p(x), for which a conditional model must have been trained
            with p_uncond > 0; None: the first for a model with classes.
        values: K values of an element, 2 / (K - 1) apart in [-1, 1]; 0 = continuous; None = dataset.quantization_levels of
            the run, and 0 for vectors.
        log_snr_max: log-SNR of z_0, where the likelihood starts; None = that of the schedule.

    Attributes:
        part: name of the figure nll_<part>, and of the parts that are kept.
        key: of its node in the configuration, for messages.

    Raises:
        ValueError: invalid values; from check: a model or data without such a likelihood.
    """

    part: str
    key = "metric"

    def __init__(self, conditional: bool | None = None, values: int | None = None, log_snr_max: float | None = None):
        if values is not None and (values < 0 or values == 1):
            raise ValueError(f"values must be 0 (continuous) or at least 2, got {values}")
        self.conditional_on_y, self.values, self.log_snr_max = conditional, values, log_snr_max

    def uses_labels(self, context: EvalContext) -> bool:
        """Whether the model gets the labels of the examples."""
        classes = context.num_classes > 0
        return classes if self.conditional_on_y is None else self.conditional_on_y and classes

    def option(self, name: str) -> str:
        """How to type the choice of a part on the command line, for messages."""
        return f"metric/{name}" if self.key == "metric" else f"metric/{name}@{self.key}.{name}"

    def num_values(self, context: EvalContext) -> int:
        """K.

        Raises:
            ValueError: it is unknown.
        """
        values = (
            (context.config.get("dataset") or {}).get("quantization_levels") if self.values is None else self.values
        )
        if values is None and len(context.shape) == 1:  # vectors are continuous
            values = 0
        if values is None:
            raise ValueError(
                f"metric={self.name} needs the number of values that an element of the data can have, which this checkpoint "
                f"does not state: set {self.key}.values (17 for digits, 256 for bytes, 0 for continuous data)"
            )
        return int(values)

    def start_log_snr(self, context: EvalContext) -> float:
        """The log-SNR of z_0; for a model with discrete levels the nearest one.

        Raises:
            ValueError: it lies outside the schedule, or is infinite.
        """
        schedule, levels = context.schedule, context.levels
        try:
            start = start_log_snr(schedule, self.log_snr_max)
            if self.log_snr_max is None or levels is None:
                return start
            t = schedule.t_of(torch.tensor(start, dtype=torch.float64))
            return float(schedule.log_snr(levels[(levels - t).abs().argmin()]))
        except ValueError as error:
            raise ValueError(f"{self.key}: {error}") from error

    def check(self, context: EvalContext) -> None:
        super().check(context)
        if isinstance(context.model, Energy):
            raise ValueError(
                f"metric={self.name} needs a normalised density, and that of a {context.model_name} is known up to a constant: "
                "use metric=ood"
            )
        self.num_values(context)
        self.start_log_snr(context)
        if values := self.num_values(context):
            try:
                Discretized(values).check(context.batch(0)[0])
            except ValueError as error:
                raise ValueError(
                    f"metric={self.name}: the data are not of {values} values equally spaced in [-1, 1]: set {self.key}.values "
                    "(17 for digits, 256 for bytes, 0 for continuous data)"
                ) from error
        inner = context.uncounted
        if is_guided(inner):
            raise ValueError(
                f"metric={self.name}: guidance ({type(inner).__name__}) has no likelihood; measure the model"
            )
        if self.conditional_on_y and not context.num_classes:
            raise ValueError(
                f"{self.key}.conditional=true needs a model with classes; this {context.model_name} has none"
            )
        if self.conditional_on_y is False and context.num_classes and not context.has_null:
            raise ValueError(
                f"{self.key}.conditional=false needs a model that dropped labels in training (p_uncond above 0); this one did "
                f"not: use {self.key}.conditional=true"
            )
        if self.uses_labels(context) and not bool((context.labels >= 0).all()):
            raise ValueError(
                f"metric={self.name} is conditional, and the {context.split} split has examples without a label"
            )

    def nll_fn(self, context: EvalContext) -> NLL:
        """A function of a batch: parts of -log p in nats, [B] each; "noise", their standard error due to finite draws; for a
        curve "starts", -log p [B, K]."""
        raise NotImplementedError

    def facts(self, context: EvalContext) -> dict[str, Any]:
        """What the figure depends on."""
        raise NotImplementedError

    def curve(
        self, context: EvalContext, later: Tensor, column: str, unit: str
    ) -> tuple[list[dict[str, float | None]], list[Plot]]:
        """Rows and plots of the "starts" of `nll_fn`, [N, K] in the unit of the figure; most metrics have none."""
        raise NotImplementedError

    def offset(self, context: EvalContext) -> float:
        """Bits/dim to add to its density for one of discrete data."""
        return 0.0

    def nll_of_examples(self, context: EvalContext) -> Arrays:
        """The results of `nll_fn` for every example, [N] each, on the CPU."""
        uses_labels = self.uses_labels(context)
        nll_fn = functools.cache(
            self.nll_fn
        )  # built, with a pilot run if it has one, for the first batch that is not kept

        def report(done: int) -> None:
            context.progress(done, context.n, f"examples, {self.part}")

        def compute(first: int) -> dict[str, numpy.ndarray]:
            (x, y), nll = context.batch(first), nll_fn(context)
            report(first)
            noise = context.noise(first, x.dtype)
            found = nll(x, y if uses_labels else None, noise, lambda share: report(first + int(share * len(x))))
            return {name: part.cpu().numpy() for name, part in found.items()}

        parts = []
        for first in context.firsts:
            parts.append(context.parts.part(f"{self.part}_{first:010d}", lambda: compute(first)))
            report(min(first + context.batch_size, context.n))
        return {name: torch.cat([torch.as_tensor(part[name]) for part in parts]) for name in parts[0]}

    def measure(self, context: EvalContext) -> MetricResult:
        return self.summarize(context, self.nll_of_examples(context))

    def summarize(self, context: EvalContext, examples: Arrays) -> MetricResult:
        """Figure, facts and curve from the results of `nll_of_examples`."""
        uses_labels, values, size = self.uses_labels(context), self.num_values(context), math.prod(context.shape)
        found = estimate_likelihood(nll_parts(examples), size, examples.get("noise"), self.offset(context))
        unit, scale = ("bits/dim", 1.0) if values else ("nats/dim", math.log(2))
        error = None if found.standard_error is None else found.standard_error * scale
        figure = Figure(found.bits_per_dim * scale, error, found.n, unit)
        facts: dict[str, Any] = {
            "nats_per_dim": found.nats_per_dim,
            "bits_per_dim": found.bits_per_dim,
            "dimensions": size,
            "values": values,
            "standard_error_bits_per_dim": found.standard_error,
            "drawing_error_bits_per_dim": found.noise,
            "offset_bits_per_dim": found.offset,
            "parts_nats_per_dim": found.parts,
            "given_class": uses_labels,
            "log_snr_max": self.start_log_snr(context),
            "split": context.split,
            "seed": context.seed,
            "n": found.n,
            **self.facts(context),
        }
        name = f"nll_{self.part}" + ("_given_class" if uses_labels else "")
        starts = examples.get("starts")
        if starts is None:
            return MetricResult({name: figure}, {name: facts})
        rows, plots = self.curve(context, starts * scale / math.log(2) / size, name, unit)

        def nll(row: dict[str, float | None]) -> float:
            value = row[name]
            return math.inf if value is None else value

        facts["lowest_of_curve"] = min(rows, key=nll)
        return MetricResult({name: figure}, {name: facts}, rows, plots)


def nll_parts(examples: Arrays) -> Arrays:
    """The results whose sum is -log p, in nats."""
    return {name: part for name, part in examples.items() if name not in ("noise", "starts")}


class PointDensity(Density):
    """Base of the metrics of log p at a point: discrete data are dequantised, `draws` times per example.

    Arguments:
        dequantization: from discrete data to a point; None = `DecoderDequantization()`.
        draws: at least 1; with two or more the error due to the draws is known.
        conditional, values, log_snr_max: see `Density`.

    Attributes:
        random: whether the density itself is random.
    """

    random = False

    def __init__(
        self, dequantization: Dequantization | None = None, draws: int = 4, conditional: bool | None = None,
        values: int | None = None, log_snr_max: float | None = None,
    ):  # fmt: skip
        super().__init__(conditional, values, log_snr_max)
        if draws < 1:
            raise ValueError(f"draws must be at least 1, got {draws}")
        self.dequantization, self.draws = dequantization or DecoderDequantization(), draws

    def log_density(
        self, context: EvalContext, x: Tensor, y: Tensor | None, noise: Noise, index: int, within: Within
    ) -> Tensor:
        """log p(x) in nats, [B], of z_0 = x_0 + s_0 eps at x; `index` counts the draws."""
        raise NotImplementedError

    def repetitions(self, context: EvalContext) -> int:
        """Draws per example: one if nothing is random."""
        return self.draws if self.random or self.num_values(context) else 1

    def nll_fn(self, context: EvalContext) -> NLL:
        values, start = self.num_values(context), self.start_log_snr(context)
        repetitions = self.repetitions(context)

        def nll(x: Tensor, y: Tensor | None, noise: Noise, within: Within) -> Arrays:
            if values:
                Discretized(values).check(x)
            costs, corrections = [], []
            for index in range(repetitions):
                point, correction = x, x.new_zeros(len(x), dtype=torch.float64)
                if values:
                    point, correction = self.dequantization(x, values, start, noise, index)

                def report(share: float) -> None:
                    within((index + share) / repetitions)

                costs.append(-self.log_density(context, point, y, noise, index, report).double())
                corrections.append(-correction)
                report(1.0)
            cost, correction = torch.stack(costs), torch.stack(corrections)
            found = {"density": cost.mean(0)} | ({"dequantisation": correction.mean(0)} if values else {})
            if repetitions > 1:
                found["noise"] = (cost + correction).std(0) / math.sqrt(repetitions)
            return found

        return nll

    def offset(self, context: EvalContext) -> float:
        values = self.num_values(context)
        return self.dequantization.offset(values) if values else 0.0

    def facts(self, context: EvalContext) -> dict[str, Any]:
        discrete = bool(self.num_values(context))
        return {
            "dequantisation": self.dequantization.text if discrete else "none: continuous",
            "draws": self.repetitions(context),
            "noise_level": math.exp(-self.start_log_snr(context) / 2),
        }
