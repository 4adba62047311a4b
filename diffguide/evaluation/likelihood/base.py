"""Base of the metrics of the likelihood of examples."""

import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar

import numpy
import torch
from torch import Tensor

from ...backbones.conditions import Condition
from ...figures.plot_spec import Plot
from ...models.decoders import Discretized
from ...models.protocols import Energy, is_guided
from ...randomness import Noise
from ..latents import refuse_latents
from ..metric import EvalContext, Metric, Report
from ..noise_levels import time_of_log_snr
from ..results import Figure, MetricResult
from .dequantization import estimate_likelihood
from .elbo import start_log_snr

__all__ = ["Arrays", "Density", "NLL", "sum_parts"]

Arrays = dict[str, Tensor]
NLL = Callable[[Tensor, Condition | None, Noise, Report], Arrays]
LEVELS_HINT = "(17 for digits, 256 for bytes, 0 for continuous data)"


class Density(Metric):
    """Base of the metrics of -log p per dimension.

    Arguments:
        conditional: True: log p(x given its class); False: log p(x), which needs a model trained with p_uncond > 0 if it has
            classes; None: True for a model with classes.
        quantization_levels: K values of an element, 2 / (K - 1) apart in [-1, 1]; 0 = continuous; None =
            dataset.quantization_levels of the run, and 0 for vectors.
        log_snr_max: log-SNR of z_0, where the likelihood starts; None = that of the schedule.

    Attributes:
        part: name of the figure nll_<part>, and of the saved parts.
        key: of its node in the configuration, for messages.

    Raises:
        ValueError: invalid quantization_levels; from check: a model or data without such a likelihood.
    """

    part: ClassVar[str]
    key = "metric"

    def __init__(
        self, conditional: bool | None = None, quantization_levels: int | None = None, log_snr_max: float | None = None
    ):
        if quantization_levels is not None and (quantization_levels < 0 or quantization_levels == 1):
            raise ValueError(f"quantization_levels must be 0 (continuous) or at least 2, got {quantization_levels}")
        self.conditional_on_y = conditional
        self.quantization_levels = quantization_levels
        self.log_snr_max = log_snr_max

    def uses_labels(self, context: EvalContext) -> bool:
        """Whether the model gets the labels of the examples."""
        return context.num_classes > 0 and self.conditional_on_y is not False

    def name_option(self, group: str) -> str:
        """The group of a part of the metric as it is typed on the command line, for messages."""
        return f"metric/{group}" if self.key == "metric" else f"metric/{group}@{self.key}.{group}"

    def num_values(self, context: EvalContext) -> int:
        """K, 0 = continuous; ValueError if it is unknown."""
        levels = self.quantization_levels
        if levels is None:
            levels = (context.config.get("dataset") or {}).get("quantization_levels")
        if levels is None and len(context.shape) == 1:
            return 0
        if levels is None:
            raise ValueError(
                f"metric={self.name} needs the number of values that an element of the data can have, which this checkpoint "
                f"does not state: set {self.key}.quantization_levels {LEVELS_HINT}"
            )
        return int(levels)

    def start_log_snr(self, context: EvalContext) -> float:
        """The log-SNR of z_0, for discrete levels the nearest; ValueError if it is infinite or outside the schedule."""
        schedule = context.schedule
        try:
            start = start_log_snr(schedule, self.log_snr_max)
        except ValueError as error:
            raise ValueError(f"{self.key}: {error}") from error
        if self.log_snr_max is None or context.levels is None:
            return start
        t = time_of_log_snr(torch.tensor(start, dtype=torch.float64), schedule, context.levels)
        return float(schedule.log_snr(t))

    def check(self, context: EvalContext) -> None:
        refuse_latents(self.name, context.data)
        super().check(context)
        if isinstance(context.model, Energy):
            raise ValueError(
                f"metric={self.name} needs a normalised density; that of a {context.model_name} is known up to a constant: "
                "use metric=ood"
            )
        inner = context.uncounted
        if is_guided(inner):
            raise ValueError(
                f"metric={self.name}: guidance ({type(inner).__name__}) has no likelihood; measure the model"
            )
        self.check_values(context)
        self.start_log_snr(context)
        self.check_labels(context)

    def check_values(self, context: EvalContext) -> None:
        """Raises ValueError unless the first examples have the values that they should have."""
        if values := self.num_values(context):
            try:
                Discretized(values).check(context.batch(0)[0])
            except ValueError as error:
                raise ValueError(
                    f"metric={self.name}: the data are not of {values} values equally spaced in [-1, 1]: set "
                    f"{self.key}.quantization_levels {LEVELS_HINT}"
                ) from error

    def check_labels(self, context: EvalContext) -> None:
        """Raises ValueError if model or data do not allow the value of `conditional`."""
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

    def build_nll(self, context: EvalContext) -> NLL:
        """Returns the function nll(x, y, noise, report) of a batch, whose results are [B] each, in nats.

        They are the parts of -log p; "noise", their standard error due to the number of draws; and for metrics with a curve
        "starts", -log p for K starts, [B, K].
        """
        raise NotImplementedError

    def facts(self, context: EvalContext) -> dict[str, Any]:
        """Settings that the figure depends on."""
        raise NotImplementedError

    def curve(
        self, context: EvalContext, later: Tensor, column: str, unit: str
    ) -> tuple[list[dict[str, float | None]], list[Plot]]:
        """Rows and plots of "starts", [N, K] in the unit of the figure; only for metrics with a curve."""
        raise NotImplementedError

    def offset(self, context: EvalContext) -> float:
        """Bits/dim that are added to the density for the density of discrete data."""
        return 0.0

    def evaluate_examples(self, context: EvalContext) -> Arrays:
        """The results of `build_nll` for every example, [N] each, on the CPU."""
        # once, for the first batch that is not saved: it may need a pilot run
        build_nll = functools.cache(self.build_nll)

        def report(done: int) -> None:
            context.progress(done, context.n, f"examples, {self.part}")

        def compute(first: int) -> dict[str, numpy.ndarray]:
            x, labels = context.batch(first)
            y = labels if self.uses_labels(context) else None
            nll = build_nll(context)
            report(first)
            noise = context.noise(first, x.dtype)
            results = nll(x, y, noise, lambda share: report(first + int(share * len(x))))
            return {name: result.cpu().numpy() for name, result in results.items()}

        parts = []
        for first in context.firsts:
            parts.append(context.parts.load_or_compute(f"{self.part}_{first:010d}", lambda: compute(first)))
            report(min(first + context.batch_size, context.n))
        return {name: torch.cat([torch.as_tensor(part[name]) for part in parts]) for name in parts[0]}

    def measure(self, context: EvalContext) -> MetricResult:
        return self.summarize(context, self.evaluate_examples(context))

    def summarize(self, context: EvalContext, examples: Arrays) -> MetricResult:
        """Figure, facts and curve from the results of `evaluate_examples`."""
        uses_labels, values, size = self.uses_labels(context), self.num_values(context), math.prod(context.shape)
        parts = {name: part for name, part in examples.items() if name not in ("noise", "starts")}
        estimate = estimate_likelihood(parts, size, examples.get("noise"))
        unit, scale = ("bits/dim", 1.0) if values else ("nats/dim", math.log(2))
        error = None if estimate.standard_error is None else estimate.standard_error * scale
        figure = Figure(estimate.bits_per_dim * scale, error, estimate.n, unit)
        facts: dict[str, Any] = {
            "nats_per_dim": estimate.nats_per_dim,
            "bits_per_dim": estimate.bits_per_dim,
            "dimensions": size,
            "values": values,
            "standard_error_bits_per_dim": estimate.standard_error,
            "drawing_error_bits_per_dim": estimate.noise,
            "offset_bits_per_dim": self.offset(context),
            "parts_nats_per_dim": estimate.parts,
            "given_class": uses_labels,
            "log_snr_max": self.start_log_snr(context),
            "split": context.split,
            "seed": context.seed,
            "n": estimate.n,
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


def sum_parts(examples: Arrays) -> Tensor:
    """-log p of each example in nats, [N]."""
    return functools.reduce(torch.add, [part for name, part in examples.items() if name not in ("noise", "starts")])
