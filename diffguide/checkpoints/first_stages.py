"""Loading first stages: autoencoders that were trained here, and folders of diffusers.

A run folder of a model in latents has a copy of an autoencoder that was trained here, so that it is whole; an autoencoder of
diffusers stays where it is. The hash in the checkpoint says whether a first stage is the one of the training.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..files import safetensors as archives
from ..files.hub import AUTOENCODER_FILES, download
from ..files.safetensors import CheckpointError
from ..files.weights import Weights, read_json, weight_files
from ..first_stages import DiffusersAutoencoder, FirstStage
from ..first_stages.sources import FirstStageSource
from ..first_stages.space import LatentFacts, LatentSpace
from . import store
from .allowlist import MAX_SIZE, construct, validate_values
from .diffusers_folder import NETWORK_CONFIG, current_attention, find_weights
from .streaming import allocate, allocate_later
from .validation import at_most, check_finite_tensor, compare

__all__ = [
    "COPY",
    "copy_first_stage",
    "decode_only",
    "find_first_stage",
    "load_autoencoder",
    "load_first_stage",
    "open_latents",
]

COPY = "first_stage.safetensors"  # in the folder of a run in latents
PLACE = "vae"  # of the autoencoder in a pipeline
UNUSED = ("block_out_channels",)  # written by AutoencoderTiny, and no argument of its constructor


def find_first_stage(source: FirstStageSource, run: Path | None = None) -> Path | None:
    """The checkpoint of an autoencoder that was trained here; None for one of diffusers.

    Arguments:
        run: folder of a run, whose copy goes first; None = there is none.

    Raises:
        CheckpointError: there is none.
    """
    if source.network is not None:
        return None
    return run / COPY if run is not None and (run / COPY).is_file() else store.find(source.path)


def load_first_stage(source: FirstStageSource, file: Path | None, trust: Sequence[str] = ()) -> FirstStage:
    """A first stage on the CPU, in evaluation mode.

    Arguments:
        file: from `find_first_stage`.
        trust: dotted names of classes outside diffguide that a checkpoint may build.

    Raises:
        CheckpointError: a first stage that is missing, damaged or of another kind.
    """
    if source.network is not None:
        return load_autoencoder(Path(source.path), source.network)
    assert file is not None
    return load_trained(file, trust)


def load_trained(file: Path, trust: Sequence[str]) -> FirstStage:
    """The autoencoder of a checkpoint of `objective=autoencoder`, with averaged weights."""
    model = store.load(file, "ema", trust=trust).model
    if not isinstance(model, FirstStage):
        raise CheckpointError(
            f"{file} holds a {type(model).__name__}, no autoencoder: give a run of objective=autoencoder"
        )
    return model


def load_autoencoder(path: Path, network: str) -> FirstStage:
    """An autoencoder of diffusers; only JSON and safetensors files are read.

    Arguments:
        path: its folder, a pipeline that has one in vae/, or the name of one on the hub.
        network: name of its class.

    Raises:
        CheckpointError: no such folder, another class, or weights that are not those of its configuration.
    """
    folder = path.expanduser()
    folder = folder if folder.exists() else download(path, AUTOENCODER_FILES) or folder
    place = folder / PLACE if (folder / PLACE / NETWORK_CONFIG).is_file() else folder
    config = read_json(place / NETWORK_CONFIG)
    if config.get("_class_name") != network:
        raise CheckpointError(
            f"{place} holds the class {config.get('_class_name')!r} of diffusers, and {network} is needed"
        )
    arguments = {key: value for key, value in config.items() if not key.startswith("_")}
    if network == "AutoencoderTiny":
        arguments = {key: value for key, value in arguments.items() if key not in UNUSED}
    validate_values(arguments, NETWORK_CONFIG, MAX_SIZE)
    found = find_weights(place)
    assert found is not None  # the configuration names a class
    try:
        return fill(network, arguments, Weights(weight_files(found)))
    except ValueError as error:
        raise CheckpointError(f"{place}: {error}") from error


def fill(network: str, arguments: Mapping[str, Any], weights: Weights) -> FirstStage:
    """An autoencoder of diffusers with the tensors of its files, built after a comparison on the device meta."""
    names = {current_attention(key): key for key in weights.specs}
    with at_most(16 * len(names) + 256, "its config.json describes a far larger network than its tensors are"):
        with torch.device("meta"):
            expected = DiffusersAutoencoder(network, arguments)
    compare({name: weights.specs[key] for name, key in names.items()}, expected.network.state_dict())
    with allocate_later():
        stage = DiffusersAutoencoder(network, arguments)
    allocate(stage)
    held, own = stage.network.state_dict(), {key: name for name, key in names.items()}
    with torch.no_grad():
        for key, value in weights.read(list(own)):
            check_finite_tensor(value, key)
            held[own[key]].copy_(value)
    return stage.eval().requires_grad_(False)


def copy_first_stage(file: Path | None, run: Path) -> None:
    """Writes the averaged weights of an autoencoder into the folder of a run in its latents, if they are not there.

    Arguments:
        file: from `find_first_stage`; None = one of diffusers, which is not copied.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        WriteError: the copy cannot be written.
    """
    if file is None or (run / COPY).is_file():
        return
    tensors, metadata = archives.read_sealed(file)
    del metadata["format"]
    archives.write_sealed(
        run / COPY, {key: value for key, value in tensors.items() if key.startswith("ema.")}, metadata
    )


def decode_only(source: FirstStageSource, shape: Sequence[int], trust: Sequence[str] = ()) -> LatentSpace:
    """The latents of a model that states no first stage, as its first stage takes them.

    Arguments:
        shape: of the examples of the model.

    Raises:
        CheckpointError: a first stage that is missing, or whose latents have other channels.
    """
    try:
        stage = load_first_stage(source, find_first_stage(source), trust)
        if len(shape) != 3 or stage.latent_channels != shape[0]:
            raise CheckpointError(
                f"its latents have {stage.latent_channels} channels, and the examples the shape {list(shape)}"
            )
    except CheckpointError as error:
        raise CheckpointError(f"first_stage: {error}") from error
    image_shape = (stage.channels, *(stage.downsampling * side for side in shape[1:]))
    return LatentSpace(stage, image_shape, [0.0] * shape[0], [1.0] * shape[0])


def open_latents(
    config: Mapping[str, Any], facts: Mapping[str, Any], file: Path, trust: Sequence[str] = ()
) -> LatentSpace | None:
    """The latents of a loaded checkpoint; None for a model of pictures, or one without a first stage.

    Arguments:
        config, facts: of the checkpoint.
        file: of the checkpoint.

    Raises:
        CheckpointError: a first stage that is missing, or not the one of the training.
    """
    if facts.get("first_stage") is None:
        return None
    try:
        known = LatentFacts.read(facts["first_stage"])
        source = construct(config.get("first_stage"), "first_stage", trust)
        run = file.parent.parent if file.parent.name == "checkpoints" else file.parent
        space = LatentSpace(
            load_first_stage(source, find_first_stage(source, run), trust), known.image_shape, known.mean, known.std
        )
    except ValueError as error:
        raise CheckpointError(f"the first stage of {file}: {error}") from error
    if space.sha256 != known.sha256:
        raise CheckpointError(
            f"the first stage of {file} was another one in training: its hash is {space.sha256[:12]} now, and was "
            f"{known.sha256[:12]}"
        )
    return space
