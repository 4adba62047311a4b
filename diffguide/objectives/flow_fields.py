"""The field that a flow map integrates: that of the data or of a teacher, guided at a scale of its own in every row."""

import copy
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..backbones.conditions import Condition, remove_condition
from ..models.jumps import JumpModel
from ..models.protocols import Denoiser, Prediction
from ..schedules import broadcast_rows

__all__ = ["DataField", "Field", "TeacherField", "Noised"]


class Noised(NamedTuple):
    """Noised examples of a batch: x_t = alpha_t x_0 + sigma_t eps, with the condition and the scale [B] of each row."""

    x_0: Tensor
    eps: Tensor
    x_t: Tensor
    t: Tensor
    y: Condition | None
    scale: Tensor

    def rows(self, rows: Tensor) -> "Noised":
        """Some of the rows."""
        y = None if self.y is None else self.y[rows]
        return Noised(self.x_0[rows], self.eps[rows], self.x_t[rows], self.t[rows], y, self.scale[rows])


class Field:
    """Base: field(batch, model) -> the pair (x_0, eps) of every row, without gradients."""

    def check(self, model: JumpModel, scales: Sequence[float]) -> None:
        """Raises ValueError for a model or scales that the field does not have."""

    def __call__(self, batch: Noised, model: JumpModel) -> Prediction:
        raise NotImplementedError


class DataField(Field):
    """w (x_0, eps) + (1 - w) (x_0_hat, eps_hat)(x_t, t, no condition): its mean given x_t is the field guided at scale w.

    The network guides itself while it learns: model guidance (Tang et al. 2025, arXiv 2502.12154, eq. 9) and the guided
    target of MeanFlow (Geng et al. 2025, arXiv 2505.13447, eq. 13) with its kappa = 0. At w = 1 it is the example itself.

    Arguments:
        from_itself: whether the field is (x_0, eps) + (1 - 1 / w) (own pair at w - pair without condition), the form of
            improved MeanFlow (Geng et al. 2025, arXiv 2512.02012, section 4.2). It has the same fixed point, and the noise of
            one example is not multiplied by w.
    """

    def __init__(self, from_itself: bool = False):
        self.from_itself = bool(from_itself)

    def check(self, model: JumpModel, scales: Sequence[float]) -> None:
        if tuple(scales) != (1.0, 1.0) and not (model.has_null and model.conditional):
            raise ValueError("objective.scales other than [1, 1] need a condition that is dropped: p_uncond above 0")

    @torch.no_grad()
    def __call__(self, batch: Noised, model: JumpModel) -> Prediction:
        if batch.y is None or bool((batch.scale == 1).all()):
            return Prediction(batch.x_0, batch.eps)
        nothing = remove_condition(batch.y)
        weak = model.predict_jump(batch.x_t, batch.t, batch.t, nothing, torch.ones_like(batch.scale))
        w = broadcast_rows(batch.scale, batch.x_t.ndim).to(batch.x_t)
        if self.from_itself:
            guided = model.predict_jump(batch.x_t, batch.t, batch.t, batch.y, batch.scale)
            sides = zip((batch.x_0, batch.eps), guided, weak)
            return Prediction(*(own + (1 - 1 / w) * (strong - side) for own, strong, side in sides))
        return Prediction(*(side + w * (own - side) for own, side in zip((batch.x_0, batch.eps), weak)))


class TeacherField(Field):
    """The prediction of a guided teacher at the scale of each row.

    Meng et al. 2022, "On Distillation of Guided Diffusion Models", arXiv 2210.03142, eq. 4 (their w is scale - 1).

    Arguments:
        teacher: a denoiser; one with another schedule is evaluated at equal log-SNR, with x_t rescaled.
        guidance: function teacher -> guided teacher.

    Raises:
        ValueError: guidance with memory.
    """

    def __init__(self, teacher: Denoiser, guidance: Callable[[Denoiser], Denoiser]):
        self.guided = guidance(teacher)
        self.teacher = teacher
        if self.guided.stateful:
            raise ValueError(
                "objective.teacher_guidance depends on its earlier calls (momentum, noise), so it cannot be distilled"
            )

    def check(self, model: JumpModel, scales: Sequence[float]) -> None:
        (low, high), (first, last) = self.teacher.schedule.noise_level_range, model.schedule.noise_level_range
        if first < low * (1 - 1e-6) or last > high * (1 + 1e-6):
            raise ValueError(
                f"the teacher knows the noise levels {low:.4g} to {high:.4g}, and this schedule has {first:.4g} to {last:.4g}: "
                "take its schedule, or schedule.log_snr_max and log_snr_min within its ends"
            )
        if self.teacher.num_classes != model.num_classes:
            raise ValueError(f"the teacher has {self.teacher.num_classes} classes, the student {model.num_classes}")
        if isinstance(self.guided, JumpModel):
            for scale in scales:
                self.guided.at_scale(scale)
        elif scales[0] != scales[1] and not hasattr(self.guided, "combine_rows"):
            raise ValueError(
                f"{type(self.guided).__name__} has one scale for all samples: set objective.scales to two equal numbers"
            )

    def __call__(self, batch: Noised, model: JumpModel) -> Prediction:
        return self.predict_jump(batch, batch.t, model)

    @torch.no_grad()
    def predict_jump(self, batch: Noised, s: Tensor, model: JumpModel) -> Prediction:
        """The pair of the teacher's jump from x_t to s; that of a DDIM step, for a teacher that does not jump."""
        here, there = model.schedule, self.teacher.schedule
        t, end = (there.t_of(here.log_snr(time)).clamp(0, 1) for time in (batch.t, s))
        scales = (
            torch.hypot(*schedule.alpha_sigma(time, batch.x_t.ndim)) for schedule, time in ((there, t), (here, batch.t))
        )
        x_t = batch.x_t * torch.div(*scales).to(batch.x_t)
        if isinstance(self.guided, JumpModel):
            return self.guided.predict_jump(x_t, t, end, batch.y, batch.scale)
        guided = copy.copy(self.guided)
        if hasattr(guided, "scale"):
            guided.scale = batch.scale if hasattr(guided, "combine_rows") else float(batch.scale[0])
        prediction = guided(x_t, t, batch.y)
        return Prediction(prediction.x_0, prediction.eps)
