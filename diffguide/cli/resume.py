"""Continuing a run: its own configuration, with what this command line changes, where it may.

The configuration comes from the run folder, so `resume=<run>` alone continues it; what of it does not equal what the
command line composes today is built only if it is diffguide's own (`validate_config`). The optimiser is always today's.
"""

import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import AliasEvent, YAMLError, parse

from ..checkpoints import data_record as provenance
from ..checkpoints import store as checkpoints
from ..checkpoints.allowlist import ROLES
from ..config.build import ConfigError
from ..config.files import plain
from ..files.run_folders import hash_file, strict_json
from ..files.shards import START_FILE
from ..nodes.old_names import updated
from .resume_policy import GENERATION, TRAINING, check_unchanged, refusal, training_changes
from .retyped import inherit, trusted

__all__ = ["Begun", "Resumed", "find_training", "find_evaluation", "find_samples", "inherit", "saved_config", "trusted"]

ORACLE_KEYS = ("oracle", "schedule", "dataset")  # what a run of an oracle has in place of a checkpoint
MAX_CONFIG_CHARACTERS = 10**6


class Resumed(NamedTuple):
    """folder: of the run; checkpoint: to continue from, None = it had none yet; note: for metrics.jsonl, what changes.

    data: the record of the data that the checkpoint has seen, None = it has none; class_names: of those data.
    """

    folder: Path
    checkpoint: Path | None
    note: dict[str, Any] | None
    data: dict[str, Any] | None = None
    class_names: tuple[str, ...] = ()


class Begun(NamedTuple):
    """folder: of a run; file: its checkpoint, None = an oracle; header: its START_FILE file, None = it is finished."""

    folder: Path
    file: Path | None
    header: dict[str, Any] | None


