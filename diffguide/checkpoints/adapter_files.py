"""Low-rank adapters in files of the libraries peft and diffusers: read, checked and added to a network, without either library.

A folder of peft has `adapter_model.safetensors` and `adapter_config.json`; one of diffusers' `save_lora_adapter` has
`pytorch_lora_weights.safetensors` with the same settings in its header. Nothing of a folder is run: the settings are plain
values, and no name in them is imported.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch
from torch import Tensor, nn

from ..backbones.lora import adapted_network
from ..files.safetensors import CheckpointError
from ..files.weights import Weights, hash_weights, read_json
from .validation import FLOATS, check_finite_tensor

__all__ = ["CONFIG_FILE", "HEADER_KEY", "PREFIX", "WEIGHTS_FILE", "add_adapter_file", "identify_adapter", "is_adapter"]

WEIGHTS_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"  # of peft
HEADER_FILE, HEADER_KEY = "pytorch_lora_weights.safetensors", "lora_adapter_metadata"  # of diffusers
PREFIX = "base_model.model."  # of names in the files of peft
NAME = re.compile(rf"(?:{re.escape(PREFIX)})?(?P<layer>.+)\.lora_(?P<part>[AB])\.weight")
IGNORED = (  # settings of a training, or repeated by the tensors
    "auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "exclude_modules", "inference_mode", "layers_pattern",
    "layers_to_transform", "lora_dropout", "megatron_core", "peft_version", "qalora_group_size", "r", "rank_pattern",
    "revision", "target_modules", "task_type",
)  # fmt: skip
NEUTRAL: tuple[Any, ...] = (None, False, "none", {}, [])  # of every other setting: it changes nothing
STARTS = (None, True, False, "gaussian")  # other values of init_lora_weights change the weights of the network


class LowRankUpdate(NamedTuple):
    """The change of a layer: factor B A.

    Attributes:
        layer: linear or convolutional.
        names: of A and B in the file.
        factor: alpha / rank, or alpha / sqrt(rank) of rsLoRA (arXiv 2312.03732).
    """

    layer: nn.Linear | nn.Conv2d
    names: tuple[str, str]
    factor: float

    @torch.no_grad()
    def add(self, held: Mapping[str, Tensor], scale: float) -> None:
        weight, (a, b) = self.layer.weight, (held[name].float().flatten(1) for name in self.names)
        weight.add_((scale * self.factor * (b @ a)).reshape(weight.shape).to(weight.dtype))


def add_adapter_file(model: nn.Module, folder: Path, scale: float | None) -> dict[str, Any]:
    """Adds scale times the adapter of a folder to the weights of the network of a model on the CPU, in place.

    Returns:
        what identifies it, for a configuration.

    Raises:
        CheckpointError: missing or damaged files, settings that are not those of plain LoRA, or tensors that do not fit.
    """
    if scale is None:
        raise CheckpointError("an adapter of another file cannot stay apart: the folder has it already")
    backbone = getattr(model, "backbone", None)
    if backbone is None:
        raise CheckpointError(f"adapter={folder} needs a network, and this checkpoint holds a {type(model).__name__}")
    file = find_adapter(folder)
    try:
        weights = Weights([file])
        updates = plan_updates(adapted_network(backbone), weights, read_settings(file))
        pairs = [update.names for update in updates]
        held = {name: value.clone() for name, value in weights.read([name for pair in pairs for name in pair])}
        for name, value in held.items():
            check_finite_tensor(value, name)
    except CheckpointError as error:
        raise CheckpointError(f"adapter={folder}: {error}") from error
    for update in updates:
        update.add(held, scale)
    return {"folder": folder.resolve().name, "sha256": hash_weights(file), "scale": scale}


def identify_adapter(folder: str | Path | None, scale: float) -> dict[str, Any]:
    """Entries of a manifest that identify an adapter and its strength; {} for a model as it was trained.

    Raises:
        CheckpointError: a folder without an adapter.
    """
    if folder is None:
        return {} if scale == 1 else {"adapter_scale": scale}
    folder = Path(folder).expanduser()
    return {"adapter": str(folder), "adapter_sha256": hash_weights(find_adapter(folder)), "adapter_scale": scale}


def is_adapter(folder: str | Path) -> bool:
    """Whether a folder has the matrices of an adapter."""
    try:
        return bool(adapter_files(Path(folder).expanduser()))
    except OSError:
        return False


def adapter_files(folder: Path) -> list[Path]:
    return [folder / name for name in (WEIGHTS_FILE, HEADER_FILE) if (folder / name).is_file()]


def find_adapter(folder: Path) -> Path:
    """The file of an adapter's matrices in a folder; raises CheckpointError where there is none."""
    try:
        found = adapter_files(folder)
    except OSError as error:  # too long a name, no permission
        raise CheckpointError(f"adapter={folder} cannot be read: {error}") from error
    if not found:
        raise CheckpointError(
            f"adapter={folder} has neither {WEIGHTS_FILE} of peft nor {HEADER_FILE} of diffusers, and only they are read"
        )
    return found[0]


