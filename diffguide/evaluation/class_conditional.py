"""Base of the metrics that may or may not tell a model the examples' classes."""

from .metric import EvalContext, Metric

__all__ = ["ClassConditionalMetric"]


class ClassConditionalMetric(Metric):
    """
    Arguments:
        conditional: whether a model with classes is told those of the examples.

    Raises:
        ValueError: from check: none are told to a model that never dropped them in training.
    """

    def __init__(self, conditional: bool):
        self.give_labels = conditional

    def check(self, context: EvalContext) -> None:
        super().check(context)
        if not self.give_labels and context.model.num_classes and not context.model.has_null:
            raise ValueError(
                "metric.conditional=false needs a model that dropped labels in training (p_uncond above 0); this one never did"
            )

    def uses_labels(self, context: EvalContext) -> bool:
        """Whether the model is told classes."""
        return self.give_labels and context.model.num_classes > 0
