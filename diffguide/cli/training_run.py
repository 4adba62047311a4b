"""What diffguide-train runs: a training, and before it that of an autoencoder in whose latents it works."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

from ..checkpoints import store as checkpoints
from ..checkpoints.allowlist import ROLES
from ..config.build import ConfigError, fill_label_dropout
from ..config.composed import check_composed, resolve_config
from ..config.files import ConfigFiles, to_plain
from ..config.quoting import literal
from ..config.type_checks import check_types
from ..files.run_folders import list_versions
from ..first_stages import FirstStage
from ..runtime.signals import Stopped
from ..training.job import TrainingJob
from ..training.preflight import preflight
from .conditions import place_condition
from .latents import AUTOENCODER, fit_backbone, take_first_stage
from .resume import saved_config
from .training_job import build_objective, build_training_job, settle_precision

__all__ = ["run_training"]

OWN = "diffguide.first_stages.sources.OwnAutoencoder"
TRAINED = "diffguide.first_stages.sources.TrainedAutoencoder"
KEPT = ("cache", "batch_size", "memory")  # arguments of both
SAME = ("dataset", "backbone", "schedule", "objective", "training", "seed")  # nodes by which a run is that of a recipe
OPTIONAL = ["p_uncond", "ce_weight", "init_from", "ancestry", "first_stage"]  # keys that only some runs have


def run_training(config: Mapping[str, Any]) -> Path | None:
    """Trains, and returns the run folder; None on ranks other than 0. A first stage that is to be trained goes first.

    A dry run describes the training of that first stage, if there is none yet.

    Arguments:
        config: composed and resolved.

    Raises:
        InputError: an invalid configuration, or a training that failed.
        Stopped: a signal arrived, and everything is saved.
    """
    node = config.get("first_stage")
    if node is None or node.get("_target_") != OWN:
        return run_job(dict(config))
    check_types(node, "first_stage", ROLES["first_stage"].given)
    place = node["path"]
    if place is None:
        first = compose_first_stage(config)
        found = find_run(first)
        if not found.finished and config["resume"] is None:
            if config["init_from"] is not None:
                raise ConfigError(
                    "first_stage.path must be given with init_from: the first stage of the model that the training starts from"
                )
            folder = train_first_stage(first, found.folder, config)
            if config["dry_run"]:
                return folder
            found = Found(folder, True)
        place = str(found.folder or first.parent / "v001")  # a run that is resumed has a copy of its own
    return run_job({**config, "first_stage": {"_target_": TRAINED, "path": place, **{key: node[key] for key in KEPT}}})


def run_job(config: dict[str, Any]) -> Path | None:
    """Builds, checks and runs one training."""
    job = build_training_job(config)
    preflight(job)
    settle_precision(job)
    return job.run()


@contextmanager
def use_words_of(composed: DictConfig) -> Iterator[None]:
    """Around the preparation of a training: the words of the command line are those of what was composed for it."""
    hydra = HydraConfig.instance()
    before = hydra.cfg
    hydra.set_config(composed)
    try:
        yield
    finally:
        hydra.cfg = before


class FirstTraining(NamedTuple):
    """The training of a first stage.

    Attributes:
        composed: with the node of Hydra, which has the words of the recipe.
        config: resolved.
    """

    composed: DictConfig
    config: dict[str, Any]

    @property
    def parent(self) -> Path:
        """The folder of its versions."""
        return Path(self.config["output_root"]).expanduser() / "train" / self.config["name"]


def write(value: Any) -> str:
    """A value in Hydra's grammar."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{write(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(write, value)) + "]"
    return literal(value) if isinstance(value, str) else json.dumps(value)


class Found(NamedTuple):
    """A run of a first stage; folder None = there is none."""

    folder: Path | None
    finished: bool


def compose_first_stage(config: Mapping[str, Any]) -> FirstTraining:
    """The training of the first stage of a run, by its recipe, with the data and the devices of the run.

    Raises:
        ConfigError: no such recipe, an invalid override, or a recipe that trains no autoencoder.
    """
    node = config["first_stage"]
    words = [
        f"experiment={node['recipe']}",
        *(f"{key}={write(value)}" for key, value in (node["overrides"] or {}).items()),
    ]
    try:
        cfg = GlobalHydra.instance().config_loader().load_configuration("train", words, RunMode.RUN)
        with open_dict(cfg):
            whole = cfg.copy()
            del cfg["hydra"]
            for key in ("dataset", "engine", "output_root", "trust", "dry_run"):
                cfg[key] = config[key]
        with use_words_of(whole):
            check_composed(to_plain(cfg), whole.hydra.runtime.choices, words, ConfigFiles.of_this_run())
            fill_label_dropout(cfg)
            resolved = resolve_config(cfg)
        if resolved["objective"].get("_target_") != AUTOENCODER:
            raise ConfigError(f"{node['recipe']} trains no autoencoder")
    except (HydraException, OmegaConfBaseException, ConfigError) as error:
        raise ConfigError(f"first_stage.recipe or first_stage.overrides: {str(error).splitlines()[0]}") from error
    return FirstTraining(whole, resolved)


def find_run(first: FirstTraining) -> Found:
    """The newest run with the settings of a training, finished or not."""
    versions = list_versions(first.parent) if first.parent.is_dir() else []
    for number in reversed(versions):
        folder = first.parent / f"v{number:03d}"
        try:
            saved = saved_config(folder, first.config.keys() - {"condition"}, OPTIONAL)
        except ConfigError:
            continue  # of another version of the program
        if all(saved[key] == first.config[key] for key in SAME):
            files = checkpoints.list_checkpoints(folder / "checkpoints")
            return Found(folder, bool(files) and int(files[-1].stem) >= first.config["training"]["images"])
    return Found(None, False)


def train_first_stage(first: FirstTraining, folder: Path | None, config: Mapping[str, Any]) -> Path:
    """Trains a first stage, from its last checkpoint on, and returns its folder; that of a dry run for `dry_run`.

    Arguments:
        folder: of a run to continue; None = a new one.
        config: of the run that works in its latents, whose network is checked before.

    Raises:
        InputError: see `run_training`.
        Stopped: a signal arrived; the same command continues.
    """
    with use_words_of(first.composed):
        resume = None if folder is None or config["dry_run"] else str(folder)
        job = build_training_job({**first.config, "resume": resume})
        preflight(job)
        settle_precision(job)
    check_network(job, config)
    if job.engine.world_size > 1:
        raise ConfigError(
            f"first_stage.path must be given with {job.engine.world_size} devices: train the autoencoder before, by "
            f"experiment={config['first_stage']['recipe']}"
        )
    job.remarks.insert(0, "the autoencoder is trained first: first_stage.path=null")
    try:
        with use_words_of(first.composed):
            done = job.run()
    except Stopped as stopped:
        stopped.again = True
        raise
    assert done is not None  # on one device
    return done


def check_network(job: TrainingJob, config: Mapping[str, Any]) -> None:
    """Checks that the run in the latents of an autoencoder has a network that can be built.

    Raises:
        ConfigError: it has not.
    """
    stage = job.objective.model
    assert isinstance(stage, FirstStage)  # that of the objective of an autoencoder
    later, _ = take_first_stage(place_condition(config), None)
    for key in ("backbone", "schedule", "objective", "guidance", "sampler"):
        check_types(later[key], key, ROLES[key].given)
    try:
        latents = stage.latent_shape(job.data.shape)
    except ValueError as error:
        raise ConfigError(f"first_stage: {error}") from error
    backbone = fit_backbone(later["backbone"], job.data.shape, latents)
    build_objective({**later, "backbone": backbone}, later["seed"])
