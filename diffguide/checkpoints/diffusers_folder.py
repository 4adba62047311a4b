"""Folders of diffusers as checkpoints: a pipeline with its scheduler, or a network beside a scheduler_config.json.

Only JSON and safetensors files are read. The class of the network must be one of `backbones.diffusers_classes.NETWORKS`; no
code of the folder is run.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..backbones.diffusers_classes import NETWORKS
from ..conditions.frozen_text import FrozenText
from ..files.safetensors import CheckpointError
from ..files.weights import Weights, find_variant, read_json, weight_files
from .allowlist import MAX_SIZE, construct
from .assembly import assemble, check_on_meta
from .diffusers_schedulers import Law, translate_scheduler
from .streaming import allocate, allocate_later
from .text_pipelines import count_downsampling, describe_text
from .validation import check_facts, check_finite_tensor

__all__ = ["DiffusersFolder", "find_weights", "is_weights", "load_folder", "open_folder"]

INDEX, NETWORK_CONFIG, SCHEDULER = "model_index.json", "config.json", "scheduler_config.json"
STEM = "diffusion_pytorch_model"
PLACES = ("unet", "transformer")  # of the network in a pipeline
NULL_TOKENS, CONDITIONING = "model.backbone.null", "model.backbone.conditioning."
PREFIX = "model.backbone.network."  # of the network in an objective
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # names before 2023
LABEL_DROPOUT = 0.1  # of a network with a null condition, whose training is not known
DIT_ARGUMENTS = (
    "activation_fn", "attention_bias", "attention_head_dim", "dropout", "in_channels", "norm_elementwise_affine",
    "norm_eps", "norm_num_groups", "norm_type", "num_attention_heads", "num_embeds_ada_norm", "num_layers",
    "out_channels", "patch_size", "sample_size", "upcast_attention",
)  # fmt: skip


class DiffusersFolder(NamedTuple):
    """A model of diffusers.

    Attributes:
        metadata: as in a checkpoint of ours: config, class_names, shape, images, origin.
        weights: of the network.
        names: of its tensors in the objective -> in the files.
        added: tensors of the objective that the files do not have, on the device meta.
    """

    metadata: dict[str, Any]
    weights: Weights
    names: dict[str, str]
    added: dict[str, Tensor]


def find_weights(folder: Path) -> Path | None:
    """The file of the weights, or of their index, in a folder of diffusers; None for any other folder.

    Raises:
        CheckpointError: a folder of diffusers without a network, or without safetensors.
    """
    if (folder / INDEX).is_file():
        place = network_place(folder)
    elif (folder / NETWORK_CONFIG).is_file() and "_class_name" in read_json(folder / NETWORK_CONFIG):
        place = folder
    else:
        return None
    if (found := find_variant(place, STEM)) is not None:
        return found
    raise CheckpointError(
        f"{place} has no {STEM}.safetensors: only safetensors files are read; save the model again with "
        "save_pretrained(folder, safe_serialization=True)"
    )


def network_place(folder: Path) -> Path:
    """The folder of the network in a pipeline."""
    index = read_json(folder / INDEX)
    for name in PLACES:
        if isinstance(index.get(name), list) and (folder / name / NETWORK_CONFIG).is_file():
            return folder / name
    raise CheckpointError(
        f"{folder} has no network: neither {' nor '.join(PLACES)} of its {INDEX} has a {NETWORK_CONFIG}"
    )


def is_weights(file: Path) -> bool:
    """Whether a file holds weights of diffusers, or is their index."""
    return file.name.startswith(STEM) and (file.parent / NETWORK_CONFIG).is_file()


def open_folder(file: Path, null_class: int | None = None) -> DiffusersFolder | None:
    """The model of a weights file of diffusers; None for any other file.

    Arguments:
        file: from `find_weights`.
        null_class: row of the class table that means no class, where the network's class does not say.

    Raises:
        CheckpointError: a network or scheduler without counterpart, damaged files, or null_class with another file; names
            what and where.
    """
    if not is_weights(file):
        if null_class is not None:
            raise CheckpointError(f"null_class has no effect on a checkpoint of diffguide, which knows its own: {file}")
        return None
    place = file.parent
    network = read_json(place / NETWORK_CONFIG)
    pipeline = place.parent if (place.parent / INDEX).is_file() else place
    found = [folder / SCHEDULER for folder in (pipeline / "scheduler", place) if (folder / SCHEDULER).is_file()]
    try:
        if not found:
            raise CheckpointError(f"it has no {SCHEDULER}, the law of the training: put one beside {NETWORK_CONFIG}")
        name, arguments = network_class(network)
        scheduler = read_json(found[0], infinite=True)  # DPM-Solver's lambda_min_clipped is -Infinity
        law = translate_scheduler(scheduler, whole=network.get("time_embedding_type") == "learned")
        metadata = describe(pipeline, name, arguments, law, null_class, describe_text(pipeline, name, arguments))
    except CheckpointError as error:
        raise CheckpointError(f"{pipeline}: {error}") from error
    weights = Weights(weight_files(file))
    metadata["origin"] = {"family": f"diffusers {name}", "folder": pipeline.name, "settings": law.settings}
    names = {PREFIX + current_attention(key): key for key in weights.specs}
    return DiffusersFolder(metadata, weights, names, added_tensors(metadata["config"]["backbone"]))


def added_tensors(backbone: Mapping[str, Any]) -> dict[str, Tensor]:
    """The null condition of a network that attends to tokens: that of its conditioning, or a learned sequence."""
    length = NETWORKS[backbone["network"]].tokens
    if backbone["conditioning"] is not None:
        conditioning = construct(backbone["conditioning"], "condition", (), device="meta")
        return {f"{CONDITIONING}{name}": value for name, value in conditioning.state_dict().items()}
    if not length:
        return {}
    size = backbone["condition_tokens"] * backbone["arguments"].get(length, 0)
    return {NULL_TOKENS: torch.empty(size, device="meta")}


def load_folder(folder: DiffusersFolder) -> nn.Module:
    """The model of a folder on the CPU, in the memory of its weights and of a few tensors.

    Raises:
        CheckpointError: weights that are not those of the network.
    """
    check_facts(folder.metadata)
    config, names = folder.metadata["config"], folder.names
    specs = {name: folder.weights.specs[key] for name, key in names.items()}
    check_on_meta(specs | folder.added, folder.metadata, ())
    with allocate_later():
        objective = assemble(config, (), "cpu")
    allocate(objective)
    held, own = objective.state_dict(), {key: name for name, key in names.items()}
    with torch.no_grad():
        for key, value in folder.weights.read(list(own)):
            check_finite_tensor(value, key)
            held[own[key]].copy_(value)
        if NULL_TOKENS in folder.added:
            held[NULL_TOKENS].zero_()
    for part in objective.model.modules():
        if isinstance(part, FrozenText):
            part.encode_empty()
    return objective.model


def network_class(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name of the class of a network, and the arguments of its constructor."""
    name = config.get("_class_name")
    arguments = {key: value for key, value in config.items() if not key.startswith("_")}
    if name == "Transformer2DModel" and config.get("norm_type") == "ada_norm_zero":  # as DiT was saved before 2024
        name = "DiTTransformer2DModel"
        arguments = {key: value for key, value in arguments.items() if key in DIT_ARGUMENTS}
    if not isinstance(name, str) or name not in NETWORKS:
        raise CheckpointError(f"its network {name!r} is not supported: {', '.join(NETWORKS)} are")
    if arguments.get("time_embedding_type") == "fourier":
        raise CheckpointError(
            "its time_embedding_type 'fourier' (score_sde on unscaled images) has no counterpart here"
        )
    return name, arguments


