"""init_from: a training that starts from a trained model."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..checkpoints import store as checkpoints
from ..checkpoints.adapter_files import identify_adapter, is_adapter
from ..config.build import ConfigError
from ..files.weights import hash_weights
from ..nodes.annotations import fits
from ..objectives import Objective
from ..training.ancestry import copy_weights
from .arguments import changed_keys
from .inheritance import inherit_config, take_shape

__all__ = ["Ancestor", "find_ancestor"]

PLACE = {"path": str, "null_class": int, "adapter": str, "adapter_scale": float}  # of init_from as a mapping
INHERITED = ("backbone", "schedule", "objective")  # of the model
FACTS = {"in_channels": "channels", "num_classes": "num_classes", "size": "size"}  # of a backbone -> of a data set
FILLED = ("in_channels", "out_channels", "sample_size", "num_class_embeds", "num_embeds_ada_norm")  # from these facts


class Ancestor(NamedTuple):
    """A trained model that a training starts from.

    Attributes:
        loaded: the model.
        identity: where it is and what it is, for the configuration of the run.
        unused: what the command line chooses and the training does not have, in words; "" = nothing.
    """

    loaded: checkpoints.Loaded
    identity: dict[str, Any]
    unused: str

    def start(self, objective: Objective, class_names: Sequence[str]) -> str:
        """Copies its weights into an objective; returns a line for the log.

        Raises:
            ConfigError: another network.
        """
        facts = self.loaded.facts
        try:
            start = copy_weights(objective.model, self.loaded.model, class_names, facts["class_names"])
        except (AttributeError, ValueError) as error:
            raise ConfigError(f"init_from, trained on examples of shape {facts['shape']}: {error}") from error
        return f"starts from {self.identity['checkpoint']}: {start.describe()}{self.unused}"


def find_ancestor(config: dict[str, Any]) -> tuple[dict[str, Any], Ancestor | None]:
    """The configuration with the network, schedule and objective of init_from, and the model; (config, None) without.

    What the command line sets in them stays, but not what an experiment does; channels, side and classes are those of the
    data. A folder of images is read with the channels and side of the model, unless the command line sets them.

    Raises:
        ConfigError: no such model, or one that cannot be trained further.
    """
    if config.get("init_from") is None:
        return config, None
    place = read_place(config["init_from"])
    path = place.pop("path")
    try:
        file = checkpoints.find(path)
        loaded = checkpoints.load(file, "ema", trust=config["trust"], **place)
        adapter = identify_adapter(place.get("adapter"), place.get("adapter_scale", 1.0))
    except checkpoints.CheckpointError as error:
        alone = f"; it is an adapter: write init_from={{path:<network>,adapter:{path}}}" if is_adapter(path) else ""
        raise ConfigError(f"init_from: {error}{alone}") from error
    config = {**config, "dataset": take_shape(config["dataset"], loaded.facts["shape"])}
    nodes = {key: loaded.config[key] for key in INHERITED}
    check_recipe(config["objective"], nodes["objective"])
    nodes["backbone"] = fit_data(nodes["backbone"], config["dataset"])
    if "p_uncond" in nodes["objective"]:
        nodes["objective"] = {**nodes["objective"], "p_uncond": config["p_uncond"]}
    merged = inherit_config(config, {**config, **nodes}, {}, ignored=["experiment"])
    identity = {"checkpoint": str(file), "sha256": hash_weights(file), "images": loaded.facts["images"]} | adapter
    if loaded.facts.get("origin"):
        identity["origin"] = loaded.facts["origin"]
    merged["ancestry"] = identity
    return merged, Ancestor(loaded, identity, explain_experiment())


def read_place(value: Any) -> dict[str, Any]:
    """The arguments of `checkpoints.store.load` that init_from gives: a path, or a mapping with `path`.

    Raises:
        ConfigError: anything else.
    """
    given = {"path": value} if isinstance(value, str) else value
    if isinstance(given, Mapping):
        given = {name: part for name, part in given.items() if part is not None}
        if "path" in given and all(name in PLACE and fits(part, PLACE[name]) for name, part in given.items()):
            return given
    raise ConfigError(
        "init_from must be a run folder or a folder of diffusers, or {path: <it>, null_class: <row>, adapter: <folder>, "
        f"adapter_scale: <number>}}, got {value!r}"
    )


def check_recipe(chosen: Mapping[str, Any], objective: Mapping[str, Any]) -> None:
    """Raises ConfigError for an experiment with an objective of another class than that of the model."""
    changed = changed_keys()
    ours, theirs = (str(node.get("_target_")).rpartition(".")[2] for node in (chosen, objective))
    if "experiment" in changed and "objective" not in changed and ours != theirs:
        raise ConfigError(
            f"init_from: experiment={changed['experiment'].value()} trains by {ours}, and the model was trained by {theirs}: "
            "choose one with objective=<option>, or leave out experiment"
        )


def explain_experiment() -> str:
    """What is left out of an experiment; "" without one."""
    changed = changed_keys()
    if "experiment" not in changed:
        return ""
    kept = ", ".join(key for key in INHERITED if key not in changed)
    return (
        f"; of experiment={changed['experiment'].value()} all but {kept}, which are those of the model" if kept else ""
    )


def fit_data(backbone: Mapping[str, Any], dataset: Mapping[str, Any]) -> dict[str, Any]:
    """The node of a backbone with the channels, side and classes of a data set."""
    node = dict(backbone)
    for key, fact in FACTS.items():
        if key in node and fact in dataset and not (key == "num_classes" and node.get("conditioning")):
            node[key] = dataset[fact]
    if isinstance(node.get("arguments"), dict):  # a network of diffusers, whose arguments repeat these facts
        node["arguments"] = {key: value for key, value in node["arguments"].items() if key not in FILLED}
        node["null_class"] = None
    return node
