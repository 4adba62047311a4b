"""Targets of a jump from t to s: two jumps through a time m between them, the first by the field or by the model.

Every jump is a pair (x_0, eps) with alpha_t x_0 + sigma_t eps = x_t that reaches x_s = alpha_s x_0 + sigma_s eps. With noise
levels n = sigma / alpha, (x_s / alpha_s - x_t / alpha_t) = (n_s - n_t) eps, so two jumps with eps_1 and eps_2 are one with

    eps = eps_1 - (k / n_t) (eps_1 - eps_2),   x_0 = x_0_1 + k (eps_1 - eps_2),   k = (n_m - n_s) / (1 - n_s / n_t).

| first | second | method |
|---|---|---|
| model | model | shortcut models (Frans et al. 2024, arXiv 2410.12557, eq. 4) |
| teacher | teacher | progressive distillation (Salimans & Ho 2022, arXiv 2202.00512, algorithm 2) |
| field | model | consistency models (Song et al. 2023, arXiv 2303.01469, eq. 9), for any end of the jump |
| field | model, m -> t | MeanFlow (Geng et al. 2025, arXiv 2505.13447, eq. 6), by a forward derivative |
"""

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..models.jumps import JumpModel, jump_to
from ..models.protocols import Prediction
from ..runtime.ranges import check_range, check_whole
from ..schedules import Schedule, broadcast_rows
from .flow_fields import Field, Noised, TeacherField

__all__ = ["Consistency", "JumpTarget", "MeanFlow", "Progressive", "Shortcut", "join_jumps"]


def join_jumps(
    first: Prediction, second: Prediction, schedule: Schedule, t: Tensor, m: Tensor, s: Tensor
) -> Prediction:
    """The pair of one jump from t to s that is `first` from t to m followed by `second` from m to s; times [B]."""
    n_t, n_m, n_s = (schedule.noise_level(time) for time in (t, m, s))
    k = (n_m - n_s) / (1 - n_s / n_t)
    difference = first.eps - second.eps
    factor, share = (broadcast_rows(part, difference.ndim).to(difference) for part in (k, k / n_t))
    return Prediction(first.x_0 + factor * difference, first.eps - share * difference)


class JumpTarget:
    """Base: target(batch, s, field, model) -> the pair that reaches x_s, without gradients; s < t, both [B].

    Attributes:
        needs_field: whether it reads `field`, the pair of the field at x_t, which is not computed otherwise.
        source: the field of the objective, for a target that follows it further.
    """

    needs_field = True
    source: Field | None = None

    def place(self, t: Tensor, schedule: Schedule) -> Tensor:
        """The times [B] where jumps start, from those that were drawn."""
        return t

    def place_end(self, t: Tensor, s: Tensor) -> Tensor:
        """The times [B] where jumps from t end, from those that were drawn."""
        return s

    def find_middle(self, t: Tensor, s: Tensor, schedule: Schedule) -> Tensor:
        """The time m between t and s where a first short step ends; s where there is none."""
        return s

    def count(self, images: int) -> None:
        """Called after every training step with the number of its images."""

    def __call__(self, batch: Noised, s: Tensor, field: Prediction, model: JumpModel) -> Prediction:
        raise NotImplementedError


class Shortcut(JumpTarget):
    """Two jumps of the model through the middle of the times.

    Arguments:
        middle: place of m between t (0) and s (1); in (0, 1).
    """

    needs_field = False

    def __init__(self, middle: float = 0.5):
        self.middle = check_range("middle", middle, "(0, 1)")

    @torch.no_grad()
    def __call__(self, batch: Noised, s: Tensor, field: Prediction, model: JumpModel) -> Prediction:
        m = batch.t + self.middle * (s - batch.t)
        first = model.predict_jump(batch.x_t, batch.t, m, batch.y, batch.scale)
        second = model.predict_jump(jump_to(first, model.schedule, m), m, s, batch.y, batch.scale)
        return join_jumps(first, second, model.schedule, batch.t, m, s)


class Consistency(JumpTarget):
    """A short step of the field, then a jump of the model.

    Arguments:
        step: length of the step as a share of the way from t to s; in (0, 1).
    """

    def __init__(self, step: float = 0.1):
        self.step = check_range("step", step, "(0, 1)")

    def find_middle(self, t: Tensor, s: Tensor, schedule: Schedule) -> Tensor:
        return t + self.step * (s - t)

    @torch.no_grad()
    def __call__(self, batch: Noised, s: Tensor, field: Prediction, model: JumpModel) -> Prediction:
        m = self.find_middle(batch.t, s, model.schedule)
        second = model.predict_jump(jump_to(field, model.schedule, m), m, s, batch.y, batch.scale)
        return join_jumps(field, second, model.schedule, batch.t, m, s)


