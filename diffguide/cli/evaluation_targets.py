"""What diffguide-eval measures: a trained model on its data, or an oracle on exact samples of its distribution."""

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra.core.hydra_config import HydraConfig

from ..checkpoints import data_record as provenance
from ..checkpoints import store as checkpoints
from ..checkpoints.adapter_files import identify_adapter
from ..checkpoints.allowlist import construct
from ..checkpoints.explanations import explain_untrained
from ..checkpoints.first_stages import open_latents
from ..checkpoints.references import list_names
from ..config.build import ConfigError, build
from ..datasets import Dataset, Split
from ..evaluation.metric import EvalContext
from ..files.run_folders import strict_json
from ..files.weights import hash_weights
from ..first_stages.latent_data import DirectLatents
from ..randomness import fold
from ..sampling.sources import OracleSource
from .inheritance import inherit_node, take_shape
from .settings import EvaluationSettings

__all__ = ["Target", "checkpoint_target", "oracle_target"]

CONTINUOUS = {"quantization_levels": 0}  # the dataset node of exact samples, which are not quantized
DEFAULT_EXACT_SAMPLES = 2000
MAX_EXACT_SAMPLES = 10**7
EXACT_SAMPLES = 5  # purpose of the seed


class Target(NamedTuple):
    """A model on data.

    Arguments:
        context: to measure.
        identity: what identifies model and data in metrics.json.
        name: default name of the run.
        note: why its figures are meaningless, None = they are not.
    """

    context: EvalContext
    identity: dict[str, Any]
    name: str
    note: str | None = None


def checkpoint_target(
    settings: EvaluationSettings,
    path: str | Path,
    dataset: dict[str, Any] | None,
    device: torch.device,
    opened: dict[str, Dataset],
) -> Target:
    """The model of a checkpoint on its data, or on another data set.

    Arguments:
        dataset: node of the command line, None = the data of the checkpoint.
        opened: data sets by their nodes; a new one is added.

    Raises:
        ConfigError: a checkpoint that cannot be loaded, missing data, or data that do not fit the model.
    """
    try:
        file = checkpoints.find(path)
        adapter, scale = settings.adapter, settings.adapter_scale
        loaded = checkpoints.load(file, settings.weights, device, settings.trust, settings.null_class, adapter, scale)
        digest, adapted = hash_weights(file), identify_adapter(adapter, scale)
    except checkpoints.CheckpointError as error:
        raise ConfigError(f"checkpoint: {error}") from error
    run = file.parent.parent if file.parent.name == "checkpoints" else file
    seen = provenance.read_seen_data(run, loaded.facts)
    data, node = open_evaluation_data(loaded, dataset, settings.trust, opened, seen)
    try:
        space = open_latents(loaded.config, loaded.facts, file, settings.trust)
    except checkpoints.CheckpointError as error:
        raise ConfigError(f"checkpoint: {error}") from error
    identity = {
        "model": "/".join(run.parts[-2:]),
        "checkpoint": str(file),
        "checkpoint_sha256": digest,
        "weights": settings.weights,
        **adapted,
        "images": loaded.facts["images"],
        "split": settings.split,
        "dataset": node,
        "training_seed": loaded.config.get("seed"),
        "configuration": hash_without_seed(loaded.config),
    }
    if space is not None:
        data = DirectLatents(data, space.to(device))
        identity["first_stage"] = space.sha256
    context = build_context(loaded.model, data, settings, device, loaded.config | {"dataset": node}, file)
    note = explain_untrained(loaded)
    return Target(context, identity, loaded.config["name"], note and f"{file}: {note}")


def hash_without_seed(config: Mapping[str, Any]) -> str:
    """A hash of a training configuration without its seed and place: equal for repetitions of a run."""
    place = ("seed", "name", "output_root", "resume", "trust")
    kept = {key: value for key, value in config.items() if key not in place}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def open_evaluation_data(
    loaded: checkpoints.Loaded,
    dataset: dict[str, Any] | None,
    trust: Sequence[str],
    opened: dict[str, Dataset],
    seen: dict[str, Any] | None,
) -> tuple[Dataset, dict[str, Any]]:
    """The data set to measure on, and its node.

    Arguments:
        dataset: node of the command line, None = the data of the checkpoint.
        opened: data sets by their nodes; a new one is added.
        seen: the record of the training data.

    Raises:
        ConfigError: missing data, or data that do not fit the model.
    """
    own = loaded.config["dataset"]
    option = HydraConfig.get().runtime.choices.get("dataset")
    node = inherit_node("dataset", dataset, option if isinstance(option, str) else None, own)
    is_chosen = dataset is not None and "_target_" in dataset
    if is_chosen:
        node = take_shape(node, picture_shape(loaded.facts))
    placed = provenance.locate_data(own, seen) if node == own else node
    if not is_chosen and loaded.facts.get("origin"):
        raise ConfigError("dataset is missing: this model came without its data; give some, dataset=<option>")
    key = strict_json(placed)
    try:
        if key not in opened:
            opened[key] = build(placed, "dataset") if is_chosen else construct(placed, "dataset", trust)
    except ConfigError:
        raise
    except (ValueError, OSError) as error:
        raise ConfigError(
            f"{error}; these are the data of the checkpoint: give their place, dataset.path=<folder>, or other data, "
            "dataset=<option>"
        ) from error
    data = opened[key]
    adopt_class_names(loaded, data)
    check_data(data, loaded.facts)
    if node == own or not is_chosen:
        report_data_changes(data, seen, None if node == own else node.get("path"))
    return data, node


