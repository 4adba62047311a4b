"""Checkpoints: safetensors with the resolved configuration inside, never pickle.

`<images>.safetensors` holds the objective's tensors twice, under `objective.` as trained and under `ema.` averaged, and
one JSON metadata key. `<images>.optimizer.safetensors` beside it holds what only training needs. The weights are written
last: a checkpoint whose weights are there is complete.

Loading a file from somebody else runs none of their code (`allowlist`), and makes us allocate no more than its tensors do:
the network is first built without memory, and compared with them.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..files import safetensors as archives
from ..files.safetensors import CheckpointError, select_prefix
from ..models.protocols import Denoiser, Energy
from ..nodes.old_names import updated
from ..objectives import Objective
from ..version import __version__
from .allowlist import construct, validate_config, validate_values
from .validation import at_most, check_facts, check_finite, check_model, compare

__all__ = ["CheckpointError", "Loaded", "TrainingState", "find", "load", "load_training_state", "prune", "read", "save",
           "explain_untrained", "check_facts", "validate_config", "validate_values"]  # fmt: skip


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
    try:
        path = Path(path).expanduser()
        if path.is_file():
            return path
        best = path.name == "best" and path.parent.is_dir() and not path.exists()
        path = path.parent if best else path
        if not path.exists():
            raise CheckpointError(
                f"no checkpoint at {path}: give a run folder such as outputs/train/digits/v001 or a file"
            )
        files = list_checkpoints(path / "checkpoints" if (path / "checkpoints").is_dir() else path)
    except (OSError, RuntimeError) as error:  # no permission, no such user, a name that is too long
        raise CheckpointError(f"no checkpoint at {path}: {error}") from error
    if not files:
        raise CheckpointError(f"no checkpoint in {path}: give a run folder that diffguide-train wrote, or a file")
    return find_lowest_loss(files) or files[-1] if best else files[-1]


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first."""
    return sorted(file for file in folder.glob("[0-9]*.safetensors") if file.stem.isdigit() and file.is_file())


def find_lowest_loss(files: Sequence[Path]) -> Path | None:
    """The checkpoint with the lowest held-out loss, the newest of equals; None where none has one."""
    losses: dict[Path, float] = {}
    for file in files:
        loss = archives.read_metadata(file).get("validation_loss")
        if isinstance(loss, int | float):
            losses[file] = loss
    return min(reversed(losses), key=losses.__getitem__) if losses else None


