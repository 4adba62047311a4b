"""What a pipeline of diffusers has beside its network: CLIP's text encoder as a conditioning, and an autoencoder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..conditions.clip_and_t5 import ClipEncoder
from ..files.safetensors import CheckpointError
from ..files.weights import read_json
from ..first_stages.sources import DiffusersKL, DiffusersTiny, FirstStageSource

__all__ = ["count_downsampling", "describe_autoencoder", "describe_text"]

INDEX, CONFIG = "model_index.json", "config.json"
TEXT, AUTOENCODER = "text_encoder", "vae"  # places in a pipeline
MAX_LEVELS = 8  # of an autoencoder


def describe_text(pipeline: Path, network: str, arguments: Mapping[str, Any]) -> dict[str, Any] | None:
    """The node of the conditioning of a pipeline of texts, with the hash of its encoders; None for a pipeline without CLIP.

    The network attends to padding too, as in Stable Diffusion (Rombach et al. 2022, arXiv 2112.10752). That of SDXL gets the
    states before the last layer of two encoders (Podell et al. 2023, arXiv 2307.01952, section 2.1).

    Arguments:
        network: class of its network.
        arguments: of the network.

    Raises:
        CheckpointError: a text encoder without weights or tokenizer, or one that is used in another way.
    """
    if network != "UNet2DConditionModel" or not (pipeline / INDEX).is_file():
        return None
    index = read_json(pipeline / INDEX)
    classes = {key: value[-1] for key, value in index.items() if isinstance(value, list) and value}
    if classes.get(TEXT) != "CLIPTextModel" or not (pipeline / TEXT / CONFIG).is_file():
        return None
    second = f"{TEXT}_2"
    if classes.get(second) is None and not arguments.get("addition_embed_type"):
        return describe_clip(pipeline, TEXT, -1)
    if classes.get(second) != "CLIPTextModelWithProjection" or arguments.get("addition_embed_type") != "text_time":
        return None
    return {
        "_target_": "diffguide.conditions.joined_texts.JoinedTexts",
        "parts": {"first": describe_clip(pipeline, TEXT, -2), "second": describe_clip(pipeline, second, -2, True)},
        "zeros": bool(index.get("force_zeros_for_empty_prompt", True)),
    }


def describe_clip(pipeline: Path, name: str, layer: int, projected: bool = False) -> dict[str, Any]:
    """The node of one text encoder of a pipeline, `name` its folder there."""
    place = pipeline / name
    if read_json(place / CONFIG).get("use_attention_mask"):
        raise CheckpointError(f"its {name} has use_attention_mask=true, which has no counterpart here: false has")
    encoder = ClipEncoder(str(place), count_positions(pipeline, place), layer, True, projected)
    return {
        "_target_": "diffguide.conditions.frozen_text.ClipText",
        "path": str(place),
        "layer": layer,
        "length": encoder.length,
        "padding": True,
        "projected": projected,
        "column": "captions",
        "cache": "outputs/texts",
        "sha256": encoder.sha256,
        "features": encoder.features,
        "pooled_features": encoder.pooled_features,
    }


def count_positions(pipeline: Path, place: Path) -> int:
    """The tokens of a text: as many as the tokenizer says, at most those of the encoder."""
    positions = ClipEncoder(str(place), 1).config.get("max_position_embeddings", 77)
    settings = pipeline / place.name.replace(TEXT, "tokenizer") / "tokenizer_config.json"
    stated = read_json(settings).get("model_max_length") if settings.is_file() else None
    return min(positions, stated) if isinstance(stated, int) and stated > 1 else positions


def count_downsampling(pipeline: Path) -> int:
    """Pixels per side of a latent of a pipeline's autoencoder, 8 without one."""
    config = pipeline / AUTOENCODER / CONFIG
    widths = read_json(config).get("block_out_channels") if config.is_file() else None
    return 2 ** (len(widths) - 1) if isinstance(widths, list) and 0 < len(widths) <= MAX_LEVELS else 8


def describe_autoencoder(pipeline: Path) -> FirstStageSource | None:
    """The first stage of a pipeline; None where it has none, or one of another class."""
    config = pipeline / AUTOENCODER / CONFIG
    if not (pipeline / INDEX).is_file() or not config.is_file():
        return None
    name = read_json(config).get("_class_name")
    source = next((kind for kind in (DiffusersKL, DiffusersTiny) if kind.network == name), None)
    return None if source is None else source(str(pipeline))
