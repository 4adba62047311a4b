"""Rules of flow models, which compare the predictions as velocities of the flow.

    u = eps - x_0,    time = sigma / (alpha + sigma),    x_0 = x - time u,    eps = x + (1 - time) u

where x = x_t / (alpha + sigma). Two schedules that differ in the scale of x_t or in their curve have the same u and the same
time at equal log-SNR, so that a rule of flow models means the same on every schedule. `Velocity` of `rules` is another one:
what the network of a schedule predicts.
"""

from typing import Any

import torch
from torch import Tensor

from ..models.protocols import Prediction
from ..runtime.ranges import check_finite, check_range
from ..schedules import Schedule
from .base import per_row_float
from .memories import LevelMemory
from .rules import Rule, damp_along, inner, interpolate, norm

__all__ = ["SMC", "VAGS", "AdaMaG", "compute_flow", "flow_time", "shift_flow"]


def flow_time(t: Tensor, schedule: Schedule, x: Tensor) -> Tensor:
    """sigma / (alpha + sigma): the time of a flow at equal log-SNR, from 0 (data) to 1 (noise), shaped to multiply x."""
    return per_row_float(torch.sigmoid(-schedule.log_snr(t) / 2), x)


def compute_flow(side: Prediction) -> Tensor:
    """The velocity of the flow, u = eps - x_0."""
    return side.eps - side.x_0


def shift_flow(side: Prediction, change: Tensor, time: Tensor) -> Prediction:
    """The prediction with its velocity of the flow changed, at a time of the flow."""
    return Prediction(side.x_0 - time * change, side.eps + (1 - time) * change)


class SMC(Rule):
    """u = u_weak + scale (d - gain sign(s)), d = u_strong - u_weak, s = d - d' + slope d', d' that of the previous level.

    Wang, Liu, Chi, Liu, Xue, Duan, "CFG-Ctrl: Control-Based Classifier-Free Diffusion Guidance", CVPR 2026, arXiv 2603.03281,
    sliding mode control: d' is the corrected difference, and d itself at the first level.

    Arguments:
        slope: lambda of the sliding surface; 5 in the authors' examples, 0.05 in their code.
        gain: K, size of the correction of every value, at least 0; 0 = linear, 0.2 in the authors' examples. It is in
            units of the data.
    """

    option = "smc_cfg"
    stateful = True
    strong_at_1 = False

    def __init__(self, slope: float = 5.0, gain: float = 0.2):
        self.slope, self.gain = check_finite("slope", slope), check_range("gain", gain, "[0, inf)")

    def start(self, times: Tensor) -> LevelMemory:
        return LevelMemory()

    def __call__(self, strong, weak, scale, x_t, t, schedule, memory: LevelMemory | None) -> Prediction:
        d = compute_flow(strong) - compute_flow(weak)
        before = None if memory is None else memory.recall(t, len(d))
        last = d if before is None else before[0]
        corrected = d - self.gain * torch.sign(d - last + self.slope * last)
        if memory is not None:
            memory.store(corrected)
        return shift_flow(strong, scale * corrected - d, flow_time(t, schedule, d))


class AdaMaG(Rule):
    """u = u_weak + w (across + along_share along), w = max(least, scale time^exponent), of d = u_strong - u_weak.

    d is split along and across strong.eps, the direction of the score. Esmati, Hyung, Dadashzadeh, Choo, Mirmehdi,
    "Probability-Conserving Flow Guidance", 2026, arXiv 2605.20079, eq. 10, 11 and 13, whose time runs from noise to data.
    Scale 1 is not off, since the part along the score stays damped.

    Arguments:
        along_share: beta, share that remains of the part along the score; 1 = all of it.
        exponent: gamma, at least 0; 0 = the same scale at every level.
        least: smallest w; 1 keeps the guidance of a conditional model near the data.
    """

    option = "adamag"
    strong_at_1 = False

    def __init__(self, along_share: float = 0.1, exponent: float = 4.0, least: float = 1.0):
        self.along_share, self.least = check_finite("along_share", along_share), check_finite("least", least)
        self.exponent = check_range("exponent", exponent, "[0, inf)")

    def __call__(self, strong, weak, scale, x_t, t, schedule, memory: Any) -> Prediction:
        d = compute_flow(strong) - compute_flow(weak)
        time = flow_time(t, schedule, d)
        w = (scale * time**self.exponent).clamp(min=self.least)
        return shift_flow(strong, w * damp_along(d, strong.eps, self.along_share) - d, time)


class VAGS(Rule):
    """Linear with the scale times exp(kappa (1 - 2 time) cos(u_strong, u_weak)).

    Luo, Aidara, Lu, Moebel, Han, Wang, "VAGS: Velocity Adaptive Guidance Scale for Image Editing and Generation", 2026,
    arXiv 2605.15661, VAGS-Gen: less guidance near the noise, more near the data, where both predictions agree. Scale 1 is
    off, as in the authors' code.

    Arguments:
        kappa: strength of the adaptation; 0 = linear, 1 in the paper.
    """

    option = "vags"

    def __init__(self, kappa: float = 1.0):
        self.kappa = check_finite("kappa", kappa)

    def __call__(self, strong, weak, scale, x_t, t, schedule, memory: Any) -> Prediction:
        u_strong, u_weak = compute_flow(strong), compute_flow(weak)
        sizes = norm(u_strong) * norm(u_weak)
        cosine = inner(u_strong, u_weak) / sizes.clamp(min=torch.finfo(sizes.dtype).tiny)
        return interpolate(
            strong, weak, scale * torch.exp(self.kappa * (1 - 2 * flow_time(t, schedule, sizes)) * cosine)
        )