def prune(folder: Path, keep: int) -> None:
    """Removes all but the newest `keep` checkpoints and the one with the lowest held-out loss, weights first."""
    files = list_checkpoints(folder)
    for file in set(files[:-keep]) - {find_lowest_loss(files)}:
        file.unlink(missing_ok=True)
        file.with_suffix(".optimizer.safetensors").unlink(missing_ok=True)


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
    tensors = {f"sums.{name}": value for name, value in training.sums.items()}
    numbers: dict[str, float] = {}
    tensors |= {f"memory.{name}": value for name, value in objective.memory().items()}
    state = optimizer.state_dict()
    for index, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{index}.{name}"] = value
            else:
                numbers[f"{index}.{name}"] = value
    counts = [len(group["params"]) for group in state["param_groups"]]
    extra = {"state": numbers, "parameters": counts, "precision": training.precision}
    archives.write_sealed(folder / f"{stem}.optimizer.safetensors", tensors, extra)
    tensors = {f"objective.{name}": value for name, value in objective.state_dict().items()}
    tensors |= {f"ema.{name}": value for name, value in ema.state_dict().items()}
    path = folder / f"{stem}.safetensors"
    archives.write_sealed(path, tensors, {"version": __version__, "config": config, **training.facts})
    return path


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a checkpoint, or of the optimiser's file beside one, as checked as it can be unbuilt.

    Raises:
        CheckpointError: not readable, not ours, changed since it was written, or saying what no run of ours says.
    """
    tensors, metadata = archives.read_sealed(path)
    try:
        if "config" in metadata:
            check_facts(metadata)
            metadata["config"] = updated(metadata["config"])
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return tensors, metadata


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
        if "config" not in metadata:
            raise CheckpointError("it holds no configuration; the weights of a checkpoint are in <images>.safetensors")
        if strangers := sorted(name for name in tensors if not name.startswith(("objective.", "ema."))):
            raise CheckpointError(f"it holds {strangers[0]}, which belongs to neither objective nor ema")
        config, held = metadata["config"], select_prefix(tensors, weights)
        with at_most(16 * len(held) + 256, "its configuration describes a far larger network than its tensors are"):
            sketch = assemble(config, trust, "meta")
        compare(held, sketch.state_dict())
        check_model(sketch.model, metadata)
        objective = assemble(config, trust, "cpu")
        objective.load_state_dict(held)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except Exception as error:  # whatever a constructor says to values that no run of ours wrote
        raise CheckpointError(f"{path} does not fit this diffguide: {error}") from error
    facts = {name: value for name, value in metadata.items() if name != "config"}
    model = objective.model.eval().requires_grad_(False).to(device)
    if isinstance(model, Denoiser | Energy):
        model.shape, model.class_names = facts["shape"], facts["class_names"]  # guidance reads them there
    return Loaded(model, config, facts)


def explain_untrained(loaded: Loaded) -> str | None:
    """Why the samples and figures of a model mean nothing yet, in a sentence; None where they may mean something.

    A network that has not ended its warm-up has hardly left its random start.
    """
    training = loaded.config.get("training")
    warmup = training.get("warmup_images", 0) if isinstance(training, dict) else 0
    images = loaded.facts["images"]
    if images and not (type(warmup) is int and images < warmup):
        return None
    seen = f"saw {images} images, fewer than the {warmup} of its warm-up" if images else "saw no image: it is untrained"
    return f"this checkpoint {seen}; what it makes is noise, and figures of it mean nothing"


def assemble(config: dict[str, Any], trust: Sequence[str], device: str) -> Objective:
    """The objective that a saved configuration describes; on `meta` its network takes no memory."""
    schedule = construct(config["schedule"], "schedule", trust)  # small, and needs its numbers
    backbone = construct(config["backbone"], "backbone", trust, device=device)
    return construct(config["objective"], "objective", trust, backbone, schedule, device=device)


def load_training_state(
    path: Path, objective: Objective, ema: Objective, optimizer: torch.optim.Optimizer
) -> TrainingState:
    """Fills objective, average and optimiser from a checkpoint and returns the rest; for resuming.

    The optimiser's settings stay today's: only its memory comes from the file.

    Raises:
        CheckpointError: files that cannot be read, or do not belong to these objects; nothing is filled then.
    """
    tensors, metadata = read(path)
    beside = path.with_suffix(".optimizer.safetensors")
    memory, saved = read(beside)
    try:
        for name, module in {"objective": objective, "ema": ema}.items():
            compare(select_prefix(tensors, name), module.state_dict())
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    try:
        sums, precision = select_prefix(memory, "sums"), read_numbers(saved, "precision")
        if sums and ("count" not in sums or any(value.ndim or not value.isfinite() for value in sums.values())):
            raise CheckpointError("its sums must be finite numbers, count among them")
        of_objective = select_prefix(memory, "memory")
        memory = {name: value for name, value in memory.items() if not name.startswith(("sums.", "memory."))}
        state = optimizer_state(memory, saved, optimizer)
        objective.remember(of_objective, metadata["shape"])
    except ValueError as error:
        raise CheckpointError(f"{beside}: {error}") from error
    for name, module in {"objective": objective, "ema": ema}.items():
        module.load_state_dict(select_prefix(tensors, name))
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return TrainingState(metadata, sums, precision)


def read_numbers(saved: dict[str, Any], name: str) -> dict[str, Any]:
    """A mapping to numbers in the metadata of a file; raises CheckpointError where it is something else."""
    value = saved.get(name)
    if not isinstance(value, dict) or not all(isinstance(part, int | float | None) for part in value.values()):
        raise CheckpointError(f"its {name} must be a mapping of numbers")
    return value


def optimizer_state(memory: dict[str, Tensor], saved: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict:
    """The memory of each parameter, {index: {name: value}}, of a file that fits an optimiser.

    Raises:
        CheckpointError: other parameters, or memory that does not fit them.
    """
    parameters = [value for group in optimizer.param_groups for value in group["params"]]
    counts = [len(group["params"]) for group in optimizer.param_groups]
    if saved.get("parameters") != counts:
        raise CheckpointError(f"it is of an optimiser of {saved.get('parameters')} parameters, this one has {counts}")
    state: dict[int, dict] = {}
    for key, value in (read_numbers(saved, "state") | memory).items():
        match = re.fullmatch(r"(\d{1,9})\.(\w+)", key, re.ASCII)
        if not match or int(match[1]) >= len(parameters):
            raise CheckpointError(f"{key!r} is no memory of one of {len(parameters)} parameters")
        sides = parameters[int(match[1])].shape
        if isinstance(value, Tensor) and value.ndim:  # one value per parameter, per row, per column or in all
            if value.ndim != len(sides) or any(side not in (1, own) for side, own in zip(value.shape, sides)):
                raise CheckpointError(f"{key} has the shape {list(value.shape)}, its parameter has {list(sides)}")
        if isinstance(value, Tensor):
            check_finite(value, key)
        state.setdefault(int(match[1]), {})[match[2]] = value
    return state
