"""The default metric."""

from ..models.protocols import Classifier, Denoiser
from .classification.metric import Classification
from .denoising import DenoisingError
from .likelihood.base import Density
from .likelihood.metrics import ExactDensity
from .metric import EvalContext, Metric
from .results import MetricResult

__all__ = ["Auto"]


class Auto(Metric):
    """Chooses the metric by the model.

    Arguments:
        classifier: for a classifier that is not a denoiser.
        density: for a model of the clean data only (objective=nce).
        denoiser: for all other models.
    """

    name = "auto"

    def __init__(
        self, classifier: Metric | None = None, density: Density | None = None, denoiser: Metric | None = None
    ):
        self.classifier = classifier or Classification()
        self.density = density or ExactDensity()
        self.denoiser = denoiser or DenoisingError()
        self.density.key = "metric.density"

    def resolve(self, context: EvalContext) -> Metric:
        if context.as_protocol(Denoiser) is None and context.as_protocol(Classifier) is not None:
            return self.classifier
        levels = context.levels
        return self.density if levels is not None and len(levels) < 2 else self.denoiser

    def check(self, context: EvalContext) -> None:
        self.resolve(context).check(context)

    def measure(self, context: EvalContext) -> MetricResult:
        return self.resolve(context).measure(context)
