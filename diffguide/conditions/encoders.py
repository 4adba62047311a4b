"""Frozen text encoders on the disk: where they are, their hash, and their weights, read from safetensors.

Only configurations, safetensors files and tokenizers are read, and only the classes in `clip_and_t5` are built, from the
numbers that they need: no pickle and no code of a folder is run.
"""

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..files.hub import download
from ..files.run_folders import hash_file
from ..files.safetensors import CheckpointError
from ..files.weights import Weights, find_variant, hash_weights, read_json, weight_files

__all__ = ["Encoding", "TextEncoder"]

CONFIG, PIPELINE_PLACE = "config.json", "text_encoder"
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")
HUB_FILES = ["*.json", "*merges.txt", "model*.safetensors", "text_encoder*/*.safetensors"]
MAX_NUMBER = 2**20  # of layers, features, tokens
AT_ONCE = 32  # texts


class Encoding(NamedTuple):
    """An encoded text: states [L, D], a vector per token; pooled [P], one for the whole text. Both float32."""

    states: Tensor
    pooled: Tensor


class TextEncoder(ABC):
    """A text encoder on the disk, which is opened when it is needed. Copies share it.

    Arguments:
        path: its folder, a pipeline of diffusers that has one in text_encoder/, or the name of one on the hub.
        length: tokens of a text at most.

    Attributes:
        kind: its option of the group condition.
        numbers: of its configuration, that its network needs.
    """

    kind: str
    model_types: tuple[str, ...]
    numbers: tuple[str, ...]

    def __init__(self, path: str, length: int):
        self.path, self.length = path, length
        self.network: Any = None

    def __deepcopy__(self, memo: Any) -> "TextEncoder":
        return self

    @cached_property
    def place(self) -> Path:
        """Its folder.

        Raises:
            CheckpointError: there is none, and no such name on the hub.
        """
        folder = Path(self.path).expanduser()
        folder = folder if folder.exists() else download(Path(self.path), HUB_FILES) or folder
        inner = folder / PIPELINE_PLACE
        place = inner if (inner / CONFIG).is_file() else folder
        if not (place / CONFIG).is_file():
            raise CheckpointError(
                f"there is no text encoder at {self.path}: give its folder with {CONFIG}, its weights and its tokenizer, or "
                "its name on the hub"
            )
        return place

    @cached_property
    def tokenizer_place(self) -> Path:
        """The folder of its tokenizer: its own, or the one beside it in a pipeline."""
        beside = self.place.parent / self.place.name.replace("text_encoder", "tokenizer")
        for folder in (beside, self.place):
            if any((folder / name).is_file() for name in TOKENIZER_FILES[:2]):
                return folder
        raise CheckpointError(f"{self.place} has no tokenizer: neither tokenizer.json nor vocab.json")

    @cached_property
    def weights(self) -> Path:
        """The file of its weights, or of their index."""
        found = find_variant(self.place, "model")
        if found is None:
            raise CheckpointError(f"{self.place} has no model.safetensors: only safetensors files are read")
        return found

    @cached_property
    def sha256(self) -> str:
        """A hash of its weights, its configuration and its tokenizer."""
        total = hashlib.sha256(f"{self.kind} {hash_weights(self.weights)} {hash_file(self.place / CONFIG)}".encode())
        for name in TOKENIZER_FILES:
            if (self.tokenizer_place / name).is_file():
                total.update(f" {name} {hash_file(self.tokenizer_place / name)}".encode())
        return total.hexdigest()

    @cached_property
    def config(self) -> dict[str, Any]:
        """The numbers of its configuration.

        Raises:
            CheckpointError: another kind of model, or values that are no sizes.
        """
        found = read_json(self.place / CONFIG)
        found = found.get("text_config") or found  # of a whole CLIP model
        if found.get("model_type") not in self.model_types:
            raise CheckpointError(
                f"{self.place} holds a model of type {found.get('model_type')!r}, and condition={self.kind} needs one of "
                f"{', '.join(self.model_types)}"
            )
        numbers = {name: found[name] for name in self.numbers if found.get(name) is not None}
        for name, value in numbers.items():
            limited = not isinstance(value, bool) and isinstance(value, int) and 0 <= value <= MAX_NUMBER
            if not (limited or isinstance(value, float) or isinstance(value, str) and re.fullmatch(r"[\w-]+", value)):
                raise CheckpointError(f"{self.place / CONFIG}: {name} is {str(value)[:40]}, which is no size")
        return numbers

    @property
    @abstractmethod
    def features(self) -> int:
        """The length of the vector of a token."""

    @property
    def pooled_features(self) -> int:
        """The length of the vector of a text."""
        return self.features

    @abstractmethod
    def create(self) -> Any:
        """The network, on the device meta."""

    @abstractmethod
    def encode_batch(self, texts: Sequence[str], device: torch.device) -> list[Encoding]:
        """The encodings of some texts."""

    def open(self) -> Any:
        """The network with its weights, on the CPU.

        Raises:
            CheckpointError: transformers is not installed, or weights that are not those of the configuration.
        """
        if self.network is None:
            try:
                with torch.device("meta"):
                    network = self.create()
            except ImportError:
                raise CheckpointError(
                    f"condition={self.kind} needs transformers: pip install 'diffguide[clip]'"
                ) from None
            except CheckpointError:
                raise
            except Exception as error:  # a constructor may raise anything for values that do not fit
                raise CheckpointError(f"{self.place} describes no text encoder: {error}") from error
            fill(network, Weights(weight_files(self.weights)), self.place)
            self.network = network.eval().requires_grad_(False)
        return self.network

    def close(self) -> None:
        """Frees the memory of the network."""
        self.network = None

    @torch.no_grad()
    def encode(self, texts: Sequence[str], device: torch.device | str = "cpu") -> list[Encoding]:
        """The encodings of texts, on the CPU. The network is on the device only meanwhile.

        Raises:
            CheckpointError: an encoder that is missing or damaged.
            ValueError: a text with more than `length` tokens.
        """
        network = self.open().to(device)
        parts = [texts[first : first + AT_ONCE] for first in range(0, len(texts), AT_ONCE)]
        found = [each for part in parts for each in self.encode_batch(part, torch.device(device))]
        network.to("cpu")
        return found

    def check_lengths(self, texts: Sequence[str], counts: Sequence[int]) -> None:
        """Raises ValueError for a text with too many tokens."""
        for text, count in zip(texts, counts):
            if count > self.length:
                raise ValueError(
                    f"a text has {count} tokens, but condition.length={self.length} allows no more: {text[:40]}... (shorten "
                    "it, or train with a larger condition.length)"
                )


