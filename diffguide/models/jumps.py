"""Networks of two times: where the flow goes from x_t to a chosen level, in one call, at a chosen scale of guidance."""

import copy
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from ..backbones import Backbone
from ..backbones.conditions import Condition
from ..schedules import Schedule
from .parameterizations import Parameterization, at_least_float32
from .preconditioned import Preconditioned
from .protocols import Prediction

__all__ = ["FURTHER_INPUTS", "NO_GUIDANCE", "JumpModel", "jump_to"]

FURTHER_INPUTS = 2  # numbers that the network takes beside the log-SNR of x_t: that of x_s, and the scale
NO_GUIDANCE = (1.0, 1.0)


class JumpModel(Preconditioned):
    """x_s = alpha_s x_0_hat + sigma_s eps_hat  with both from F(c_in x_t, log_snr_t, log_snr_s, scale, y).

    As in every denoiser alpha_t x_0_hat + sigma_t eps_hat = x_t, so a jump is a DDIM step whose prediction knows where it
    ends: eps_hat is the mean of eps over the path in sigma / alpha, -u + ... of MeanFlow (Geng et al. 2025, arXiv 2505.13447,
    eq. 3) on the schedule of flow matching, where eps_hat - x_0_hat is its average velocity u(x_t, s, t). For s = t the
    model is a denoiser, which every sampler, guidance and metric takes.

    Arguments:
        backbone: network with further_inputs = 2.
        schedule, parameterization, has_null: as of `Preconditioned`.
        scales: lowest and highest scale of guidance that was trained, both 1 = none was.
        jumps: whether s < t was trained.

    Attributes:
        scale: of the predictions; the nearest to 1 in `scales` until `at_scale` chooses another.

    Raises:
        ValueError: a network without the two inputs.
    """

    def __init__(
        self,
        backbone: Backbone,
        schedule: Schedule,
        parameterization: Parameterization,
        has_null: bool,
        scales: Sequence[float] = NO_GUIDANCE,
        jumps: bool = True,
    ):
        super().__init__(backbone, schedule, parameterization, has_null)
        if getattr(backbone, "further_inputs", 0) != FURTHER_INPUTS:
            raise ValueError(
                f"a network of two times takes {FURTHER_INPUTS} numbers beside the noise level: use backbone=unet, dit or mlp "
                f"with backbone.further_inputs={FURTHER_INPUTS}, got a {type(backbone).__name__} with "
                f"{getattr(backbone, 'further_inputs', 0)}"
            )
        self.scales, self.jumps = (float(scales[0]), float(scales[1])), jumps
        self.scale = min(max(1.0, self.scales[0]), self.scales[1])

    def keep_table(self, schedule: Schedule) -> dict:
        return {}  # the calls of another scale are others

    def at_scale(self, scale: float) -> Self:
        """The same network at another scale of guidance.

        Raises:
            ValueError: a scale outside those that were trained.
        """
        low, high = self.scales
        if not low <= scale <= high:
            raise ValueError(f"scale must lie in {low:g} to {high:g}, where this model was trained, got {scale:g}")
        other = copy.copy(self)
        other.scale = float(scale)
        return other

    def network_level(self, log_snr: Tensor) -> Tensor:
        return self.join_inputs(log_snr, log_snr, self.scale)

    def join_inputs(self, log_snr: Tensor, target: Tensor, scale: Tensor | float) -> Tensor:
        """What the network gets of its levels [B] and the scale, [B, 3]."""
        scales = torch.as_tensor(scale, dtype=log_snr.dtype, device=log_snr.device).expand(len(log_snr))
        return torch.stack([log_snr, target.to(log_snr).expand(len(log_snr)), scales], dim=1)

    def predict_jump(
        self, x_t: Tensor, t: Tensor, s: Tensor, y: Condition | None = None, scale: Tensor | float | None = None
    ) -> Prediction:
        """The pair (x_0, eps) by which a DDIM step reaches x_s.

        Arguments:
            x_t: [B, ...].
            t, s: times, s <= t, 0-d or [B] float64.
            y: condition.
            scale: of guidance, a number or [B]; None = that of the model.
        """
        if self.tally is not None:
            self.tally.evaluations += len(x_t)
        x_t = at_least_float32(x_t)
        log_snr = self.schedule.log_snr(t)
        rows = self.parameterization.rows(*self.schedule.scales(log_snr, x_t.ndim)).to(x_t)
        level = log_snr.to(x_t).expand(len(x_t))
        inputs = self.join_inputs(level, self.schedule.log_snr(s), self.scale if scale is None else scale)
        output = self.backbone(rows.c_in * x_t, inputs, y).to(x_t.dtype)
        return Prediction(rows.c_skip * x_t + rows.c_out * output, rows.e_skip * x_t + rows.e_out * output)


def jump_to(prediction: Prediction, schedule: Schedule, s: Tensor) -> Tensor:
    """x_s = alpha_s x_0 + sigma_s eps."""
    alpha, sigma = schedule.alpha_sigma(s, prediction.x_0.ndim)
    return alpha.to(prediction.x_0) * prediction.x_0 + sigma.to(prediction.eps) * prediction.eps