def read_settings(file: Path) -> dict[str, Any]:
    """The settings of an adapter, beside its file or in its header; raises CheckpointError for other than plain LoRA."""
    if file.name == WEIGHTS_FILE:
        settings = read_json(file.with_name(CONFIG_FILE))
    else:
        with safetensors.safe_open(file, framework="pt") as opened:
            text = (opened.metadata() or {}).get(HEADER_KEY)
        try:
            settings = json.loads(text or "")
        except (ValueError, RecursionError) as error:
            raise CheckpointError(
                f"the header of {file.name} has no valid {HEADER_KEY}, which says lora_alpha"
            ) from error
        if not isinstance(settings, dict):
            raise CheckpointError(f"{HEADER_KEY} in the header of {file.name} is no mapping")
    settings = dict(settings)
    if settings.pop("peft_type", "LORA") != "LORA" or settings.pop("init_lora_weights", True) not in STARTS:
        raise CheckpointError(
            "only plain LoRA is read: peft_type must be LORA, and init_lora_weights true, false or gaussian"
        )
    alpha, root = settings.pop("lora_alpha", None), settings.pop("use_rslora", False)
    if type(alpha) not in (int, float) or not math.isfinite(alpha):
        raise CheckpointError(f"lora_alpha must be a finite number, got {alpha!r}")
    if not isinstance(root, bool):
        raise CheckpointError(f"use_rslora must be true or false, got {root!r}")
    for name, value in settings.items():
        if name not in IGNORED and value not in NEUTRAL:
            raise CheckpointError(f"only plain LoRA is read: {name} must be null or false, got {value!r}")
    return {"alpha": float(alpha), "root": root}


def plan_updates(network: nn.Module, weights: Weights, settings: Mapping[str, Any]) -> list[LowRankUpdate]:
    """The changes of the layers of a network; raises CheckpointError for tensors that do not fit them."""
    pairs: dict[str, dict[str, str]] = {}
    for name in weights.specs:
        match = NAME.fullmatch(name)
        if match is None:
            raise CheckpointError(
                f"it has {name}, and an adapter has <layer>.lora_A.weight and <layer>.lora_B.weight only"
            )
        if match["part"] in pairs.setdefault(match["layer"], {}):
            raise CheckpointError(f"it has {match['layer']}.lora_{match['part']}.weight twice")
        pairs[match["layer"]][match["part"]] = name
    if not pairs:
        raise CheckpointError("it has no matrices")
    layers, updates = dict(network.named_modules()), []
    for name, pair in pairs.items():
        if pair.keys() != {"A", "B"}:
            raise CheckpointError(f"it has one of the two matrices of {name} only")
        layer = layers.get(name)
        if not isinstance(layer, nn.Linear | nn.Conv2d) or (isinstance(layer, nn.Conv2d) and layer.groups > 1):
            raise CheckpointError(
                f"it changes {name}, and {type(network).__name__} has no linear or convolutional layer of this name"
            )
        names = (pair["A"], pair["B"])
        a, b = (weights.specs[each] for each in names)
        rank, (outputs, *rest) = (len(a) if a.ndim else 0), layer.weight.shape
        ones = [1] * (layer.weight.ndim - 2)
        if rank < 1 or list(a.shape) != [rank, *rest] or list(b.shape) != [outputs, rank, *ones]:
            raise CheckpointError(
                f"the matrices of {name} have the shapes {list(a.shape)} and {list(b.shape)}, and its weight has "
                f"{list(layer.weight.shape)}"
            )
        if a.dtype not in FLOATS or b.dtype not in FLOATS:
            raise CheckpointError(f"the matrices of {name} are of type {a.dtype} and {b.dtype}, and must be floating")
        factor = settings["alpha"] / (math.sqrt(rank) if settings["root"] else rank)
        updates.append(LowRankUpdate(layer, names, factor))
    return updates
