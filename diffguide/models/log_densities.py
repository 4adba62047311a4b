"""Log-densities: what a model with a density is, beside a denoiser or in place of one."""

from torch import Tensor

from ..backbones.conditions import Condition

__all__ = ["LogDensity"]


class LogDensity:
    """log p_t(x) as a function of x.

    Attributes:
        normalized: whether exp(log_density) integrates to 1; False = known up to a constant, which may depend on t.
    """

    normalized: bool = False

    def log_density(self, x: Tensor, t: Tensor | None, y: Condition | None = None) -> Tensor:
        """log p_t(x | y) in nats, [B]; t is None for a model without noise levels."""
        raise NotImplementedError
