"""The model of a command: a checkpoint, or an oracle in its place."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..config.build import ConfigError, accepts_argument, build
from ..datasets import Dataset
from ..models.half_precision import INFERENCE_PRECISIONS
from ..runtime.precision import AUTO, FULL
from ..sampling.sources import OracleSource, training_tensors
from .arguments import changed_keys

__all__ = ["build_oracle", "check_model_keys", "checkpoint_paths", "settle_inference_precision"]


def settle_inference_precision(config: dict[str, Any]) -> None:
    """Replaces engine.precision=auto, which is float32 in sampling and evaluation."""
    if config["engine"]["precision"] == AUTO:
        config["engine"] = {**config["engine"], "precision": FULL}


def check_model_keys(config: Mapping[str, Any]) -> None:
    """Checks that every key of the command line has an effect on its model, a checkpoint or an oracle.

    Raises:
        ConfigError: a key that only the other one has, or an unknown precision.
    """
    roots = {key.partition(".")[0] for key in changed_keys()}
    precision = config["engine"]["precision"]
    if precision not in INFERENCE_PRECISIONS:
        raise ConfigError(f"engine.precision must be one of {', '.join(INFERENCE_PRECISIONS)}, got {precision}")
    if "oracle" not in config:
        if "schedule" in roots:
            raise ConfigError("schedule has no effect with a checkpoint, which has its own: remove it")
        return
    of_training = {"weights", "adapter", "adapter_scale"}
    others = set() if config["resume"] is not None else {"trust", "latents", "first_stage"}
    for key in sorted(roots & (of_training | others)):
        raise ConfigError(f"{key} has no effect with an oracle, which was not trained: remove it")
    if precision != FULL:
        raise ConfigError(
            f"engine.precision={precision} has no effect with an oracle, which computes in float64: remove it"
        )


def checkpoint_paths(config: Mapping[str, Any], several: bool) -> list[str | None]:
    """The checkpoints of a command, [None] with an oracle.

    Arguments:
        several: whether the command takes a list.

    Raises:
        ConfigError: neither a checkpoint nor an oracle, both, or several where the command takes one.
    """
    checkpoint = config["checkpoint"]
    if "oracle" in config:
        if checkpoint is not None:
            raise ConfigError("checkpoint and oracle are two models: give one of them")
        return [None]
    if isinstance(checkpoint, list) and not several:
        raise ConfigError("checkpoint must be one run, got a list: use -m checkpoint=a,b for a run each")
    paths = checkpoint if isinstance(checkpoint, list) else [checkpoint]
    if not paths or not all(isinstance(path, str) for path in paths):
        raise ConfigError(
            "checkpoint is missing: give checkpoint=outputs/train/<name>/v001, the folder of a training run, or "
            "oracle=<name>, see --help"
        )
    for path in paths:
        if "," in path and not Path(path).exists():
            one_run = f"checkpoint=[{path}] for one run, or " if several else ""
            raise ConfigError(f"checkpoint: there is no {path}; use {one_run}-m checkpoint={path} for a run each")
    return paths


def build_oracle(config: Mapping[str, Any], device: torch.device) -> tuple[OracleSource, Dataset | None]:
    """The oracle of a configuration, and the data that it is made of, if any.

    Raises:
        ConfigError: an oracle, schedule and data that do not fit each other.
    """
    node = config["oracle"]
    arguments = {"schedule": build(config["schedule"], "schedule")}
    data = None
    if "dataset" in config:
        if not accepts_argument(node, "data"):
            raise ConfigError(f"dataset has no effect with {node['_target_']}: remove it, or use oracle=empirical")
        data = build(config["dataset"], "dataset")
        arguments |= training_tensors(data)
    oracle = build(node, "oracle", kwargs=arguments)
    if data is not None and node.get("class_names") is None:
        oracle.class_names = data.class_names[: oracle.num_classes]
    nodes = {key: config[key] for key in ("oracle", "schedule", "dataset") if key in config}
    return OracleSource(oracle, nodes, device), data
