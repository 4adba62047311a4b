"""Checkpoints: safetensors with the resolved configuration inside, never pickle.

`<images>.safetensors` holds the objective's tensors twice, under `objective.` as trained and under `ema.` averaged, and
one JSON metadata key. `<images>.optimizer.safetensors` beside it holds what only training needs. The weights are written
last: a checkpoint whose weights are there is complete.

Loading a file from somebody else runs none of their code: the configuration may name only classes that diffguide itself
defines, checked on the resolved object, or what the caller trusts by name.
"""

import hashlib
import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import nn

from . import __version__
from .backbones import Backbone
from .datasets import Dataset
from .objectives import Objective
from .objectives.levels import NoiseLevels
from .objectives.weights import Weight
from .parameterizations import Parameterization
from .runs import strict_json, write_atomically
from .schedules import Schedule

__all__ = [
    "CheckpointError",
    "Loaded",
    "TrainingState",
    "find",
    "load",
    "load_training_state",
    "prune",
    "save",
    "sha256",
]

FORMAT = 1
KEY = "diffguide"
ROLES = {
    "backbone": Backbone, "schedule": Schedule, "objective": Objective, "parameterization": Parameterization,
    "weight": Weight, "levels": NoiseLevels, "dataset": Dataset,
}  # fmt: skip


class CheckpointError(ValueError):
    """A file that is missing, damaged, foreign or not to be trusted; the message names it and what would be right."""


class TrainingState(NamedTuple):
    """What training adds to its tensors: facts (images, validation_loss, class_names, shape) for every reader of the file;
    sums behind the next line of metrics.jsonl; the state of a precision's gradient scaler, {} where there is none."""

    facts: dict[str, Any]
    sums: dict[str, torch.Tensor]
    precision: dict[str, Any]


class Loaded(NamedTuple):
    """model: the trained denoiser; config: the run's resolved configuration; facts: class_names, shape, images."""

    model: nn.Module
    config: dict[str, Any]
    facts: dict[str, Any]


def find(path: str | Path) -> Path:
    """The checkpoint file that a path means: itself, the newest one of a run folder, or <run folder>/best.

    The best is the one with the lowest held-out loss of those that are kept.

    Raises:
        CheckpointError: nothing there.
    """
    path = Path(path).expanduser()
    if path.is_file():
        return path
    best = path.name == "best" and path.parent.is_dir() and not path.exists()
    path = path.parent if best else path
    if not path.exists():
        raise CheckpointError(f"no checkpoint at {path}: give a run folder such as outputs/train/digits/v001 or a file")
    files = kept(path / "checkpoints" if (path / "checkpoints").is_dir() else path)
    if not files:
        raise CheckpointError(f"no checkpoint in {path}: give a run folder that diffguide-train wrote, or a file")
    return lowest_loss(files) or files[-1] if best else files[-1]


