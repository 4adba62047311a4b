"""The metric of whoever asks for none."""

from ..denoisers import Classifier, Denoiser
from .metric import Measured, Metric, Subject

__all__ = ["Auto"]


class Auto(Metric):
    """What the model can answer.

    Arguments:
        classifier: of a model that classifies and does not denoise.
        denoiser: of every other model.
    """

    name = "auto"

    def __init__(self, classifier: Metric, denoiser: Metric):
        self.classifier, self.denoiser = classifier, denoiser

    def of(self, subject: Subject) -> Metric:
        return self.classifier if subject.able(Denoiser) is None and subject.able(Classifier) else self.denoiser

    def check(self, subject: Subject) -> None:
        self.of(subject).check(subject)

    def measure(self, subject: Subject) -> Measured:
        return self.of(subject).measure(subject)
