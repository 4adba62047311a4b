"""Base of the metrics that evaluate a model with or without the labels of the examples."""

from .metric import EvalContext, Metric

__all__ = ["ClassConditionalMetric"]


class ClassConditionalMetric(Metric):
    """
    Arguments:
        conditional: whether a model with classes gets the labels of the examples.

    Raises:
        ValueError: from check: conditional=False, and the model never dropped labels in training.
    """

    def __init__(self, conditional: bool = True):
        self.give_labels = conditional

    def check(self, context: EvalContext) -> None:
        super().check(context)
        if not self.give_labels and context.num_classes and not context.has_null:
            raise ValueError(
                "metric.conditional=false needs a model that dropped labels in training (p_uncond above 0); this one did not"
            )

    def uses_labels(self, context: EvalContext) -> bool:
        """Whether the model gets labels."""
        return self.give_labels and context.num_classes > 0
