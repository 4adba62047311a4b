"""The placeholder schedule of models without noise levels."""

from torch import Tensor, nn

from .base import Schedule

__all__ = ["NoSchedule"]


class NoSchedule(Schedule):
    """The schedule of a model without noise levels (objective=jem).

    Raises:
        ValueError: from every method and property.
    """

    def __init__(self):
        nn.Module.__init__(self)

    log_snr_max = property(lambda self: self.raise_error())
    log_snr_min = property(lambda self: self.raise_error())

    def extra_repr(self) -> str:
        return ""

    def log_snr(self, t) -> Tensor:
        return self.raise_error()

    def t_of(self, log_snr) -> Tensor:
        return self.raise_error()

    def raise_error(self):
        raise ValueError("schedule=none has no noise levels; use another schedule, such as schedule=cosine")