def current_attention(name: str) -> str:
    """The name of a tensor in the current diffusers, which renamed the layers of attention."""
    head, _, rest = name.rpartition(".")
    parent, _, layer = head.rpartition(".")
    if layer in OLD_ATTENTION and ".attentions." in f".{parent}.":
        return f"{parent}.{OLD_ATTENTION[layer]}.{rest}"
    return name


def describe(
    folder: Path,
    name: str,
    arguments: dict[str, Any],
    law: Law,
    null_class: int | None,
    text: dict[str, Any] | None,
) -> dict[str, Any]:
    """The metadata of a checkpoint for a network; `text` is the node of its conditioning."""
    channels: Any = arguments.get("in_channels")
    size: Any = arguments.get("sample_size")
    shape = [channels, *(size if isinstance(size, list) else [size, size])]
    if len(shape) != 3 or not all(isinstance(part, int) and not isinstance(part, bool) and part > 0 for part in shape):
        raise CheckpointError(f"its {NETWORK_CONFIG} must state in_channels and sample_size, got {channels} and {size}")
    classes, null_class = count_classes(name, arguments, null_class)
    outputs = arguments.get("out_channels") or channels
    if outputs not in (channels, 2 * channels):
        raise CheckpointError(
            f"its out_channels must be {channels}, or {2 * channels} with a learned variance, got {outputs}"
        )
    side = shape[1] if shape[1] == shape[2] else None
    backbone = {
        "_target_": "diffguide.backbones.diffusers_network.DiffusersNetwork",
        "in_channels": channels,
        "out_features": None,
        "num_classes": classes,
        "size": side,
        "network": name,
        "arguments": arguments,
        "timesteps": law.timesteps,
        "null_class": null_class,
        "condition_tokens": 0 if text is not None else count_tokens(name),
        "learned_variance": outputs == 2 * channels,
        "double_differentiable": False,
        "checkpointing": False,
        "conditioning": text,
        "downsampling": count_downsampling(folder),
    }
    objective = {
        "_target_": "diffguide.objectives.denoising.Denoising",
        "parameterization": law.parameterization,
        "p_uncond": LABEL_DROPOUT if text is not None or (classes and null_class is not None) else 0.0,
    }
    dataset = {"channels": channels, "size": side, "num_classes": classes}
    config = {"name": folder.resolve().name, "dataset": dataset, "backbone": backbone, "schedule": law.schedule}
    return {
        "config": config | {"objective": objective},
        "images": 0,
        "class_names": class_names(folder, classes, null_class),
        "shape": shape,
    }


