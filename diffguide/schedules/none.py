"""No noise schedule at all, for models without noise levels."""

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

    log_snr_max = property(lambda self: self.refuse())
    log_snr_min = property(lambda self: self.refuse())

    def log_snr(self, t) -> Tensor:
        return self.refuse()

    def t_of(self, log_snr) -> Tensor:
        return self.refuse()

    def refuse(self):
        raise ValueError("schedule=none has no noise levels, and this needs them: use schedule=cosine or another")
