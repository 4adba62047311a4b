"""What diffguide-eval measures: a trained model on its data, or an oracle on exact samples of its law."""

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from ..checkpoints import data_record as provenance
from ..checkpoints import store as checkpoints
from ..checkpoints.allowlist import construct
from ..checkpoints.references import list_names
from ..config.build import ConfigError, build
from ..datasets import Dataset, Split
from ..evaluation.metric import EvalContext
from ..files.run_folders import hash_file, strict_json
from ..randomness import fold
from ..sampling.sources import OracleSource
from .retyped import again, trusted

__all__ = ["Target", "checkpoint_target", "oracle_target"]

CONTINUOUS = {"quantization_levels": 0}  # the dataset node of exact samples, which have no grey levels
DEFAULT_EXACT_SAMPLES, MAX_EXACT_SAMPLES = 2000, 10**7
EXACT_SAMPLES = 5  # purpose of the seed


class Target(NamedTuple):
    """A model on data.

    Arguments:
        context: to measure.
        identity: what identifies model and data in metrics.json.
        name: of the run, where none is given.
        note: why its figures mean nothing, None where they may.
    """

    context: EvalContext
    identity: dict[str, Any]
    name: str
    note: str | None = None


def checkpoint_target(cfg: DictConfig, path: str | Path, device: torch.device, opened: dict[str, Dataset]) -> Target:
    """The model of a checkpoint on its data.

    Arguments:
        opened: data sets by their nodes; a new one is added.

    Raises:
        ConfigError: a checkpoint that cannot be loaded, data that are not there, or unlike those of its training.
    """
    try:
        file = checkpoints.find(path)
        loaded = checkpoints.load(file, cfg.weights, device, trusted(cfg))
        digest = hash_file(file)
    except checkpoints.CheckpointError as error:
        raise ConfigError(f"checkpoint: {error}") from error
    run = file.parent.parent if file.parent.name == "checkpoints" else file
    data, node = open_evaluation_data(cfg, loaded, opened, provenance.read_seen_data(run, loaded.facts))
    config = loaded.config | {"dataset": node}
    context = build_context(cfg, loaded.model, data, cfg.split, cfg.n, device, checkpoint=file, config=config)
    identity = {
        "model": "/".join(run.parts[-2:]),
        "checkpoint": str(file),
        "checkpoint_sha256": digest,
        "weights": cfg.weights,
        "images": loaded.facts["images"],
        "split": cfg.split,
        "dataset": node,
        "training_seed": loaded.config.get("seed"),
        "configuration": hash_without_seed(loaded.config),
    }
    note = checkpoints.explain_untrained(loaded)
    return Target(context, identity, loaded.config["name"], note and f"{file}: {note}")


def hash_without_seed(config: Mapping[str, Any]) -> str:
    """A hash of a training configuration but for its seed and its place: runs that share it are repetitions."""
    place = ("seed", "name", "output_root", "resume", "trust")
    kept = {key: value for key, value in config.items() if key not in place}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def open_evaluation_data(
    cfg: DictConfig, loaded: checkpoints.Loaded, opened: dict[str, Dataset], seen: dict[str, Any] | None
) -> tuple[Dataset, dict[str, Any]]:
    """The data set to measure on, and its node: the chosen one, or that of the checkpoint.

    Arguments:
        opened: data sets by their nodes; a new one is added.
        seen: the record of the data that the checkpoint was trained on.

    Raises:
        ConfigError: data that are not there, or are not like those that the model was trained on.
    """
    own = loaded.config["dataset"]
    choice = HydraConfig.get().runtime.choices.get("dataset")
    node = again(cfg, "dataset", choice if isinstance(choice, str) else None, own)
    placed = provenance.locate_data(own, seen) if node == own else node
    chosen = "_target_" in cfg.get("dataset", {})
    key = strict_json(placed)
    try:
        if key not in opened:
            opened[key] = (
                build({"dataset": placed}, "dataset") if chosen else construct(placed, "dataset", trusted(cfg))
            )
    except ConfigError:
        raise
    except (ValueError, OSError) as error:
        raise ConfigError(
            f"{error}; these are the data of the checkpoint: say where they lie now, dataset.path=<folder>, or give others "
            "with dataset=<option>"
        ) from error
    data = opened[key]
    check_data(data, loaded.facts)
    if node == own or not chosen:
        check_same_data(data, seen, None if node == own else node.get("path"))
    return data, node


def check_data(data: Dataset, facts: Mapping[str, Any]) -> None:
    """Checks that data have the shape and the classes of a model.

    Raises:
        ConfigError: others.
    """
    shape, names = facts["shape"], facts["class_names"]
    if list(data.shape) != list(shape):
        raise ConfigError(f"dataset: its examples are of shape {list(data.shape)}, and the model's of {list(shape)}")
    if names and data.class_names and list(data.class_names) != list(names):
        own, learned = (f"{list_names(each)} ({len(each)})" for each in (data.class_names, names))
        raise ConfigError(f"dataset: its classes are {own}, and the model's are {learned}")


def check_same_data(data: Dataset, seen: dict[str, Any] | None, path: str | None) -> None:
    """Compares data with the record of those that a checkpoint was trained on; reports differences on stderr.

    Arguments:
        path: where the checkpoint's own data are said to lie now, None = where they lay.

    Raises:
        ConfigError: other data lie there.
    """
    if (changed := provenance.find_changes(seen, data)) is None:
        return
    if path is not None:
        raise ConfigError(
            f"dataset.path={path} does not hold the data of this checkpoint: {provenance.describe_changes(changed)}; to "
            "measure on others, choose them with dataset=<option> too"
        )
    print(f"the data have changed since the training: {provenance.describe_changes(changed)}", file=sys.stderr)


def oracle_target(cfg: DictConfig, source: OracleSource, device: torch.device) -> Target:
    """An oracle on exact samples of its law, or, where it is made of data, on a split of them.

    Raises:
        ConfigError: more examples than the split has, or than a computer holds.
    """
    identity = {"model": f"oracle {type(source.oracle).__name__}"} | source.identity()
    name = str(HydraConfig.get().runtime.choices.get("oracle"))
    if "dataset" in cfg:
        config = {"dataset": source.nodes["dataset"]}
        context = build_context(cfg, source.model, build(cfg, "dataset"), cfg.split, cfg.n, device, config=config)
        return Target(context, identity | {"split": cfg.split}, name)
    if cfg.n is not None and cfg.n > MAX_EXACT_SAMPLES:
        raise ConfigError(f"n must be at most 10^7 exact samples, got {cfg.n}")
    assert source.oracle is not None
    rng = torch.Generator().manual_seed(fold(cfg.seed, EXACT_SAMPLES))
    x, y = source.oracle.sample(cfg.n or DEFAULT_EXACT_SAMPLES, rng)
    split = Split(x.to(source.dtype), y.cpu())
    data = Dataset(split, split, split, class_names=source.class_names)
    context = build_context(cfg, source.model, data, "test", None, device, config={"dataset": CONTINUOUS})
    return Target(context, identity | {"split": "exact samples"}, name)


def build_context(
    cfg: DictConfig,
    model: Any,
    data: Dataset,
    split: str,
    n: int | None,
    device: torch.device,
    checkpoint: Path | None = None,
    config: dict[str, Any] | None = None,
) -> EvalContext:
    """A context; its ValueError as a ConfigError."""
    try:
        return EvalContext(
            model, data, split, n, cfg.seed, cfg.batch_size, device, checkpoint=checkpoint, config=config
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
