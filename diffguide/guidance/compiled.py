"""Networks that torch.compile made have no gradients of gradients."""

from ..models.protocols import Denoiser, SamplingError

__all__ = ["check_uncompiled"]


def check_uncompiled(denoiser: Denoiser) -> None:
    """Raises SamplingError where guidance is to differentiate a network that torch.compile made."""
    if denoiser.compiled:
        raise SamplingError(
            "guidance differentiates the model, whose network went through torch.compile: sample it uncompiled "
            "(diffguide.load, compile=false), or take guidance that needs no gradient of it, such as mpgd"
        )
