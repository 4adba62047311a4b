"""Guidance that a network has learned: its scale is an input, and a guided prediction is one call."""

import copy

from ..models.jumps import JumpModel
from ..models.protocols import Denoiser, DenoiserWrapper
from ..runtime.ranges import check_finite

__all__ = ["Distilled"]


class Distilled(DenoiserWrapper):
    """The same network at a scale: `Distilled(denoiser, 3.0)` is the denoiser itself, with that input.

    Meng et al. 2022, "On Distillation of Guided Diffusion Models", arXiv 2210.03142, section 3.1.

    Arguments:
        denoiser: a network of objective=guidance_distillation, model_guidance or flow_map.
        scale: within the scales of its training; 1 = off.

    Raises:
        ValueError: another model, or a scale that was not trained.
    """

    needs_null = True

    def __new__(cls, denoiser: Denoiser, scale: float = 1.0) -> Denoiser:  # type: ignore[misc]  # no instance of this class
        check_finite("scale", scale)
        if isinstance(denoiser, JumpModel):
            return denoiser.at_scale(scale)
        if isinstance(denoiser, DenoiserWrapper) and denoiser.passthrough:
            other = copy.copy(denoiser)
            other.denoiser = cls(denoiser.denoiser, scale)
            return other
        raise ValueError(
            "guidance=distilled needs a network that has learned guidance (objective=guidance_distillation, model_guidance or "
            f"flow_map), this one is a {type(denoiser).__name__}: take guidance=cfg"
        )
