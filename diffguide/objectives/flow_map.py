"""Networks of two times: guidance and the integral of the flow learned into one call."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..backbones import Backbone
from ..backbones.conditions import Condition
from ..models.jumps import FURTHER_INPUTS, NO_GUIDANCE, JumpModel, jump_to
from ..models.parameterizations import Parameterization, Rows, at_least_float32
from ..models.protocols import Denoiser, Prediction
from ..randomness import Share, normal, uniform
from ..runtime.ranges import check_finite, check_range
from ..schedules import Schedule, broadcast_rows
from .base import LevelObjective, Loss, drop_condition
from .denoising import V_PREDICTION
from .distances import Distance
from .flow_fields import DataField, Field, Noised, TeacherField
from .jump_targets import JumpTarget, Progressive
from .levels import UNIFORM_TIME, NoiseLevels
from .weights import UNIFORM_WEIGHT, Weight

__all__ = ["FlowMap"]


class FlowMap(LevelObjective):
    """weight || F(x_t, t, s, w, y) - (p x_0* + q eps*) ||^2 / D with the pair (x_0*, eps*) of the jump from t to s.

    In the rows with s = t the pair is that of the field: the guided field at scale w of a teacher, or of the data. In the
    others it is the target of `jump`. Without `jump` the network learns the guided field alone: guidance distillation with a
    teacher (Meng et al. 2022, arXiv 2210.03142), model guidance without (Tang et al. 2025, arXiv 2502.12154).

    Arguments:
        backbone: network with further_inputs = 2.
        schedule: noise schedule, fixed.
        teacher: trained model whose guided field is learned; None = the data's.
        teacher_guidance: function teacher -> guided teacher; its scale is that of each row. None = no guidance.
        scales: lowest and highest scale of guidance; every example has one of its own, uniform between them.
        jump: what a jump from t to s < t is compared with; None = no jumps.
        jump_share: expected share of the examples with s < t, in [0, 1].
        end_share: expected share of the jumps that end at s = 0, in [0, 1]; the others end uniformly below t.
        path_share: expected share of the examples that start where the network's own jump from t = 1 ends, in [0, 1]. Paths
            of a guided flow leave the noised data, so a network that sees those alone errs on its own later jumps. Needs a
            teacher: the data say nothing about other points.
        inverse_scales: whether 1 / scale is uniform in place of the scale, and losses are multiplied by 1 / scale^2, as in
            guidance-free training (Chen et al. 2025, arXiv 2501.15420, algorithm 1, beta = 1 / scale): its error is that of
            beta F + (1 - beta) F(no condition), which is the error of F at the guided target divided by the scale.
        from_itself: how the field of the data is guided, see `DataField`.
        distance: of a jump to its target; None = the weighted squared error.
        parameterization, weight, levels, p_uncond: as of `Denoising`.

    Raises:
        ValueError: a learned schedule; scales that are not two rising numbers, or that the field does not have.
    """

    model: JumpModel
    compilable = False
    further_inputs = FURTHER_INPUTS

    def __init__(
        self,
        backbone: Backbone,
        schedule: Schedule,
        teacher: Denoiser | None = None,
        teacher_guidance: Callable[[Denoiser], Denoiser] | None = None,
        scales: Sequence[float] = NO_GUIDANCE,
        jump: JumpTarget | None = None,
        jump_share: float = 0.5,
        end_share: float = 0.25,
        path_share: float = 0.0,
        inverse_scales: bool = False,
        from_itself: bool = False,
        distance: Distance | None = None,
        parameterization: Parameterization = V_PREDICTION,
        weight: Weight = UNIFORM_WEIGHT,
        levels: NoiseLevels = UNIFORM_TIME,
        p_uncond: float = 0.0,
    ):
        super().__init__()
        schedule.check_fixed("objective=flow_map")
        self.p_uncond = check_range("p_uncond", p_uncond, "[0, 1]")
        self.jump_share = check_range("jump_share", jump_share, "[0, 1]")
        self.end_share = check_range("end_share", end_share, "[0, 1]")
        self.path_share = check_range("path_share", path_share, "[0, 1]")
        self.scales = tuple(check_finite("scales", scale) for scale in scales)
        if len(self.scales) != 2 or self.scales[0] > self.scales[1]:
            raise ValueError(f"scales must be the lowest and the highest scale, got {list(scales)}")
        self.inverse_scales, self.distance = bool(inverse_scales), distance
        if self.inverse_scales and self.scales[0] <= 0:
            raise ValueError(f"objective.inverse_scales needs scales above 0, got {list(scales)}")
        levels.check(schedule)
        self.model = JumpModel(backbone, schedule, parameterization, p_uncond > 0, self.scales, jump is not None)
        self.jump, self.weight, self.levels = jump, weight, levels
        self.field: Field = DataField(from_itself)
        if teacher is not None:
            self.field = TeacherField(teacher, teacher_guidance or (lambda denoiser: denoiser))
            self.field.check(self.model, self.scales)
        if jump is not None:
            jump.source = self.field
        self.step_images = 0  # of the last step

    def check(self, x_0: Tensor) -> None:
        if self.path_share and (self.jump is None or isinstance(self.field, DataField)):
            raise ValueError("objective.path_share above 0 needs objective.jump and objective.teacher")
        if isinstance(self.jump, Progressive) and isinstance(self.field, DataField):
            raise ValueError("objective/jump=progressive needs objective.teacher, the model of the round before")
        self.field.check(self.model, self.scales)

    def forward(self, x_0: Tensor, y: Condition | None, rng: torch.Generator | Share) -> Loss:
        x_0 = at_least_float32(x_0)  # in mixed precision it comes in bfloat16
        batch, density, s = self.draw(x_0, y, rng)
        target = self.find_target(batch, s)
        model = self.model
        log_snr = model.schedule.log_snr(batch.t)
        rows = model.parameterization.rows(*model.schedule.scales(log_snr, x_0.ndim)).to(x_0)
        inputs = model.join_inputs(log_snr.to(x_0), model.schedule.log_snr(s), batch.scale)
        output = model.backbone(rows.c_in * batch.x_t, inputs, batch.y).to(x_0.dtype)
        error = (output - (rows.p * target.x_0 + rows.q * target.eps)).square().flatten(1).mean(1)
        weighted = self.weight.weigh(error, log_snr, rows, density)
        if self.distance is not None:
            weighted = self.replace_by_distance(weighted, error, batch, s, rows)
        if self.inverse_scales:
            weighted = weighted / batch.scale.to(weighted) ** 2
        self.step_images = rng.total if isinstance(rng, Share) else len(x_0)
        return Loss(self.levels.importance(batch.t).to(error) * weighted, {"mse": error.detach()}, log_snr)

    def finish_step(self, gather: Callable[[Tensor], Tensor]) -> None:
        super().finish_step(gather)
        if self.jump is not None:
            self.jump.count(self.step_images)

    def replace_by_distance(self, weighted: Tensor, error: Tensor, batch: Noised, s: Tensor, rows: Rows) -> Tensor:
        """The losses [B] with those of `distance`, from the mean squared errors [B] of the network's output."""
        assert self.distance is not None
        schedule, size = self.model.schedule, batch.x_0[0].numel()
        n_t, n_s = schedule.noise_level(batch.t), schedule.noise_level(s)
        jumping = s < batch.t
        m = s if self.jump is None else self.jump.find_middle(batch.t, s, schedule)
        gap = torch.where(jumping, n_t - schedule.noise_level(m), 1.0).to(error)
        gain = (rows.c_out.reshape(-1) + n_s.to(error) * rows.e_out.reshape(-1)).abs()
        found = self.distance(size * error, gain, gap, size)
        return torch.where(jumping, found, weighted) if self.distance.of_jumps else found

    def draw(self, x_0: Tensor, y: Condition | None, rng: torch.Generator | Share) -> tuple[Noised, Tensor, Tensor]:
        """The noised batch, the density of its log-SNRs, and the times s [B] where jumps end; s = t = no jump."""
        n, schedule = len(x_0), self.model.schedule
        t, density = self.levels(schedule, n, rng)
        if self.jump is not None:
            t = self.jump.place(t, schedule)
        eps = normal(x_0.shape, rng, x_0.dtype)
        y = drop_condition(y, self.p_uncond, rng)
        alpha, sigma = (part.to(x_0) for part in schedule.alpha_sigma(t, x_0.ndim))
        batch = Noised(x_0, eps, alpha * x_0 + sigma * eps, t, y, self.draw_scales(n, rng))
        if self.jump is None:
            return batch, density, t
        chance, place, to_end = (uniform((n,), rng, torch.float64) for _ in range(3))
        s = self.jump.place_end(t, torch.where(to_end < self.end_share, 0.0, place) * t)
        if self.path_share:
            batch = self.move_to_path(batch, uniform((n,), rng, torch.float64) < self.path_share)
        return batch, density, torch.where(chance < self.jump_share, s, t)

    def draw_scales(self, n: int, rng: torch.Generator | Share) -> Tensor:
        """Scales of guidance [n] between the lowest and the highest, float64."""
        (low, high), place = self.scales, uniform((n,), rng, torch.float64)
        return 1 / (1 / low + (1 / high - 1 / low) * place) if self.inverse_scales else low + (high - low) * place

    @torch.no_grad()
    def move_to_path(self, batch: Noised, rows: Tensor) -> Noised:
        """The batch with x_t = the network's jump from x_1 in some rows [B]."""
        model, first = self.model, torch.ones_like(batch.t)
        alpha, sigma = (part.to(batch.x_0) for part in model.schedule.alpha_sigma(first, batch.x_0.ndim))
        pair = model.predict_jump(alpha * batch.x_0 + sigma * batch.eps, first, batch.t, batch.y, batch.scale)
        ends = jump_to(pair, model.schedule, batch.t).to(batch.x_t)
        return batch._replace(x_t=torch.where(broadcast_rows(rows, ends.ndim), ends, batch.x_t))

    def find_target(self, batch: Noised, s: Tensor) -> Prediction:
        """The pair of every row."""
        jumping = s < batch.t
        if self.jump is None or not bool(jumping.any()):
            return self.field(batch, self.model)
        part = batch.rows(jumping)
        rows = torch.ones_like(jumping) if self.jump.needs_field else ~jumping
        x_0, eps = torch.empty_like(batch.x_t), torch.empty_like(batch.x_t)
        if bool(rows.any()):
            x_0[rows], eps[rows] = (side.to(x_0) for side in self.field(batch.rows(rows), self.model))
        x_0[jumping], eps[jumping] = self.jump(part, s[jumping], Prediction(x_0[jumping], eps[jumping]), self.model)
        return Prediction(x_0, eps)
