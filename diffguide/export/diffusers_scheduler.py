"""The law of a network as a scheduler of diffusers: the inverse of `checkpoints.diffusers_schedulers`.

A pipeline asks its network at timesteps, so that the levels of its scheduler are those of the network's timesteps, whatever
schedule the run was trained and is sampled with. Noised data are scaled to alpha^2 + sigma^2 = 1, or alpha + sigma = 1 for
flow matching, as both libraries do.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..backbones.timesteps import DiscreteTimesteps, FlowTimesteps, Timesteps
from ..models.parameterizations import X0, Eps, Flow, Parameterization, V
from ..schedules import Flow as FlowSchedule
from ..schedules import Linear, ResolutionShift, ScaledLinear, Schedule, SquaredCosine, ZeroTerminalSNR
from ..schedules.discrete import DiscreteBetas
from .errors import ExportError

__all__ = ["OTHERS", "scheduler_settings"]

PREDICTIONS: dict[type, str] = {Eps: "epsilon", X0: "sample", V: "v_prediction"}
CURVES: dict[type, str] = {Linear: "linear", ScaledLinear: "scaled_linear"}  # others are given by their betas
DIGITS = 12  # significant, of numbers that are computed back from others
OTHERS = "to=torch_export, onnx and safetensors take it"


def scheduler_settings(
    timesteps: Timesteps, parameterization: Parameterization, schedule: Schedule
) -> tuple[str, dict[str, Any]]:
    """The family of schedulers, `discrete` or `flow`, and the arguments that state the law.

    Arguments:
        timesteps: of the network.
        parameterization: what it predicts.
        schedule: of the run, for the shift of its times in flow matching.

    Raises:
        ExportError: a law that no scheduler states.
    """
    if isinstance(timesteps, FlowTimesteps) and isinstance(parameterization, Flow) and not timesteps.from_noise:
        return "flow", {"num_train_timesteps": round(timesteps.scale), "shift": flow_shift(schedule)}
    kind = PREDICTIONS.get(type(parameterization))
    if not isinstance(timesteps, DiscreteTimesteps) or kind is None:
        raise ExportError(
            f"no pipeline of diffusers has a network with {type(timesteps).__name__} that predicts "
            f"{type(parameterization).__name__}: discrete timesteps with eps, x0 or v have one, and flow matching; {OTHERS}"
        )
    if timesteps.scale != 1:
        raise ExportError(f"no pipeline of diffusers scales its timesteps by {timesteps.scale:g}; {OTHERS}")
    return "discrete", {"prediction_type": kind, **betas_settings(timesteps.schedule, timesteps.steps)}


def flow_shift(schedule: Schedule) -> float:
    """s of the times u' = s u / (1 + (s - 1) u); 1 where the schedule is no shifted flow."""
    if isinstance(schedule, ResolutionShift) and isinstance(schedule.schedule, FlowSchedule):
        return round_ends(math.exp(-schedule.shift / 2))
    return 1.0


def betas_settings(schedule: Schedule, steps: int) -> dict[str, Any]:
    """The betas of the levels k / steps, by the name of their curve where it has one."""
    settings: dict[str, Any] = {"num_train_timesteps": steps}
    inner = schedule
    if isinstance(schedule, ZeroTerminalSNR) and schedule.first == 1 / steps:
        inner, settings["rescale_betas_zero_snr"] = schedule.schedule, True
    if inner.zero_terminal_snr:
        raise ExportError(
            f"no scheduler of diffusers has the levels of {type(schedule).__name__}, which end at alpha = 0; {OTHERS}"
        )
    betas = level_betas(inner, steps)
    whole = isinstance(inner, DiscreteBetas) and len(inner.knots) == steps + 1 and inner.end == 1
    if whole and type(inner) in CURVES:
        first, last = (round_ends(float(beta)) for beta in (betas[0], betas[-1]))
        return settings | {"beta_schedule": CURVES[type(inner)], "beta_start": first, "beta_end": last}
    if whole and torch.allclose(betas, level_betas(SquaredCosine(steps=steps), steps), rtol=1e-9, atol=0):
        return settings | {"beta_schedule": "squaredcos_cap_v2"}
    return settings | {"trained_betas": betas.tolist()}


def level_betas(schedule: Schedule, steps: int) -> Tensor:
    """beta_k = 1 - abar_k / abar_(k - 1) of the levels k / steps, with abar_0 = 1."""
    times = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    log_abar = functional.logsigmoid(schedule.log_snr(times))
    return -torch.expm1(torch.cat([log_abar.new_zeros(1), log_abar]).diff())


def round_ends(value: float) -> float:
    """A number that was given in few digits, without the rounding of the arithmetic since."""
    return float(f"{value:.{DIGITS}g}")