def adopt_class_names(loaded: checkpoints.Loaded, data: Dataset) -> None:
    """Gives a foreign model whose classes have only numbers the names of data with as many classes."""
    numbers = list(map(str, range(len(data.class_names))))
    if loaded.facts.get("origin") and loaded.facts["class_names"] == numbers:
        loaded.facts["class_names"] = list(data.class_names)
        loaded.model.class_names = loaded.facts["class_names"]


def picture_shape(facts: Mapping[str, Any]) -> Sequence[int]:
    """The shape of the data of a model: of its examples, or of the pictures before its first stage."""
    return facts["shape"] if facts.get("first_stage") is None else facts["first_stage"]["image_shape"]


def check_data(data: Dataset, facts: Mapping[str, Any]) -> None:
    """Raises ConfigError for data of another shape or with other classes than those of a model."""
    shape, names = picture_shape(facts), facts["class_names"]
    if list(data.shape) != list(shape):
        raise ConfigError(f"dataset: its examples are of shape {list(data.shape)}, and the model's of {list(shape)}")
    if names and data.class_names and list(data.class_names) != list(names):
        own, learned = (f"{list_names(each)} ({len(each)})" for each in (data.class_names, names))
        more = facts.get("origin") and len(names) == len(data.class_names) + 1
        tip = "; if one of the model's means no class, say null_class=<row>" if more else ""
        raise ConfigError(f"dataset: its classes are {own}, and the model's are {learned}{tip}")


def report_data_changes(data: Dataset, seen: dict[str, Any] | None, path: str | None) -> None:
    """Compares data with the record of the training data; reports differences on stderr.

    Arguments:
        path: new place of the training data, None = the recorded one.

    Raises:
        ConfigError: other data at the new place.
    """
    if (changes := provenance.find_changes(seen, data)) is None:
        return
    if path is not None:
        raise ConfigError(
            f"dataset.path={path} does not hold the data of this checkpoint: {provenance.describe_changes(changes)}; to "
            "measure on others, add dataset=<option>"
        )
    print(f"the data have changed since the training: {provenance.describe_changes(changes)}", file=sys.stderr)


def oracle_target(
    settings: EvaluationSettings, source: OracleSource, data: Dataset | None, device: torch.device
) -> Target:
    """An oracle on exact samples of its distribution, or on a split of the data that it is made of.

    Arguments:
        data: that the oracle is made of, None = it is made of none.

    Raises:
        ConfigError: more examples than the split has, or than memory holds.
    """
    identity = {"model": f"oracle {type(source.oracle).__name__}"} | source.identity()
    if data is not None:
        context = build_context(source.model, data, settings, device, {"dataset": source.nodes["dataset"]})
        identity["split"] = settings.split
    else:
        data = exact_samples(source, settings)
        whole = replace(settings, split="test", n=None)
        context = build_context(source.model, data, whole, device, {"dataset": CONTINUOUS})
        identity["split"] = "exact samples"
    return Target(context, identity, str(HydraConfig.get().runtime.choices.get("oracle")))


def exact_samples(source: OracleSource, settings: EvaluationSettings) -> Dataset:
    """Exact samples of the distribution of an oracle, as every split of a data set.

    Raises:
        ConfigError: too many samples.
    """
    n = DEFAULT_EXACT_SAMPLES if settings.n is None else settings.n
    if n > MAX_EXACT_SAMPLES:
        raise ConfigError(f"n must be at most 10^7 exact samples, got {n}")
    rng = torch.Generator().manual_seed(fold(settings.seed, EXACT_SAMPLES))
    x, y = source.oracle.sample(n, rng)
    samples = Split(x.to(source.dtype), y.cpu())
    return Dataset(samples, samples, samples, class_names=source.class_names)


def build_context(
    model: Any,
    data: Dataset,
    settings: EvaluationSettings,
    device: torch.device,
    config: dict[str, Any],
    file: Path | None = None,
) -> EvalContext:
    """The context of a measurement; `config` is that of the training, `file` the checkpoint."""
    split, n = settings.split, settings.n
    return EvalContext(
        model, data, split, n, settings.seed, settings.batch_size, device, checkpoint=file, config=config
    )
