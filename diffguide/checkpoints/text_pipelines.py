"""What a pipeline of diffusers has beside its network: CLIP's text encoder as a conditioning, and an autoencoder."""

from pathlib import Path
from typing import Any

from ..conditions.clip_and_t5 import ClipEncoder
from ..files.safetensors import CheckpointError
from ..files.weights import read_json
from ..first_stages.sources import DiffusersKL, DiffusersTiny, FirstStageSource

__all__ = ["describe_autoencoder", "describe_text"]

INDEX, CONFIG = "model_index.json", "config.json"
TEXT, AUTOENCODER = "text_encoder", "vae"  # places in a pipeline
TEXT_CLASS = "CLIPTextModel"


def describe_text(pipeline: Path, network: str) -> dict[str, Any] | None:
    """The node of the conditioning of a pipeline of texts, with the hash of its encoder; None for a pipeline without CLIP.

    The network attends to padding too, as in Stable Diffusion (Rombach et al. 2022, arXiv 2112.10752).

    Arguments:
        network: class of its network.

    Raises:
        CheckpointError: a text encoder without weights or tokenizer, or one that is used in another way.
    """
    place = pipeline / TEXT
    if network != "UNet2DConditionModel" or not ((pipeline / INDEX).is_file() and (place / CONFIG).is_file()):
        return None
    named = read_json(pipeline / INDEX).get(TEXT)
    if not isinstance(named, list) or named[-1:] != [TEXT_CLASS]:
        return None
    if read_json(place / CONFIG).get("use_attention_mask"):
        raise CheckpointError(f"its {TEXT} has use_attention_mask=true, which has no counterpart here: false has")
    encoder = ClipEncoder(str(place), count_positions(pipeline, place), padding=True)
    return {
        "_target_": "diffguide.conditions.frozen_text.ClipText",
        "path": str(place),
        "layer": -1,
        "length": encoder.length,
        "padding": True,
        "column": "captions",
        "cache": "outputs/texts",
        "sha256": encoder.sha256,
        "features": encoder.features,
    }


def count_positions(pipeline: Path, place: Path) -> int:
    """The tokens of a text: as many as the tokenizer says, at most those of the encoder."""
    positions = ClipEncoder(str(place), 1).config.get("max_position_embeddings", 77)
    settings = pipeline / "tokenizer" / "tokenizer_config.json"
    stated = read_json(settings).get("model_max_length") if settings.is_file() else None
    return min(positions, stated) if isinstance(stated, int) and stated > 1 else positions


def describe_autoencoder(pipeline: Path) -> FirstStageSource | None:
    """The first stage of a pipeline; None where it has none, or one of another class."""
    config = pipeline / AUTOENCODER / CONFIG
    if not (pipeline / INDEX).is_file() or not config.is_file():
        return None
    name = read_json(config).get("_class_name")
    source = next((kind for kind in (DiffusersKL, DiffusersTiny) if kind.network == name), None)
    return None if source is None else source(str(pipeline))
