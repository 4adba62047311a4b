"""The metric of whoever asks for none."""

from ..models.protocols import Classifier, Denoiser
from .likelihood.base import Density
from .metric import EvalContext, Metric, MetricResult

__all__ = ["Auto"]


class Auto(Metric):
    """What the model can answer.

    Arguments:
        classifier: of a model that classifies and does not denoise.
        density: of one that knows the data's own noise level alone.
        denoiser: of every other model.
    """

    name = "auto"

    def __init__(self, classifier: Metric, density: Density, denoiser: Metric):
        self.classifier, self.density, self.denoiser = classifier, density, denoiser
        density.key = "metric.density"

    def resolve(self, context: EvalContext) -> Metric:
        if context.as_protocol(Denoiser) is None and context.as_protocol(Classifier):
            return self.classifier
        levels = context.model.levels
        return self.density if levels is not None and len(levels) < 2 else self.denoiser

    def check(self, context: EvalContext) -> None:
        self.resolve(context).check(context)

    def measure(self, context: EvalContext) -> MetricResult:
        return self.resolve(context).measure(context)
