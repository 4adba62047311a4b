"""Nodes of configurations that several families share."""

from typing import Any

__all__ = ["denoising", "discrete_features", "discrete_schedule", "image_folder", "timestep_features"]


def image_folder(channels: int, size: int, num_classes: int) -> dict[str, Any]:
    """The node of a data set of images, or of latents, whose place is not known."""
    bytes_of_images = {"quantization_levels": 256} if channels in (1, 3) else {}
    return {
        "_target_": "diffguide.datasets.image_folder.ImageFolder",
        "path": "???",
        "channels": channels,
        "size": size,
        "num_classes": num_classes,
        **bytes_of_images,
    }


def discrete_schedule(cosine: bool, steps: int) -> dict[str, Any]:
    """The betas of ADM: linear from 0.1 / steps to 20 / steps, or clipped cosine."""
    if cosine:
        return {
            "_target_": "diffguide.schedules.discrete.SquaredCosine",
            "log_snr_max": 12.0,
            "log_snr_min": None,
            "steps": steps,
            "offset": 0.008,
            "beta_max": 0.999,
        }
    return {
        "_target_": "diffguide.schedules.discrete.Linear",
        "log_snr_max": 12.0,
        "log_snr_min": None,
        "beta_start": 0.1 / steps,
        "beta_end": 20 / steps,
        "steps": steps,
    }


def discrete_features(schedule: dict[str, Any], steps: int, width: int, rescale: bool = True) -> dict[str, Any]:
    """The features of the timestep of discrete betas, its index; with `rescale` in units of a thousandth of all steps."""
    timesteps = {
        "_target_": "diffguide.backbones.timesteps.DiscreteTimesteps",
        "schedule": dict(schedule),
        "steps": steps,
        "whole": False,
        "scale": 1000 / steps if rescale else 1.0,
    }
    return timestep_features(timesteps, width)


def timestep_features(timesteps: dict[str, Any], width: int) -> dict[str, Any]:
    """The features of a timestep, with the wavelengths of all published networks."""
    return {
        "_target_": "diffguide.backbones.timesteps.TimestepFeatures",
        "timesteps": timesteps,
        "width": width,
        "max_period": 10000.0,
    }


def denoising(parameterization: str, p_uncond: float) -> dict[str, Any]:
    """The objective of a network that predicts `Eps`, `Flow`, ..., with weight 1 in its own error."""
    return {
        "_target_": "diffguide.objectives.denoising.Denoising",
        "parameterization": {"_target_": f"diffguide.models.parameterizations.{parameterization}"},
        "weight": {"_target_": "diffguide.objectives.weights.Uniform"},
        "levels": {"_target_": "diffguide.objectives.levels.UniformTime", "stratified": True},
        "p_uncond": p_uncond,
    }
