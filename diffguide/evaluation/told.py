"""Base of the metrics that may or may not tell a model the examples' classes."""

from .metric import Metric, Subject

__all__ = ["ToldClasses"]


class ToldClasses(Metric):
    """
    Arguments:
        conditional: whether a model with classes is told those of the examples.

    Raises:
        ValueError: from check: none are told to a model that never dropped them in training.
    """

    def __init__(self, conditional: bool):
        self.told_classes = conditional

    def check(self, subject: Subject) -> None:
        super().check(subject)
        if not self.told_classes and subject.model.num_classes and not subject.model.has_null:
            raise ValueError(
                "metric.conditional=false needs a model that dropped labels in training (p_uncond above 0); this one never did"
            )

    def told(self, subject: Subject) -> bool:
        """Whether the model is told classes."""
        return self.told_classes and subject.model.num_classes > 0