def saved_config(folder: Path, today: dict[str, Any], optional: Collection[str]) -> dict[str, Any]:
    """The resolved configuration in a run folder.

    Arguments:
        today: what the command composes, whose keys it must have.
        optional: keys that only some runs have.

    Raises:
        ConfigError: no run folder, or a configuration that diffguide did not write.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise refusal(f"{folder} is no run folder such as outputs/train/digits/v001: it has no config.yaml")
    try:
        if path.stat().st_size > MAX_CONFIG_CHARACTERS:
            raise refusal(f"{path} is not what diffguide writes: it is too long")
        text = path.read_text(encoding="utf-8")
        if "*" in text and any(isinstance(event, AliasEvent) for event in parse(text)):  # a few lines of them may mean gigabytes
            raise refusal(f"{path} is not what diffguide writes: it has aliases")
        config = plain(OmegaConf.load(path))
        checkpoints.validate_values(config, "config.yaml")
    except ConfigError:
        raise
    except (OmegaConfBaseException, YAMLError, OSError, ValueError, RecursionError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise refusal(f"{path} cannot be read: {reason}") from error
    if not isinstance(config, dict) or (set(config) ^ set(today)).difference(optional):
        raise refusal(f"{path} does not have the keys of this command: is it a run of another one?")
    for key in ROLES:
        if key in config and not isinstance(config[key], dict):
            raise refusal(f"{path} has no node {key}, but {config[key]!r}")
    return updated(config)


def find_training(cfg: DictConfig) -> tuple[DictConfig, Resumed]:
    """The configuration and the newest checkpoint of the run to continue.

    Raises:
        ConfigError: nothing there, nothing left to do, or a change of what was computed so far.
    """
    folder = run_folder(cfg, "outputs/train/digits/v001")
    saved = saved_config(folder, plain(cfg), ["p_uncond", "ce_weight"])
    merged = inherit(cfg, saved, TRAINING)
    if merged.dry_run:
        raise ConfigError("dry_run looks at a run that is yet to begin: leave resume out")
    today = plain(merged)
    files = checkpoints.list_checkpoints(folder / "checkpoints") if (folder / "checkpoints").is_dir() else []
    metadata = None
    if files:
        try:
            metadata = checkpoints.read(files[-1])[1]
            checkpoints.read(files[-1].with_suffix(".optimizer.safetensors"))
        except checkpoints.CheckpointError as error:
            raise refusal(f"{error}; with {files[-1]} moved away the run continues from the one before") from error
    for config in (saved, *([metadata["config"]] if metadata else [])):
        check_unchanged(folder, config, today, TRAINING)
    if metadata is None:
        return merged, Resumed(folder, None, None, provenance.read_record(folder))
    if metadata["images"] >= merged.training.images:
        raise ConfigError(f"resume: {folder} has its {metadata['images']} images; ask for more training.images")
    changed = training_changes(metadata["config"]["training"], today["training"])
    if "training.images" not in changed and (unused := [key for key in changed if key.startswith("training.extend")]):
        raise refusal(
            f"{unused[0]} says what a change of training.images does, and this run has {merged.training.images} as before"
        )
    note = {"images": metadata["images"], "changed": changed} if changed else None
    seen = provenance.read_seen_data(folder, metadata)
    return merged, Resumed(folder, files[-1], note, seen, tuple(metadata["class_names"]))


def find_samples(cfg: DictConfig) -> tuple[DictConfig, Begun]:
    """The configuration and the beginning of the sampling run to continue; as `find_begun`."""
    return find_begun(cfg, "outputs/sample/digits/v001", "samples.npz", f"shards/{START_FILE}", "sampled")


def find_evaluation(cfg: DictConfig) -> tuple[DictConfig, Begun]:
    """The configuration and the beginning of the evaluation to continue; as `find_begun`."""
    return find_begun(cfg, "outputs/evaluate/digits/v001", "metrics.json", START_FILE, "evaluated")


def find_begun(cfg: DictConfig, example: str, last: str, start: str, done: str) -> tuple[DictConfig, Begun]:
    """The configuration and the beginning of the run to continue.

    Arguments:
        example: of such a folder.
        last: the file that a finished run has.
        start: the file that says how it began.
        done: what was done to the checkpoint.

    Raises:
        ConfigError: nothing there, or a change of what decides the result; the checkpoint may lie elsewhere, if it is the same.
    """
    folder = run_folder(cfg, example)
    saved = saved_config(folder, plain(cfg), ORACLE_KEYS)
    merged = inherit(cfg, saved, GENERATION)
    check_unchanged(folder, saved, plain(merged), GENERATION)
    if (folder / last).exists():
        return merged, Begun(folder, None, None)
    return merged, read_start(folder, folder / start, saved, merged, done)


def read_start(folder: Path, path: Path, saved: dict[str, Any], merged: DictConfig, done: str) -> Begun:
    """What the START_FILE file of a run says; its checkpoint, or its law, must be today's.

    Raises:
        ConfigError: it is not there, says something else, or the checkpoint has changed.
    """
    try:
        if not path.is_file():  # opening a pipe would wait for ever
            raise FileNotFoundError("no such file")
        header = json.loads(path.read_text(encoding="utf-8"))
        if "oracle" in merged:
            today = plain(merged)
            began, now = (
                {key: nodes[key] for key in ORACLE_KEYS if key in nodes} for nodes in (updated(header), today)
            )
            if began != json.loads(strict_json(now)):
                raise ValueError("its oracle, schedule and dataset are not those of config.yaml")
            return Begun(folder, None, header)
        file, expected = header["checkpoint"], header["checkpoint_sha256"]
        if not re.fullmatch("[0-9a-f]{64}", expected):
            raise ValueError("its checkpoint_sha256 is not 64 hexadecimal digits")
        file = checkpoints.find(merged.checkpoint if merged.checkpoint != saved["checkpoint"] else file)
        digest = hash_file(file)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, checkpoints.CheckpointError):
            raise ConfigError(f"checkpoint: {error}") from error
        raise ConfigError(f"resume: {path} is not what diffguide writes: {error!r}") from error
    if digest != expected:
        raise ConfigError(
            f"resume: {folder} was {done} from a checkpoint with SHA-256 {expected[:12]}, and {file} has {digest[:12]}"
        )
    return Begun(folder, file, header)


def run_folder(cfg: DictConfig, example: str) -> Path:
    """The existing folder that `resume` names.

    Raises:
        ConfigError: there is none.
    """
    if not isinstance(cfg.resume, str):
        raise ConfigError(f"resume must be a run folder such as {example}, got {cfg.resume!r}")
    folder = Path(cfg.resume).expanduser()
    if not folder.exists():
        raise ConfigError(f"resume: no run at {folder}: give a folder such as {example}")
    return folder
