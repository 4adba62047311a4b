"""Models on the hub, downloaded with huggingface_hub when a command names one."""

import re
from collections.abc import Sequence
from pathlib import Path

from .safetensors import CheckpointError
from .weights import read_json

__all__ = ["AUTOENCODER_FILES", "download", "download_pipeline"]

INDEX = "model_index.json"
FILES = [  # no pickle, no code, and of a pipeline no weights but those of its denoising network
    "*.json",
    "diffusion_pytorch_model*.safetensors",
    "unet/*.safetensors",
    "transformer/*.safetensors",
    "checkpoints/*.safetensors",
    "first_stage.safetensors",
]
AUTOENCODER_FILES = ["*.json", "diffusion_pytorch_model*.safetensors", "vae/*.safetensors"]
PARTS = {  # of a pipeline, that are used too: its classes there, and its files
    "vae": (("AutoencoderKL", "AutoencoderTiny"), ["vae/diffusion_pytorch_model*.safetensors"]),
    "text_encoder": (("CLIPTextModel",), ["text_encoder/model*.safetensors", "tokenizer/merges.txt"]),
    "text_encoder_2": (
        ("CLIPTextModelWithProjection",),
        ["text_encoder_2/model*.safetensors", "tokenizer_2/merges.txt"],
    ),
}
NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def download(name: Path, files: Sequence[str] = FILES) -> Path | None:
    """The local folder of a model named owner/model on the hub; None for what is no such name.

    A path whose first folder exists is no name.

    Arguments:
        files: patterns of what is downloaded.

    Raises:
        CheckpointError: huggingface_hub is not installed, there is no network, or no such model.
    """
    if not NAME.fullmatch(name.as_posix()) or Path(name.parts[0]).exists():
        return None
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise CheckpointError(
            f"there is no folder {name}; if it is a model on the hub: pip install 'diffguide[diffusers]'"
        ) from None
    try:
        return Path(snapshot_download(name.as_posix(), allow_patterns=list(files)))
    except Exception as error:  # of the network, of the server, of the cache
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"there is no folder {name}, and no such model could be fetched from the hub: {reason}"
        ) from error


def download_pipeline(name: Path) -> Path | None:
    """The same for a model to sample: of a pipeline also its autoencoder, and its text encoder if that is CLIP."""
    folder = download(name)
    if folder is None or not (folder / INDEX).is_file():
        return folder
    index, more = read_json(folder / INDEX), []
    for part, (names, files) in PARTS.items():
        entry = index.get(part)
        if isinstance(entry, list) and entry and entry[-1] in names:
            more += files
    return download(name, [*FILES, *more]) if more else folder