def fill(network: nn.Module, weights: Weights, place: Path) -> None:
    """Gives a network on the device meta its tensors, float32; names may lack or have the prefix `text_model.`."""
    prefix = "text_model."
    held: dict[str, Tensor] = {}
    names: dict[str, str] = {}
    wanted = network.state_dict()
    for name, like in wanted.items():
        candidates = [name, prefix + name, name.removeprefix(prefix)]
        if name == "encoder.embed_tokens.weight":  # of T5, whose files have it once
            candidates.append("shared.weight")
        key = next((each for each in candidates if each in weights.specs), None)
        if key is None:
            raise CheckpointError(f"the text encoder in {place} lacks the tensor {name}")
        if weights.specs[key].shape != like.shape:
            raise CheckpointError(
                f"the text encoder in {place} has {key} of shape {list(weights.specs[key].shape)}, its {CONFIG} needs "
                f"{list(like.shape)}"
            )
        names[name] = key
    for key, value in weights.read(sorted({*names.values()}, key=list(weights.specs).index)):
        if not value.isfinite().all():
            raise CheckpointError(f"the text encoder in {place} has NaN or infinity in {key}")
        held[key] = value.float()
    network.load_state_dict({name: held[key] for name, key in names.items()}, assign=True)
    for module in network.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.is_meta:  # CLIP's positions, which files of today do not have
                module.register_buffer(name, torch.arange(buffer.shape[-1]).expand(buffer.shape), persistent=False)
