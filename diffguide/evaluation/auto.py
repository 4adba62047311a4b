"""The metric of whoever asks for none."""

from ..models.protocols import Classifier, Denoiser
from .likelihood.base import Density
from .metric import Measured, Metric, Subject

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

    def of(self, subject: Subject) -> Metric:
        if subject.able(Denoiser) is None and subject.able(Classifier):
            return self.classifier
        levels = subject.model.levels
        return self.density if levels is not None and len(levels) < 2 else self.denoiser

    def check(self, subject: Subject) -> None:
        self.of(subject).check(subject)

    def measure(self, subject: Subject) -> Measured:
        return self.of(subject).measure(subject)
