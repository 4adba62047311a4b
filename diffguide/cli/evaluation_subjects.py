"""What an evaluation measures: a trained model on its data, or an oracle on exact samples of its law."""

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from ..checkpoints import data_record as provenance
from ..checkpoints import store as checkpoints
from ..checkpoints.allowlist import construct
from ..config.build import ConfigError, build
from ..datasets import Dataset, Split
from ..evaluation.metric import Subject
from ..files.run_folders import hash_file, strict_json
from ..randomness import fold
from ..sampling.sources import Exact
from .retyped import again, trusted

__all__ = ["exact", "trained"]

CONTINUOUS = {"values": 0}  # what is said of exact samples
DRAWN, MOST, EXACT = 2000, 10**7, 5  # exact samples where nobody says n, and at most; purpose of the seed


def trained(
    cfg: DictConfig, path: str | Path, device: torch.device, built: dict[str, Dataset]
) -> tuple[Subject, str | None, dict[str, Any]]:  # fmt: skip
    """The model of a checkpoint on its data, why its figures mean nothing, if so, and what identifies both in metrics.json.

    Arguments:
        built: data sets by their nodes; a new one is added.

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
    data, node = dataset(cfg, loaded, built, provenance.seen(run, loaded.facts))
    subject = subject_of(
        cfg, loaded.model, data, cfg.split, cfg.n, device, checkpoint=file, config=loaded.config | {"dataset": node}
    )
    note = checkpoints.untrained(loaded)
    return subject, note and f"{file}: {note}", {
        "model": "/".join(run.parts[-2:]), "checkpoint": str(file), "checkpoint_sha256": digest, "weights": cfg.weights,
        "images": loaded.facts["images"], "split": cfg.split, "dataset": node,
        "training_seed": loaded.config.get("seed"), "configuration": but_for_seed(loaded.config),
    }  # fmt: skip


def but_for_seed(config: dict[str, Any]) -> str:
    """A hash of what a training run was told, but for its seed and its place: runs that share it are repetitions."""
    told = {
        key: value for key, value in config.items() if key not in ("seed", "name", "output_root", "resume", "trust")
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def dataset(
    cfg: DictConfig, loaded: checkpoints.Loaded, built: dict[str, Dataset], seen: dict[str, Any] | None
) -> tuple[Dataset, dict[str, Any]]:  # fmt: skip
    """The data set to measure on, and its node: the chosen one, or that of the checkpoint.

    Arguments:
        built: data sets by their nodes; a new one is added.
        seen: the record of the data that the checkpoint was trained on.

    Raises:
        ConfigError: data that are not there, or are not like those that the model was trained on.
    """
    own = loaded.config["dataset"]
    choice = HydraConfig.get().runtime.choices.get("dataset")
    node = again(cfg, "dataset", choice if isinstance(choice, str) else None, own)
    placed, typed = provenance.located(own, seen) if node == own else node, "_target_" in cfg.get("dataset", {})
    key = strict_json(placed)
    try:
        if key not in built:
            built[key] = build({"dataset": placed}, "dataset") if typed else construct(placed, "dataset", trusted(cfg))
    except ConfigError:
        raise
    except (ValueError, OSError) as error:
        raise ConfigError(
            f"{error}; these are the data of the checkpoint: say where they lie now, dataset.path=<folder>, or give others "
            "with dataset=<option>"
        ) from error
    data = built[key]
    shape, names = loaded.facts["shape"], loaded.facts["class_names"]
    if list(data.shape) != list(shape):
        raise ConfigError(f"dataset: its examples are of shape {list(data.shape)}, and the model's of {list(shape)}")
    if names and data.class_names and list(data.class_names) != list(names):
        raise ConfigError(f"dataset: its classes are {shown(data.class_names)}, and the model's are {shown(names)}")
    if node == own or not typed:
        compare(data, seen, None if node == own else node.get("path"))
    return data, node


def compare(data: Dataset, seen: dict[str, Any] | None, path: str | None) -> None:
    """Holds data against the record of those that a checkpoint was trained on; says what differs on stderr.

    Arguments:
        path: where the checkpoint's own data are said to lie now, None = where they lay.

    Raises:
        ConfigError: others lie there.
    """
    if (changed := provenance.changes(seen, data)) is None:
        return
    if path is not None:
        raise ConfigError(
            f"dataset.path={path} does not hold the data of this checkpoint: {provenance.described(changed)}; to measure on "
            "others, choose them with dataset=<option> too"
        )
    print(f"the data have changed since the training: {provenance.described(changed)}", file=sys.stderr)


def shown(names: Sequence[str], most: int = 6) -> str:
    """The first names and their number."""
    return f"{', '.join(names[:most])}{', ...' if len(names) > most else ''} ({len(names)})"


def exact(cfg: DictConfig, source: Exact, device: torch.device) -> tuple[Subject, dict[str, Any]]:
    """An oracle on exact samples of its law, or, where it is made of data, on a split of them; and its identity.

    Raises:
        ConfigError: more examples than the split has, or than a computer holds.
    """
    identity = {"model": f"oracle {type(source.oracle).__name__}"} | source.identity()
    if "dataset" in cfg:
        config = {"dataset": source.nodes["dataset"]}
        subject = subject_of(cfg, source.model, build(cfg, "dataset"), cfg.split, cfg.n, device, config=config)
        return subject, identity | {"split": cfg.split}
    if cfg.n is not None and cfg.n > MOST:
        raise ConfigError(f"n must be at most 10^7 exact samples, got {cfg.n}")
    rng = torch.Generator().manual_seed(fold(cfg.seed, EXACT))
    x, y = source.oracle.sample(cfg.n or DRAWN, rng)
    data = Dataset(*[Split(x.to(source.dtype), y.cpu())] * 3, class_names=source.class_names)
    subject = subject_of(cfg, source.model, data, "test", None, device, config={"dataset": CONTINUOUS})
    return subject, identity | {"split": "exact samples"}


def subject_of(
    cfg: DictConfig, model: Any, data: Dataset, split: str, n: int | None, device: torch.device,
    checkpoint: Path | None = None, config: dict[str, Any] | None = None,
) -> Subject:  # fmt: skip
    """A subject, told in one line where there is none."""
    try:
        return Subject(model, data, split, n, cfg.seed, cfg.batch_size, device, checkpoint=checkpoint, config=config)
    except ValueError as error:
        raise ConfigError(str(error)) from error
