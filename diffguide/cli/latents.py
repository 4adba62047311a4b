"""first_stage: a training in the latents of an autoencoder."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ..checkpoints.first_stages import copy_first_stage, find_first_stage, load_first_stage
from ..config.build import ConfigError, build
from ..datasets import Dataset
from ..files import safetensors as archives
from ..files.run_folders import WriteError
from ..files.safetensors import CheckpointError
from ..first_stages import FirstStage
from ..first_stages.encoding import encode_dataset
from ..first_stages.latent_data import LatentDataset
from ..first_stages.sources import FirstStageSource
from ..first_stages.space import LatentFacts, hash_stage
from ..runtime.engine import Fabric
from .guidance import find_target
from .initialization import Ancestor
from .resume import Resumed
from .settings import TrainingSettings

__all__ = ["LatentTraining", "drop_empty_first_stage", "enter_latents", "take_first_stage"]

NONE = "diffguide.first_stages.sources.NoFirstStage"
AUTOENCODER = "diffguide.objectives.autoencoder.AutoencoderObjective"
PIXEL_CONDITIONS = ("diffguide.conditions.pictures.",)
PLACES = ("path", "workers", "memory", "download")  # keys of a data set that do not change its pictures
HINT = "diffguide-train objective=autoencoder trains one, and first_stage=own_autoencoder before this training"
DRY_RUN_EXAMPLES = 256  # of a split, encoded for a dry run


class LatentTraining(NamedTuple):
    """What a training in latents needs.

    Attributes:
        config: of the run, whose network fits the latents.
        data: the latents.
        copy: writes the first stage into a run folder.
        remark: a line for the log.
    """

    config: dict[str, Any]
    data: LatentDataset
    copy: Callable[[Path], None]
    remark: str


def drop_empty_first_stage(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration, without the node of the first stage where that says that there is none: so runs save it."""
    node = config.get("first_stage")
    empty = node is None or node.get("_target_") == NONE
    return {key: value for key, value in config.items() if key != "first_stage" or not empty}


def take_first_stage(
    config: Mapping[str, Any], ancestor: Ancestor | None
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """(The configuration, the node of the first stage). Without a first stage its node is removed, and None.

    Raises:
        ConfigError: a model in latents as the start of a training in pixels, or an objective that needs pixels.
    """
    config = drop_empty_first_stage(config)
    node = config.get("first_stage")
    if node is None:
        if ancestor is not None and ancestor.loaded.facts.get("first_stage"):
            raise ConfigError(
                "init_from: this model works in the latents of a first stage: set first_stage to the same one"
            )
        return config, None
    objective = config["objective"]
    if objective.get("_target_") == AUTOENCODER:
        raise ConfigError("first_stage has no effect with objective=autoencoder, which trains one on pixels: remove it")
    if "decoder" in objective:
        raise ConfigError(
            "objective=vdm bounds the likelihood of pixels, and with first_stage the data are latents, whose bits/dim say "
            "nothing about pixels: use objective=v, or first_stage=none"
        )
    if name := find_target(config["backbone"], PIXEL_CONDITIONS):
        raise ConfigError(
            f"condition: {name} is made of pixels, and with first_stage the data are latents: use another condition"
        )
    if levels := objective.get("quantization_levels"):
        raise ConfigError(
            f"objective.quantization_levels must be 0 with first_stage, got {levels}: latents are continuous"
        )
    return config, node


def enter_latents(
    config: dict[str, Any],
    node: Mapping[str, Any] | None,
    pictures: Dataset,
    settings: TrainingSettings,
    engine: Fabric,
    resumed: Resumed | None,
    ancestor: Ancestor | None,
) -> LatentTraining | None:
    """Encodes the data of a training, from the cache as far as they are there; a dry run encodes a few examples.

    None without a first stage.

    Raises:
        ConfigError: a first stage that is missing or does not fit the data, or a cache that cannot be written.
    """
    if node is None:
        return None
    source: FirstStageSource = build(node, "first_stage")
    run = None if resumed is None else resumed.folder
    try:
        file = find_first_stage(source, run)
    except CheckpointError as error:
        raise ConfigError(f"first_stage: {error}; {HINT}") from error
    try:
        stage = load_first_stage(source, file, settings.trust).to(engine.device)
        backbone = fit_backbone(config["backbone"], pictures.shape, stage.latent_shape(pictures.shape))
        facts = known_facts(stage, resumed, ancestor)
        data = encode_dataset(
            stage,
            pictures,
            None if settings.dry_run else Path(source.cache).expanduser(),
            {key: value for key, value in config["dataset"].items() if key not in PLACES},
            facts,
            source.batch_size,
            source.memory,
            DRY_RUN_EXAMPLES if settings.dry_run else None,
            silent=not engine.is_global_zero,
        )
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"first_stage: {error}") from error
    except WriteError as error:
        raise ConfigError(f"first_stage.cache: {error}") from error
    return LatentTraining({**config, "backbone": backbone}, data, partial(copy_first_stage, file), describe(data))


def known_facts(stage: FirstStage, resumed: Resumed | None, ancestor: Ancestor | None) -> LatentFacts | None:
    """How latents are normalized already: as in the run that continues, or by the model that a training starts from.

    A network that was trained elsewhere takes the latents of its first stage as they are. None = by the training data.

    Raises:
        ValueError: another first stage than theirs.
    """
    digest = hash_stage(stage)
    if resumed is not None and resumed.checkpoint is not None:
        before, whose = archives.read_metadata(resumed.checkpoint).get("first_stage"), "this run"
    elif ancestor is not None:
        before, whose = ancestor.loaded.facts.get("first_stage"), "the model of init_from"
        if before is None:
            channels = stage.latent_channels
            return LatentFacts(digest, [], [0.0] * channels, [1.0] * channels)
    else:
        return None
    facts = LatentFacts.read(before)
    if facts.sha256 != digest:
        raise ValueError(f"it is not the one of {whose}: its hash is {digest[:12]}, and that one's {facts.sha256[:12]}")
    return facts


def fit_backbone(node: Mapping[str, Any], pictures: Sequence[int], latents: Sequence[int]) -> dict[str, Any]:
    """The node of a backbone with the channels and the side of latents in place of those of pictures.

    Raises:
        ConfigError: a value that is that of neither.
    """
    fitted = dict(node)
    before, after = (shape[1] if shape[1] == shape[2] else None for shape in (pictures, latents))
    facts = {"in_channels": (pictures[0], latents[0]), "size": (before, after)}
    for key, (picture, latent) in facts.items():
        if key not in node:
            continue
        if node[key] not in (picture, latent):
            raise ConfigError(f"backbone.{key} must be {latent}, as the latents of this first stage, got {node[key]}")
        fitted[key] = latent
    return fitted


def describe(data: LatentDataset) -> str:
    """A line on the latents: their shape, and by which means and standard deviations they are normalized."""
    space = data.space
    ranges = [f"{min(part):.3g} to {max(part):.3g}" for part in (space.mean, space.std)]
    shapes = [" x ".join(map(str, shape)) for shape in (space.shape, space.image_shape)]
    return f"latents {shapes[0]} of pictures {shapes[1]}: channels of mean {ranges[0]}, std {ranges[1]} are scaled to 0 and 1"
