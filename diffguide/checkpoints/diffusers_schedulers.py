"""The law of a scheduler of diffusers as nodes of a configuration: schedule, timesteps and parameterization.

A scheduler_config.json mixes the law that the network was trained with (betas, ends, prediction) and settings of a sampler.
Only the law is translated; the settings that would change the samples are named in a remark.
"""

import inspect
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from ..files.safetensors import CheckpointError
from ..schedules import Schedule, ZeroTerminalSNR
from ..schedules import discrete as betas
from .allowlist import MAX_SIZE

__all__ = ["Law", "translate_scheduler"]

DISCRETE = (  # all on the law of discrete betas
    "DDIMInverseScheduler", "DDIMParallelScheduler", "DDIMScheduler", "DDPMParallelScheduler", "DDPMScheduler",
    "DEISMultistepScheduler", "DPMSolverMultistepInverseScheduler", "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler", "DPMSolverSinglestepScheduler", "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler",
    "HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler", "PNDMScheduler", "SASolverScheduler", "UniPCMultistepScheduler",
)  # fmt: skip
FLOW = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
EDM = ("EDMDPMSolverMultistepScheduler", "EDMEulerScheduler")
PREDICTIONS = {"epsilon": "Eps", "sample": "X0", "v_prediction": "V"}
CURVES = {
    "linear": "Linear",
    "scaled_linear": "ScaledLinear",
    "squaredcos_cap_v2": "SquaredCosine",
    "sigmoid": "SigmoidBeta",
}
SAMPLER_SETTINGS: dict[str, tuple[Any, ...]] = {  # values that change nothing beside a sampler and grid of ours
    "clip_sample": (False,),
    "thresholding": (False,),
    "set_alpha_to_one": (True,),
    "steps_offset": (0,),
    "use_karras_sigmas": (False,),
    "use_exponential_sigmas": (False,),
    "use_beta_sigmas": (False,),
    "use_dynamic_shifting": (False,),
    "shift_terminal": (None,),
    "stochastic_sampling": (False,),
    "final_sigmas_type": ("zero",),
    "variance_type": ("fixed_small", "learned_range", None),
}
NEARLY_ONE = 1e-13  # 1 - alpha at t = 0 of a rescaled schedule, whose exact end would be a division by 0


class Law(NamedTuple):
    """What a network was trained with.

    Attributes:
        schedule, timesteps, parameterization: nodes of a configuration.
        settings: settings of the sampler that are not taken over, such as clip_sample=true.
    """

    schedule: dict[str, Any]
    timesteps: dict[str, Any]
    parameterization: dict[str, Any]
    settings: list[str]


def translate_scheduler(config: Mapping[str, Any], whole: bool = False) -> Law:
    """The law of a scheduler_config.json.

    Arguments:
        config: its contents.
        whole: whether the network takes whole timesteps only.

    Raises:
        CheckpointError: a scheduler or a setting without counterpart; names it.
    """
    name = config.get("_class_name")
    if name not in (*DISCRETE, *FLOW, *EDM):
        raise CheckpointError(
            f"its scheduler {name!r} has no counterpart here; there are counterparts of {', '.join((*DISCRETE, *FLOW, *EDM))}"
        )
    settings = default_settings(name) | dict(config)
    kept = [
        f"{key}={settings[key]}"
        for key, neutral in SAMPLER_SETTINGS.items()
        if key in settings and settings[key] not in neutral
    ]
    try:
        if name in EDM:
            return edm_law(settings, kept)
        if name in FLOW or settings.get("use_flow_sigmas") or settings.get("prediction_type") == "flow_prediction":
            return flow_law(settings, kept)
        return discrete_law(settings, kept, whole)
    except CheckpointError:
        raise
    except (ArithmeticError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"its scheduler_config.json has no valid {name}: {error}") from error


def default_settings(name: str) -> dict[str, Any]:
    """The defaults of a scheduler, which a file may leave out."""
    try:
        import diffusers
    except ImportError:
        raise CheckpointError("folders of diffusers need it: pip install 'diffguide[diffusers]'") from None
    signature = inspect.signature(getattr(diffusers, name).__init__)
    return {key: part.default for key, part in signature.parameters.items() if part.default is not part.empty}


def parameterization(settings: Mapping[str, Any]) -> dict[str, Any]:
    prediction = settings.get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        raise CheckpointError(
            f"its prediction_type {prediction!r} has no counterpart here: {', '.join(PREDICTIONS)} and flow matching have"
        )
    return {"_target_": f"diffguide.models.parameterizations.{PREDICTIONS[prediction]}"}


