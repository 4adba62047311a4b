"""Resuming a run: its configuration, with the changes of the command line that are allowed.

`resume=<run>` alone continues a run with the configuration in its folder. A node that differs from the one of the command
line is built only if it is diffguide's own (`validate_config`). The optimiser is always that of the command line.
"""

import json
import re
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import AliasEvent, YAMLError, parse

from ..checkpoints import data_record as provenance
from ..checkpoints import store as checkpoints
from ..checkpoints.adapter_files import identify_adapter
from ..checkpoints.allowlist import ROLES, validate_values
from ..config.build import ConfigError
from ..config.files import to_plain
from ..config.type_checks import check_types
from ..files.run_folders import strict_json
from ..files.shards import START_FILE
from ..files.weights import hash_weights
from ..nodes.old_names import update_saved_config
from ..runtime.precision import AUTO
from .inheritance import inherit_config
from .model_choice import checkpoint_paths
from .resume_policy import GENERATION, TRAINING, check_unchanged, resume_error, training_changes
from .settings import LATER

__all__ = ["Begun", "Resumed", "find_evaluation", "find_samples", "find_training"]

ORACLE_KEYS = ("oracle", "schedule", "dataset")  # of the run of an oracle
MAX_CONFIG_CHARACTERS = 10**6


class Resumed(NamedTuple):
    """A training run to continue.

    Arguments:
        folder: of the run.
        checkpoint: to continue from, None = the run has none yet.
        note: line for metrics.jsonl with what changes, None = nothing.
        data: record of the training data, None = there is none.
        class_names: of the training data.
    """

    folder: Path
    checkpoint: Path | None
    note: dict[str, Any] | None
    data: dict[str, Any] | None = None
    class_names: tuple[str, ...] = ()


class Begun(NamedTuple):
    """A sampling or evaluation run to continue.

    Arguments:
        folder: of the run.
        file: its checkpoint, None = an oracle.
        header: content of its START_FILE, None = the run is finished.
    """

    folder: Path
    file: Path | None
    header: dict[str, Any] | None