def count_classes(name: str, arguments: Mapping[str, Any], null_class: int | None) -> tuple[int, int | None]:
    """(Classes without the null row, the null row or None)."""
    kind = NETWORKS[name]
    rows = arguments.get(kind.rows) if kind.rows else None
    if rows is None:
        if null_class is not None:
            raise CheckpointError(f"null_class={null_class} has no effect: its network has no classes")
        return 0, None
    if not isinstance(rows, int) or isinstance(rows, bool) or not 1 <= rows <= MAX_SIZE:
        raise CheckpointError(f"its {kind.rows} must be a whole number from 1 to 2^20, got {rows!r}")
    total = rows + kind.null_row
    if null_class is None and kind.null_row:
        null_class = rows
    if null_class is not None and not 0 <= null_class < total:
        raise CheckpointError(f"null_class must be a row of its class table, 0 to {total - 1}, got {null_class}")
    return total - (null_class is not None), null_class


def count_tokens(name: str) -> int:
    """The length of the texts of the usual encoder of a network; 0 = it takes no text."""
    usual = {"UNet2DConditionModel": 77, "PixArtTransformer2DModel": 120, "SanaTransformer2DModel": 300}
    return usual.get(name, 256) if NETWORKS[name].tokens else 0


def class_names(folder: Path, count: int, null_class: int | None) -> list[str]:
    """The names of the classes in the index of a pipeline, or their numbers."""
    labels = read_json(folder / INDEX).get("id2label") if (folder / INDEX).is_file() else None
    names: dict[str, None] = {}  # in order, each once
    for index in range(count):
        row = index + (null_class is not None and index >= null_class)
        label = labels.get(str(row)) if isinstance(labels, dict) else None
        names[label if isinstance(label, str) and label not in names else str(index)] = None
    return list(names)