def kept(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first."""
    return sorted(file for file in folder.glob("[0-9]*.safetensors") if file.stem.isdigit())


def lowest_loss(files: Sequence[Path]) -> Path | None:
    """The checkpoint with the lowest held-out loss, the newest of equals; None where none has one."""
    losses = {file: read_metadata(file).get("validation_loss") for file in files}
    losses = {file: loss for file, loss in losses.items() if isinstance(loss, int | float)}
    return min(reversed(losses), key=losses.__getitem__) if losses else None


def prune(folder: Path, keep: int) -> None:
    """Removes all but the newest `keep` checkpoints and the one with the lowest held-out loss, weights first."""
    files = kept(folder)
    for file in set(files[:-keep]) - {lowest_loss(files)}:
        file.unlink(missing_ok=True)
        file.with_suffix(".optimizer.safetensors").unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """The hash of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save(
    folder: Path, objective: Objective, ema: Objective, optimizer: torch.optim.Optimizer, config: dict,
    training: TrainingState,
) -> Path:  # fmt: skip
    """Writes the checkpoint of `training.facts["images"]` images into a folder; returns the weights' path.

    Arguments:
        objective, ema: as trained, and averaged.
        optimizer: whose state resuming needs.
        config: resolved configuration, plain containers.
        training: what resuming needs beside.

    Raises:
        WriteError: the disk is full, the folder is read-only or gone, ...
    """
    stem = f"{training.facts['images']:010d}"
    tensors, plain = {f"sums.{name}": value for name, value in training.sums.items()}, {}
    state = optimizer.state_dict()
    for index, values in state["state"].items():
        for name, value in values.items():
            target = tensors if isinstance(value, torch.Tensor) else plain
            target[f"{index}.{name}"] = value
    extra = {"format": FORMAT, "state": plain, "param_groups": state["param_groups"], "precision": training.precision}
    _write(folder / f"{stem}.optimizer.safetensors", tensors, extra)
    tensors = {f"objective.{name}": value for name, value in objective.state_dict().items()}
    tensors |= {f"ema.{name}": value for name, value in ema.state_dict().items()}
    path = folder / f"{stem}.safetensors"
    _write(path, tensors, {"format": FORMAT, "version": __version__, "config": config, **training.facts})
    return path


def _write(path: Path, tensors: dict[str, torch.Tensor], metadata: dict) -> None:
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    metadata = {KEY: strict_json(metadata)}

    def write(temporary: Path) -> None:
        try:
            safetensors.torch.save_file(tensors, temporary, metadata)
        except safetensors.SafetensorError as error:  # how it tells of a full disk
            raise OSError(str(error)) from error

    write_atomically(path, write)


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata of one of our files, without its tensors; {} where it cannot be read."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return restore(json.loads((file.metadata() or {})[KEY]))
    except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError):
        return {}


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and metadata of one of our files.

    Raises:
        CheckpointError: not readable, not ours, or of another format version.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = restore(json.loads((file.metadata() or {})[KEY]))
            if metadata["format"] != FORMAT:
                raise CheckpointError(
                    f"{path} has checkpoint format {metadata['format']}, this diffguide reads format {FORMAT}"
                )
            return {name: file.get_tensor(name) for name in file.keys()}, metadata
    except (safetensors.SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is not a checkpoint of diffguide, or is damaged ({error})") from error


def below(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The tensors named `prefix.*`, without the prefix."""
    return {key.removeprefix(f"{prefix}."): value for key, value in tensors.items() if key.startswith(f"{prefix}.")}


def restore(value: Any) -> Any:
    """Undoes `strict_json`: the strings inf and -inf become numbers again."""
    if isinstance(value, dict):
        return {key: part if key == "name" else restore(part) for key, part in value.items()}
    if isinstance(value, list):
        return [restore(part) for part in value]
    return float(value) if value in ("inf", "-inf") else value


def load(
    path: str | Path, weights: str = "ema", device: torch.device | str = "cpu", trust: Sequence[str] = ()
) -> Loaded:
    """The trained model of a checkpoint file or run folder, in evaluation mode, and what the file says about it.

    Arguments:
        path: file, or run folder whose newest checkpoint is taken.
        weights: `ema` (averaged) or `objective` (as trained).
        device: where the model goes.
        trust: dotted names of classes outside diffguide that may be built.

    Raises:
        CheckpointError: a file that is missing, damaged, foreign or names classes that are not trusted.
    """
    if weights not in ("ema", "objective"):
        raise CheckpointError(f"weights must be ema (averaged) or objective (as trained), got {weights}")
    path = find(path)
    tensors, metadata = read(path)
    try:
        config = metadata["config"]
        backbone = construct(config["backbone"], "backbone", trust)
        schedule = construct(config["schedule"], "schedule", trust)
        objective = construct(config["objective"], "objective", trust, backbone, schedule)
        objective.load_state_dict(below(tensors, weights))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = str(error).strip().splitlines()
        raise CheckpointError(f"{path} does not fit this diffguide: {' '.join(reason[:2])}") from error
    facts = {name: value for name, value in metadata.items() if name != "config"}
    return Loaded(objective.model.eval().requires_grad_(False).to(device), config, facts)


def load_training_state(
    path: Path, objective: Objective, ema: Objective, optimizer: torch.optim.Optimizer
) -> TrainingState:
    """Fills objective, average and optimiser from a checkpoint and returns the rest; for resuming."""
    tensors, facts = read(path)
    for name, module in {"objective": objective, "ema": ema}.items():
        module.load_state_dict(below(tensors, name))
    tensors, saved = read(path.with_suffix(".optimizer.safetensors"))
    state: dict[int, dict] = {}
    sums = below(tensors, "sums")
    for key, value in (saved["state"] | tensors).items():
        if key.startswith("sums."):
            continue
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": saved["param_groups"]})
    return TrainingState(facts, sums, saved["precision"])


def construct(node: Any, role: str, trust: Sequence[str], *args: Any) -> Any:
    """The object that a node of a saved configuration describes, if it is one that may be built.

    Raises:
        CheckpointError: a target that is neither diffguide's own class of that role nor trusted.
    """
    if not isinstance(node, dict) or not isinstance(node.get("_target_"), str):
        raise CheckpointError(f"{role} has no _target_")
    target = node["_target_"]
    arguments = {}
    for key, value in node.items():
        if key == "_target_":
            continue
        if not isinstance(key, str) or key.startswith("_"):
            raise CheckpointError(f"{role}.{key} is not an argument")
        if isinstance(value, dict):
            value = construct(value, key, trust)
        if "${" in json.dumps(value, default=lambda _: ""):
            raise CheckpointError(f"{role}.{key} holds an interpolation")
        arguments[key] = value
    module, _, name = target.rpartition(".")
    if not target.startswith("diffguide.") and target not in trust:
        raise CheckpointError(f"{role} names {target}, which is not diffguide's; trust=[{target}] would allow it")
    try:
        resolved = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise CheckpointError(f"{role} names {target}, which does not exist here") from error
    own = (
        isinstance(resolved, type)
        and f"{resolved.__module__}.{resolved.__qualname__}" == target
        and issubclass(resolved, ROLES.get(role, ()))
    )
    if not own and target not in trust:
        raise CheckpointError(f"{role} names {target}, which is not a class of diffguide for a {role}")
    return resolved(*args, **arguments)


def vet(node, role, trust=()):
    """stub"""