def saved_config(folder: Path, keys: Collection[str], optional: Collection[str]) -> dict[str, Any]:
    """The resolved configuration in a run folder.

    Arguments:
        keys: root keys of this command, which it must have.
        optional: keys that only some runs have.

    Raises:
        ConfigError: no run folder, or a configuration that diffguide did not write.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise resume_error(f"{folder} is no run folder such as outputs/train/digits/v001: it has no config.yaml")
    try:
        if path.stat().st_size > MAX_CONFIG_CHARACTERS:
            raise resume_error(f"{path} is not what diffguide writes: it is too long")
        text = path.read_text(encoding="utf-8")
        if "*" in text and any(isinstance(event, AliasEvent) for event in parse(text)):  # which may expand to gigabytes
            raise resume_error(f"{path} is not what diffguide writes: it has aliases")
        config = to_plain(OmegaConf.load(path))
        validate_values(config, "config.yaml")
    except ConfigError:
        raise
    except (OmegaConfBaseException, YAMLError, OSError, ValueError, RecursionError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise resume_error(f"{path} cannot be read: {reason}") from error
    if not isinstance(config, dict) or (set(config) ^ set(keys)).difference(optional):
        raise resume_error(f"{path} does not have the keys of this command: is it a run of another one?")
    for key in ROLES:
        if key in config and not isinstance(config[key], dict):
            raise resume_error(f"{path} has no node {key}, but {config[key]!r}")
    return update_saved_config(config)


def find_training(config: Mapping[str, Any]) -> tuple[dict[str, Any], Resumed]:
    """The configuration and the newest checkpoint of the run to continue.

    Raises:
        ConfigError: no such run, a finished run, or a change of a fixed key.
    """
    folder = run_folder(config["resume"], "outputs/train/digits/v001")
    saved = saved_config(folder, config.keys(), ["p_uncond", "ce_weight", "init_from", "ancestry", "first_stage"])
    merged = inherit_config(config, saved, TRAINING)
    merged["backbone"] = keep_latent_sides(merged, saved)
    if merged["engine"].get("precision") == AUTO:  # chosen when the run began
        merged["engine"]["precision"] = saved["engine"].get("precision")
    if merged["dry_run"]:
        raise ConfigError("dry_run cannot be combined with resume: remove one of them")
    files = checkpoints.list_checkpoints(folder / "checkpoints") if (folder / "checkpoints").is_dir() else []
    if not files:
        check_unchanged(folder, saved, merged, TRAINING)
        print(f"{folder} has no checkpoint: training starts at 0 images", file=sys.stderr)
        return merged, Resumed(folder, None, None, provenance.read_record(folder))
    try:
        facts = checkpoints.read(files[-1])[1]
        checkpoints.read(files[-1].with_suffix(".optimizer.safetensors"))
    except checkpoints.CheckpointError as error:
        raise resume_error(f"{error}; move {files[-1]} away to continue from the checkpoint before") from error
    for before in (saved, facts["config"]):
        check_unchanged(folder, before, merged, TRAINING)
    check_types(merged["training"], "training")
    images = merged["training"]["images"]
    if facts["images"] >= images:
        raise ConfigError(f"resume: {folder} has its {facts['images']} images; set more training.images")
    changes = training_changes(facts["config"]["training"], merged["training"])
    unused = [key for key in changes if key.startswith("training.extend")]
    if unused and "training.images" not in changes:
        raise resume_error(
            f"{unused[0]} has an effect only with other training.images, and this run has {images} as before"
        )
    note = {"images": facts["images"], "changed": changes} if changes else None
    seen = provenance.read_seen_data(folder, facts)
    return merged, Resumed(folder, files[-1], note, seen, tuple(facts["class_names"]))


def keep_latent_sides(merged: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    """The network of a run, which in latents has their channels and side where those of the pictures are composed."""
    node, facts = dict(merged["backbone"]), {"in_channels": "channels", "size": "size"}
    if "first_stage" in saved and "first_stage" in merged:
        for key, fact in facts.items():
            if key in node and key in saved["backbone"] and node[key] == merged["dataset"].get(fact):
                node[key] = saved["backbone"][key]
    return node


def find_samples(config: Mapping[str, Any]) -> tuple[dict[str, Any], Begun]:
    """The sampling run to continue, see `find_begun`."""
    return find_begun(config, "outputs/sample/digits/v001", "samples.npz", f"shards/{START_FILE}", "sampled")


def find_evaluation(config: Mapping[str, Any]) -> tuple[dict[str, Any], Begun]:
    """The evaluation to continue, see `find_begun`."""
    return find_begun(config, "outputs/evaluate/digits/v001", "metrics.json", START_FILE, "evaluated")


def find_begun(
    config: Mapping[str, Any], example: str, last: str, start: str, done: str
) -> tuple[dict[str, Any], Begun]:
    """The configuration of a run to continue, and its beginning.

    Arguments:
        example: of such a folder.
        last: file that a finished run has.
        start: file that is written at the start.
        done: what was done with the checkpoint, for messages.

    Raises:
        ConfigError: no such run, a change of a fixed key, or another checkpoint; the file may have moved.
    """
    folder = run_folder(config["resume"], example)
    later = {key: value for key, value in LATER.items() if key in config}
    saved = {**later, **saved_config(folder, config.keys(), [*ORACLE_KEYS, *LATER, "first_stage"])}
    merged = inherit_config(config, saved, GENERATION)
    checkpoint_paths(merged, several=False)  # raises for a value that is no path
    check_unchanged(folder, saved, merged, GENERATION)
    if (folder / last).exists():
        return merged, Begun(folder, None, None)
    return merged, read_start(folder, folder / start, saved, merged, done)


def read_start(folder: Path, path: Path, saved: dict[str, Any], merged: dict[str, Any], done: str) -> Begun:
    """Reads the START_FILE of a run, and compares its checkpoint, or its oracle, with the configuration.

    Raises:
        ConfigError: a missing or invalid file, another oracle, or another checkpoint.
    """
    try:
        if not path.is_file():  # opening a pipe would block
            raise FileNotFoundError("no such file")
        header = json.loads(path.read_text(encoding="utf-8"))
        if "oracle" in merged:
            header_nodes = select_oracle(update_saved_config(header))
            if header_nodes != json.loads(strict_json(select_oracle(merged))):
                raise ValueError("its oracle, schedule and dataset are not those of config.yaml")
            return Begun(folder, None, header)
        file = header["checkpoint"]
        expected = header["checkpoint_sha256"]
        if not re.fullmatch("[0-9a-f]{64}", expected):
            raise ValueError("its checkpoint_sha256 is not 64 hexadecimal digits")
        file = checkpoints.find(merged["checkpoint"] if merged["checkpoint"] != saved["checkpoint"] else file)
        digest = hash_weights(file)
        adapter = identify_adapter(merged.get("adapter"), merged.get("adapter_scale", 1)).get("adapter_sha256")
        if adapter != header.get("adapter_sha256"):
            raise checkpoints.CheckpointError(f"adapter={merged['adapter']} has changed since {folder} began")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, checkpoints.CheckpointError):
            raise ConfigError(f"checkpoint: {error}") from error
        raise ConfigError(f"resume: {path} is not what diffguide writes: {error!r}") from error
    if digest != expected:
        raise ConfigError(
            f"resume: {folder} was {done} from a checkpoint with SHA-256 {expected[:12]}, and {file} has {digest[:12]}"
        )
    return Begun(folder, file, header)


def select_oracle(nodes: Mapping[str, Any]) -> dict[str, Any]:
    """The nodes of an oracle in a configuration or in a header."""
    return {key: nodes[key] for key in ORACLE_KEYS if key in nodes}


def run_folder(resume: Any, example: str) -> Path:
    """The folder that `resume` names.

    Raises:
        ConfigError: it does not exist.
    """
    if not isinstance(resume, str):
        raise ConfigError(f"resume must be a run folder such as {example}, got {resume!r}")
    folder = Path(resume).expanduser()
    if not folder.exists():
        raise ConfigError(f"resume: no run at {folder}: give a folder such as {example}")
    return folder
