"""Checkpoints: safetensors with the resolved configuration inside, never pickle.

`<images>.safetensors` has the tensors of the objective twice, under `objective.` as trained and under `ema.` averaged, and
one JSON text as metadata. `<images>.optimizer.safetensors` beside it has what only training needs. The weights are written
last, so a checkpoint with weights is complete.

Loading a file from somebody else runs none of their code (`allowlist`), and allocates no more memory than its tensors need:
the network is first built on the device `meta` and compared with them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..files import safetensors as archives
from ..files.hub import download_pipeline
from ..files.safetensors import CheckpointError, select_prefix
from ..models.protocols import Denoiser, Energy
from ..nodes.old_names import update_saved_config
from ..objectives import Objective
from ..runtime.put_off import use_optimizer
from ..version import __version__
from .adapter_files import add_adapter_file
from .adapters import check_scale, merge_adapter
from .assembly import assemble, check_on_meta
from .diffusers_folder import find_weights, load_folder, open_folder
from .optimizer_state import optimizer_state, read_numbers
from .validation import check_facts, check_finite, compare

__all__ = [
    "CheckpointError",
    "Loaded",
    "TrainingState",
    "find",
    "load",
    "load_training_state",
    "prune",
    "read",
    "save",
]


class TrainingState(NamedTuple):
    """What resuming needs besides the tensors.

    Arguments:
        facts: images, validation_loss, class_names, shape, ...; every reader of the file gets them.
        sums: of the next line of metrics.jsonl.
        precision: state of the gradient scaler, {} where there is none.
    """

    facts: dict[str, Any]
    sums: dict[str, torch.Tensor]
    precision: dict[str, Any]


class Loaded(NamedTuple):
    """A loaded checkpoint.

    Arguments:
        model: trained, in evaluation mode.
        config: of the run, resolved.
        facts: class_names, shape, images, ...
    """

    model: nn.Module
    config: dict[str, Any]
    facts: dict[str, Any]


def find(path: str | Path) -> Path:
    """The checkpoint file of a path: the file itself, the newest one of a run folder, of <run folder>/best the one with the
    lowest held-out loss, or of a folder of diffusers its weights. The name of a model on the hub is downloaded.

    Raises:
        CheckpointError: there is none.
    """
    try:
        path = Path(path).expanduser()
        if path.is_file():
            return path
        best = path.name == "best" and path.parent.is_dir() and not path.exists()
        path = path.parent if best else path
        if not path.exists():
            path = download_pipeline(path) or path
        if not path.exists():
            raise CheckpointError(
                f"no checkpoint at {path}: give a run folder such as outputs/train/digits/v001, a folder of diffusers or a file"
            )
        if (weights := find_weights(path)) is not None:
            return weights
        files = list_checkpoints(path / "checkpoints" if (path / "checkpoints").is_dir() else path)
    except (OSError, RuntimeError) as error:  # no permission, unknown user, too long a name
        raise CheckpointError(f"no checkpoint at {path}: {error}") from error
    if not files:
        raise CheckpointError(
            f"no checkpoint in {path}: give a run folder that diffguide-train wrote, a folder of diffusers, or a file"
        )
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
    folder: Path,
    objective: Objective,
    ema: Objective,
    optimizer: torch.optim.Optimizer,
    config: dict,
    training: TrainingState,
) -> Path:
    """Writes the checkpoint of `training.facts["images"]` images into a folder; returns the weights' path.

    Arguments:
        objective, ema: as trained, and averaged.
        optimizer: whose state resuming needs.
        config: resolved configuration, plain containers.
        training: what resuming needs besides.

    Raises:
        WriteError: the disk is full, the folder is read-only or gone, ...
    """
    stem = f"{training.facts['images']:010d}"
    tensors = {f"sums.{name}": value for name, value in training.sums.items()}
    numbers: dict[str, float] = {}
    tensors |= {f"memory.{name}": value for name, value in objective.memory().items()}
    with use_optimizer(optimizer):
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
    """Tensors and metadata of a checkpoint, or of its optimiser file, validated without building the network.

    Raises:
        CheckpointError: a file that is unreadable, foreign, changed since it was written, or has invalid facts.
    """
    tensors, metadata = archives.read_sealed(path)
    try:
        if "config" in metadata:
            check_facts(metadata)
            metadata["config"] = update_saved_config(metadata["config"])
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return tensors, metadata


def load(
    path: str | Path,
    weights: str = "ema",
    device: torch.device | str = "cpu",
    trust: Sequence[str] = (),
    null_class: int | None = None,
    adapter: str | Path | None = None,
    adapter_scale: float | None = 1.0,
) -> Loaded:
    """The trained model of a checkpoint, in evaluation mode, with its configuration and facts.

    Arguments:
        path: file, run folder (its newest checkpoint), or folder of diffusers.
        weights: `ema` (averaged) or `objective` (as trained).
        device: of the model.
        trust: dotted names of classes outside diffguide that may be built.
        null_class: of a folder of diffusers whose network does not say it: the row of its class table for no class.
        adapter: folder of low-rank matrices, written by peft, by diffusers or by `to=lora`, which are added to the weights.
        adapter_scale: factor of these matrices, or without `adapter` of those that the run trained: 0 = none, 1 = as trained;
            None = the matrices of the run stay apart, in a `LoRA`.

    Raises:
        CheckpointError: a file that is missing, damaged or foreign, or names classes that are not trusted; an adapter that
            does not fit the network, or a scale without an adapter.
    """
    if weights not in ("ema", "objective"):
        raise CheckpointError(f"weights must be ema (averaged) or objective (as trained), got {weights}")
    check_scale(adapter_scale)
    path = find(path)
    foreign = open_folder(path, null_class)
    try:
        if foreign is not None:
            config, facts, model = foreign.metadata["config"], foreign.metadata, load_folder(foreign)
        else:
            config, facts, model = load_own(path, weights, trust, 1.0 if adapter is not None else adapter_scale)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except Exception as error:  # a constructor may raise anything for invalid values
        raise CheckpointError(f"{path} does not fit this diffguide: {error}") from error
    if adapter is not None:
        config = config | {"adapter": add_adapter_file(model, Path(adapter).expanduser(), adapter_scale)}
    elif adapter_scale not in (None, 1.0) and "adapter" not in config:
        raise CheckpointError(
            f"adapter_scale={adapter_scale} has no effect: {path} has no adapter, and adapter= names none"
        )
    facts = {name: value for name, value in facts.items() if name != "config"}
    model = model.eval().requires_grad_(False).to(device)
    if isinstance(model, Denoiser | Energy):
        model.shape, model.class_names = facts["shape"], facts["class_names"]  # guidance reads them
    return Loaded(model, config, facts)


def load_own(
    path: Path, weights: str, trust: Sequence[str], adapter_scale: float | None
) -> tuple[dict[str, Any], dict[str, Any], nn.Module]:
    """(Configuration, facts, model on the CPU) of a checkpoint of diffguide."""
    tensors, metadata = read(path)
    if "config" not in metadata:
        raise CheckpointError("it has no configuration; the weights of a checkpoint are in <images>.safetensors")
    if unknown := sorted(name for name in tensors if not name.startswith(("objective.", "ema."))):
        raise CheckpointError(f"it has {unknown[0]}, which belongs to neither objective nor ema")
    held = select_prefix(tensors, "ema" if metadata.get("origin") else weights)  # converted: one set of weights
    check_on_meta(held, metadata, trust)
    check_finite(held)
    objective = assemble(metadata["config"], trust, "cpu")
    objective.load_state_dict(held)
    return merge_adapter(metadata["config"], objective.model, adapter_scale), metadata, objective.model


def load_training_state(
    path: Path, objective: Objective, ema: Objective, optimizer: torch.optim.Optimizer
) -> TrainingState:
    """Loads objective, average and optimiser from a checkpoint, in place, and returns the rest.

    Only the state of the optimiser comes from the file, not its settings.

    Raises:
        CheckpointError: files that cannot be read, or do not fit these objects, which are then unchanged.
    """
    tensors, metadata = read(path)
    optimizer_file = path.with_suffix(".optimizer.safetensors")
    memory, saved = read(optimizer_file)
    try:
        for name, module in {"objective": objective, "ema": ema}.items():
            held = select_prefix(tensors, name)
            compare(held, module.state_dict())
            check_finite(held)
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
        raise CheckpointError(f"{optimizer_file}: {error}") from error
    for name, module in {"objective": objective, "ema": ema}.items():
        module.load_state_dict(select_prefix(tensors, name))
    with use_optimizer(optimizer):
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return TrainingState(metadata, sums, precision)