class Progressive(JumpTarget):
    """Two jumps of the teacher, from t to t - 1/(2 N) to t - 1/N, at the times t = k / N.

    Salimans & Ho 2022, "Progressive Distillation for Fast Sampling of Diffusion Models", arXiv 2202.00512, algorithm 2. The
    jumps of a teacher that is a denoiser are DDIM steps; the next round has half the steps and this student as its teacher.

    Arguments:
        steps: N of the student, at least 1.
    """

    needs_field = False

    def __init__(self, steps: int = 4):
        self.steps = check_whole("steps", steps, 1)

    def place(self, t: Tensor, schedule: Schedule) -> Tensor:
        return (t * self.steps).ceil().clamp(min=1) / self.steps

    def place_end(self, t: Tensor, s: Tensor) -> Tensor:
        return ((t * self.steps).round() - 1) / self.steps

    @torch.no_grad()
    def __call__(self, batch: Noised, s: Tensor, field: Prediction, model: JumpModel) -> Prediction:
        assert isinstance(self.source, TeacherField)  # FlowMap.check
        m = (batch.t + s) / 2
        first = self.source.predict_jump(batch, m, model)
        x_m = jump_to(first, model.schedule, m).to(batch.x_t)
        second = self.source.predict_jump(batch._replace(x_t=x_m, t=m), s, model)
        return join_jumps(first, second, model.schedule, batch.t, m, s)


class MeanFlow(JumpTarget):
    """eps = eps_f - (n_t - n_s) d eps_hat / d n_t along the field, x_0 = x_0_f + n_t (n_t - n_s) d eps_hat / d n_t.

    What a short step of `Consistency` changes in the network's own jump, divided by the share of the jump that it is: in the
    limit the two have one direction, and this one keeps its length. The derivative is taken in forward mode.

    Arguments:
        own_field: whether the derivative is along the network's own field, its pair for s = t, in place of that of the target:
            improved MeanFlow (Geng et al. 2025, arXiv 2512.02012, eq. 12), whose derivative does not have the noise of one
            example.
    """

    def __init__(self, own_field: bool = False):
        self.own_field = bool(own_field)

    @torch.no_grad()
    def __call__(self, batch: Noised, s: Tensor, field: Prediction, model: JumpModel) -> Prediction:
        slope = self.differentiate(batch, s, field, model)[1]
        n_t = broadcast_rows(model.schedule.noise_level(batch.t), slope.ndim).to(slope)
        return Prediction(field.x_0 + n_t * slope, field.eps - slope)

    def differentiate(self, batch: Noised, s: Tensor, field: Prediction, model: JumpModel) -> tuple[Prediction, Tensor]:
        """The network's own pair, and (n_t - n_s) d eps_hat / d n_t."""
        schedule, ndim = model.schedule, batch.x_t.ndim
        log_snr, rate = schedule.log_snr_and_rate(batch.t)
        alpha, sigma = schedule.scales(log_snr)
        n_t, n_s = torch.exp(-log_snr / 2), schedule.noise_level(s)
        alpha_rate, sigma_rate = (
            torch.func.jvp(lambda level: schedule.normalisation(level)[index], (log_snr,), (rate,))[1]
            for index in (0, 1)
        )
        if self.own_field:
            field = model.predict_jump(batch.x_t, batch.t, batch.t, batch.y, batch.scale)
        velocity = sum(
            broadcast_rows(part, ndim).to(side) * side for part, side in zip((alpha_rate, sigma_rate), field)
        )

        def predict(x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            pair = model.predict_jump(x_t, t, s, batch.y, batch.scale)
            return pair.eps, pair.x_0

        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no derivative in forward mode
            found = torch.func.jvp(predict, (batch.x_t, batch.t), (velocity, torch.ones_like(batch.t)))
        (eps, x_0), (slope, _) = found[0], found[1]
        way = (n_t - n_s) / (-n_t * rate / 2)  # (n_t - n_s) dt / d n_t
        return Prediction(x_0, eps), broadcast_rows(way, ndim).to(slope) * slope
