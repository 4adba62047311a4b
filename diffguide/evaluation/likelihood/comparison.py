"""The metric likelihood: several estimates of -log p of a split, and their differences."""

import functools
import itertools
import math
from typing import Any

import torch
from torch import Tensor

from ...figures.plot_spec import Plot
from ...models.protocols import Denoiser, LogDensity
from ..metric import EvalContext, Figure, Metric, MetricResult, mean
from .base import Density, nll_parts
from .metrics import ELBO, ExactDensity, FlowODE

__all__ = ["Likelihoods"]

BOUND, FLOW, OWN_DENSITY = ELBO(), FlowODE(), ExactDensity()  # of `Likelihoods`, by default


class Likelihoods(Metric):
    """Several estimates of the same likelihood, and their differences on the same examples.

    The standard error of a difference is far below those of the two, since examples vary more than the estimates of one.
    Estimates that start at different log-SNRs of z_0 are of different laws, and are not compared.

    Arguments:
        elbo, ode: None = without it.
        exact: skipped for models without a normalised log-density; None = without it.

    Raises:
        ValueError: all are None; from check: errors of the estimates.
    """

    name, needs = "likelihood", (Denoiser,)

    def __init__(self, elbo: ELBO | None = BOUND, ode: FlowODE | None = FLOW, exact: ExactDensity | None = OWN_DENSITY):
        parts = {"elbo": elbo, "ode": ode, "exact": exact}
        self.members = [member for member in parts.values() if member is not None]
        for name, member in parts.items():
            if member is not None:
                member.key = f"metric.{name}"
        if not self.members:
            raise ValueError("metric=likelihood needs one of metric.elbo, metric.ode, metric.exact, and all are null")

    def applicable(self, context: EvalContext) -> list[Density]:
        """The estimates that this model supports."""
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
        figures, facts = dict[str, Figure](), dict[str, Any]()
        curve, plots = list[dict[str, float | None]](), list[Plot]()
        found: list[tuple[str, tuple[str, bool, float], Tensor]] = []
        for member in self.applicable(context):
            examples = member.nll_of_examples(context)
            result = member.summarize(context, examples)
            ((name, figure),) = result.figures.items()
            law = figure.unit, name.endswith("_given_class"), member.start_log_snr(context)
            found.append((name, law, functools.reduce(torch.add, nll_parts(examples).values())))
            figures[name] = figure
            facts |= result.facts
            curve += result.curve
            plots += result.plots
        for (name, law, nats), (other, same, others) in itertools.combinations(found, 2):
            if law == same:
                unit = law[0]
                scale = (math.log(2) if unit == "bits/dim" else 1.0) * math.prod(context.shape)
                figures[f"{name}_minus_{other.removeprefix('nll_')}"] = mean((nats - others) / scale, unit)
        return MetricResult(figures, facts, curve, plots)
