"""The metric likelihood: several estimates of -log p of a split, and their differences."""

import itertools
import math
from typing import Any

from torch import Tensor

from ...figures.plot_spec import Plot
from ...models.protocols import Denoiser, LogDensity
from ..latents import refuse_latents
from ..metric import EvalContext, Metric
from ..results import Figure, MetricResult, mean
from .base import Density, sum_parts
from .metrics import ELBO, ExactDensity, FlowODE

__all__ = ["Likelihoods"]

BOUND, FLOW, OWN_DENSITY = ELBO(), FlowODE(), ExactDensity()  # defaults of `Likelihoods`


class Likelihoods(Metric):
    """Several estimates of the same likelihood, and their differences on the same examples.

    The standard error of a difference is far below those of the two estimates, because likelihoods vary more between
    examples than between estimates. Estimates with different starts (log-SNRs of z_0) are for different distributions, and
    are not compared.

    Arguments:
        elbo, ode: None = skipped.
        exact: None = skipped; also skipped for models without a normalised log-density.

    Raises:
        ValueError: all are None; from check: errors of the estimates.
    """

    name = "likelihood"
    needs = (Denoiser,)

    def __init__(self, elbo: ELBO | None = BOUND, ode: FlowODE | None = FLOW, exact: ExactDensity | None = OWN_DENSITY):
        parts = {"elbo": elbo, "ode": ode, "exact": exact}
        self.members = [member for member in parts.values() if member is not None]
        for name, member in parts.items():
            if member is not None:
                if not isinstance(member, Density):
                    raise ValueError(f"{name} must be a likelihood, got {type(member).__name__}: use null to skip it")
                member.key = f"metric.{name}"
        if not self.members:
            raise ValueError("metric=likelihood needs one of metric.elbo, metric.ode, metric.exact, and all are null")
        self.differentiates = any(member.differentiates for member in self.members)

    def select_supported(self, context: EvalContext) -> list[Density]:
        """The estimates that this model supports."""
        density = context.as_protocol(LogDensity)
        exact = density is not None and density.normalized
        return [member for member in self.members if exact or not isinstance(member, ExactDensity)]

    def check(self, context: EvalContext) -> None:
        refuse_latents(self.name, context.data)
        super().check(context)
        members = self.select_supported(context)
        if not members:
            raise ValueError(f"metric.elbo and metric.ode are null, and this {context.model_name} has no log-density")
        for member in members:
            member.check(context)

    def measure(self, context: EvalContext) -> MetricResult:
        figures, facts = dict[str, Figure](), dict[str, Any]()
        curve, plots = list[dict[str, float | None]](), list[Plot]()
        nats: dict[str, Tensor] = {}
        laws: dict[str, tuple[str, bool, float]] = {}  # estimates are compared if these are equal
        for member in self.select_supported(context):
            examples = member.evaluate_examples(context)
            result = member.summarize(context, examples)
            ((name, figure),) = result.figures.items()
            laws[name] = figure.unit, name.endswith("_given_class"), member.start_log_snr(context)
            nats[name] = sum_parts(examples)
            figures[name] = figure
            facts |= result.facts
            curve += result.curve
            plots += result.plots
        for first, second in itertools.combinations(nats, 2):
            if laws[first] == laws[second]:
                unit = laws[first][0]
                scale = (math.log(2) if unit == "bits/dim" else 1.0) * math.prod(context.shape)
                difference = mean((nats[first] - nats[second]) / scale, unit)
                figures[f"{first}_minus_{second.removeprefix('nll_')}"] = difference
        return MetricResult(figures, facts, curve, plots)
