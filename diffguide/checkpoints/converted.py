"""Checkpoints of models that another program trained."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files import safetensors as archives
from ..objectives import Objective
from ..version import __version__

__all__ = ["save_converted"]


def save_converted(
    folder: Path, objective: Objective, config: dict[str, Any], facts: Mapping[str, Any], origin: Mapping[str, Any]
) -> Path:
    """Writes a model that another program trained as the checkpoint of 0 images, without a state of training.

    Arguments:
        folder: `checkpoints` of a run folder.
        objective: built from the configuration, with the weights of the model.
        config: with name, dataset, backbone, schedule and objective.
        facts: class_names and shape.
        origin: where it comes from, plain values, such as family, file and sha256.

    Raises:
        WriteError: the disk is full, the folder is read-only or gone, ...
    """
    tensors = {f"ema.{name}": value for name, value in objective.state_dict().items()}
    path = folder / f"{0:010d}.safetensors"
    known = {"version": __version__, "config": config, "images": 0, **facts, "origin": dict(origin)}
    archives.write_sealed(path, tensors, known)
    return path
