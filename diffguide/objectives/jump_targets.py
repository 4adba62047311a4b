"""Targets of a jump from t to s: two jumps through a time m between them, the first by the field or by the model.

Every jump is a pair (x_0, eps) with alpha_t x_0 + sigma_t eps = x_t that reaches x_s = alpha_s x_0 + sigma_s eps. With noise
levels n = sigma / alpha, (x_s / alpha_s - x_t / alpha_t) = (n_s - n_t) eps, so two jumps with eps_1 and eps_2 are one with

    eps = eps_1 - (k / n_t) (eps_1 - eps_2),   x_0 = x_0_1 + k (eps_1 - eps_2),   k = (n_m - n_s) / (1 - n_s / n_t).

| first | second | method |
|---|---|---|
| model | model | shortcut models (Frans et al. 2024, arXiv 2410.12557, eq. 4), progressive distillation with a moving teacher |
| field | model | consistency models (Song et al. 2023, arXiv 2303.01469, eq. 9), for any end of the jump |
| field | model, m -> t | MeanFlow (Geng et al. 2025, arXiv 2505.13447, eq. 6), by a forward derivative |
"""

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..models.jumps import JumpModel, jump_to
from ..models.protocols import Prediction
from ..runtime.ranges import check_range
from ..schedules import Schedule, broadcast_rows
from .flow_fields import Noised

__all__ = ["Consistency", "JumpTarget", "MeanFlow", "Shortcut", "join_jumps"]


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
    """

    needs_field = True

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

    @torch.no_grad()
    def __call__(self, batch: Noised, s: Tensor, field: Prediction, model: JumpModel) -> Prediction:
        m = batch.t + self.step * (s - batch.t)
        second = model.predict_jump(jump_to(field, model.schedule, m), m, s, batch.y, batch.scale)
        return join_jumps(field, second, model.schedule, batch.t, m, s)


class MeanFlow(JumpTarget):
    """eps = eps_f - (n_t - n_s) d eps_hat / d n_t along the field, x_0 = x_0_f + n_t (n_t - n_s) d eps_hat / d n_t.

    What a short step of `Consistency` changes in the network's own jump, divided by the share of the jump that it is: in the
    limit the two have one direction, and this one keeps its length. The derivative is taken in forward mode.
    """

    @torch.no_grad()
    def __call__(self, batch: Noised, s: Tensor, field: Prediction, model: JumpModel) -> Prediction:
        schedule, ndim = model.schedule, batch.x_t.ndim
        log_snr, rate = schedule.log_snr_and_rate(batch.t)
        alpha, sigma = schedule.scales(log_snr)
        n_t, n_s = torch.exp(-log_snr / 2), schedule.noise_level(s)
        alpha_rate, sigma_rate = (
            torch.func.jvp(lambda level: schedule.normalisation(level)[index], (log_snr,), (rate,))[1]
            for index in (0, 1)
        )
        velocity = sum(
            broadcast_rows(part, ndim).to(side) * side for part, side in zip((alpha_rate, sigma_rate), field)
        )

        def predict(x_t: Tensor, t: Tensor) -> Tensor:
            return model.predict_jump(x_t, t, s, batch.y, batch.scale).eps

        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no derivative in forward mode
            slope = torch.func.jvp(predict, (batch.x_t, batch.t), (velocity, torch.ones_like(batch.t)))[1]
        way = (n_t - n_s) / (-n_t * rate / 2)  # (n_t - n_s) dt / d n_t
        slope = broadcast_rows(way, ndim).to(slope) * slope
        return Prediction(field.x_0 + broadcast_rows(n_t, ndim).to(slope) * slope, field.eps - slope)