def discrete_law(settings: Mapping[str, Any], kept: list[str], whole: bool) -> Law:
    """abar_0 = 1 and the levels of the betas."""
    if settings.get("timestep_type", "discrete") != "discrete":
        raise CheckpointError(f"its timestep_type {settings['timestep_type']!r} has no counterpart here: discrete has")
    steps, trained = settings["num_train_timesteps"], settings.get("trained_betas")
    if not isinstance(steps, int) or not 2 <= steps <= MAX_SIZE:
        raise CheckpointError(f"its num_train_timesteps must be a whole number from 2 to 2^20, got {steps!r}")
    curve = settings["beta_schedule"]
    ends = {"beta_start": settings["beta_start"], "beta_end": settings["beta_end"], "steps": steps}
    if trained is not None:
        node: dict[str, Any] = {"_target_": "diffguide.schedules.discrete.TrainedBetas", "betas": list(trained)}
        steps = len(trained)
    elif curve not in CURVES:
        raise CheckpointError(f"its beta_schedule {curve!r} has no counterpart here: {', '.join(CURVES)} have")
    else:
        values = {"steps": steps} if curve == "squaredcos_cap_v2" else ends
        node = {"_target_": f"diffguide.schedules.discrete.{CURVES[curve]}", **values}
    if settings.get("rescale_betas_zero_snr"):
        node = rescaled(node, steps)
    else:
        node = {**node, "log_snr_max": math.inf, "log_snr_min": None}
    timesteps = {
        "_target_": "diffguide.backbones.timesteps.DiscreteTimesteps",
        "schedule": node,
        "steps": steps,
        "whole": whole,
    }
    return Law(node, timesteps, parameterization(settings), kept)


def rescaled(node: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """The node of a schedule without signal at t = 1, whose signal at t = 0 is 1 up to `NEARLY_ONE`."""
    name = node["_target_"].rpartition(".")[2]
    arguments = {key: value for key, value in node.items() if key != "_target_"}
    inner: Schedule = getattr(betas, name)(**arguments, log_snr_max=math.inf)
    finite = getattr(betas, name)(**arguments, log_snr_max=inner.finest_log_snr + 1e-6)
    outer = ZeroTerminalSNR(finite, 1 / steps)
    lost = outer.excess + NEARLY_ONE / outer.factor
    highest = 2 * math.log1p(-lost) - math.log(lost * (2 - lost))
    inside = {**node, "log_snr_max": highest, "log_snr_min": None}
    return {"_target_": "diffguide.schedules.wrappers.ZeroTerminalSNR", "schedule": inside, "first": 1 / steps}


def flow_law(settings: Mapping[str, Any], kept: list[str]) -> Law:
    """Straight paths between exact ends, with the shift of the times u' = s u / (1 + (s - 1) u)."""
    shift = settings.get("flow_shift", settings.get("shift", 1.0))
    if settings.get("invert_sigmas"):
        raise CheckpointError("its invert_sigmas=true has no counterpart here: false has")
    node: dict[str, Any] = {
        "_target_": "diffguide.schedules.curves.Flow",
        "log_snr_max": math.inf,
        "log_snr_min": -math.inf,
    }
    if shift not in (None, 1):
        node = {
            "_target_": "diffguide.schedules.wrappers.ResolutionShift",
            "schedule": node,
            "resolution": shift,
            "reference": 1,
        }
    timesteps = {
        "_target_": "diffguide.backbones.timesteps.FlowTimesteps",
        "scale": settings["num_train_timesteps"],
        "from_noise": False,
    }
    return Law(node, timesteps, {"_target_": "diffguide.models.parameterizations.Flow"}, kept)


def edm_law(settings: Mapping[str, Any], kept: list[str]) -> Law:
    """EDM's noise levels and preconditioning."""
    if settings["prediction_type"] != "epsilon":
        raise CheckpointError(
            f"its prediction_type {settings['prediction_type']!r} has no counterpart with EDM's noise levels: epsilon has"
        )
    node = {
        "_target_": "diffguide.schedules.sde.EDM",
        "log_snr_max": -2 * math.log(settings["sigma_min"]),
        "log_snr_min": -2 * math.log(settings["sigma_max"]),
        "rho": settings["rho"],
    }
    network = {"_target_": "diffguide.models.parameterizations.EDM", "sigma_data": settings["sigma_data"]}
    return Law(node, {"_target_": "diffguide.backbones.timesteps.LogNoiseTimesteps"}, network, kept)
