"""Trained models in a configuration, given as the folder of their run: guidance.classifier=outputs/train/... .

Where an argument is annotated with a model (a class with `loadable`, such as `Denoiser` or `Classifier`) and its value is a
text, the text is a run folder, a folder of diffusers or a checkpoint file. It is loaded as every checkpoint: only diffguide's
own and trusted classes. {path: <folder>, null_class: <row>} is a folder of diffusers with a class for no class.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..files import safetensors as archives
from ..files.weights import hash_weights
from ..guidance import Unguided
from ..guidance.potentials.base import tilts_energy
from ..models.protocols import Energy
from ..nodes.annotations import is_stored_model, parameter_hints
from . import store as checkpoints
from .allowlist import resolve
from .diffusers_folder import is_weights, open_folder
from .validation import check_facts

__all__ = ["Guide", "check_guides", "is_energy", "with_guides"]


class Place(NamedTuple):
    """A folder or file of a trained model, and the row of its class table for no class, see `checkpoints.store.load`."""

    path: str
    null_class: int | None


class Guide(NamedTuple):
    """A trained model in a configuration: its key, its file, and the shape and classes of its training data."""

    key: str
    file: Path
    sha256: str
    shape: Sequence[int]
    class_names: Sequence[str]

    def identity(self) -> dict[str, str]:
        """Its entry in the manifest."""
        return {"checkpoint": str(self.file), "checkpoint_sha256": self.sha256}


def with_guides(node: Any, key: str, device, trust: Sequence[str]) -> tuple[Any, list[Guide]]:
    """Replaces every run folder that stands for a model by a node that loads the model.

    Arguments:
        node: of a resolved configuration.
        key: name of the node.
        device: of the models.
        trust: dotted names of classes outside diffguide that the checkpoints may build.

    Returns a copy of the node, and the models in it.

    Raises:
        CheckpointError: a missing or invalid checkpoint; names the key.
    """
    if isinstance(node, list):
        parts = [with_guides(part, f"{key}.{index}", device, trust) for index, part in enumerate(node)]
        return [part for part, _ in parts], [guide for _, found in parts for guide in found]
    if not isinstance(node, dict):
        return node, []
    hints, result, guides = hints_of(node), {}, []
    for name, value in node.items():
        if value != "???" and is_stored_model(hints.get(name)) and (place := read_place(value, f"{key}.{name}")):
            guide = find_guide(place, f"{key}.{name}")
            load = {"path": str(guide.file), "device": str(device), "trust": trust, "null_class": place.null_class}
            result[name] = {"_target_": "diffguide.load", **load}
            guides.append(guide)
        else:
            result[name], found = with_guides(value, f"{key}.{name}", device, trust)
            guides += found
    return result, guides


def hints_of(node: dict) -> dict[str, Any]:
    """The annotations of the arguments of a node; {} where its class cannot be imported, which building it reports."""
    try:
        return parameter_hints(resolve(node["_target_"], "")) or {}
    except Exception:  # importing a user's module may raise anything
        return {}


def read_place(value: Any, key: str) -> Place | None:
    """The place that a value names: a text, or a mapping with `path`; None for any other value and for a node.

    Raises:
        CheckpointError: a mapping with other names, or with values of another type.
    """
    if isinstance(value, str):
        return Place(value, None)
    if not isinstance(value, dict) or "path" not in value or "_target_" in value:
        return None
    path, row = value["path"], value.get("null_class")
    if (
        not isinstance(path, str)
        or (row is not None and type(row) is not int)
        or not value.keys() <= set(Place._fields)
    ):
        raise checkpoints.CheckpointError(
            f"{key} must be a folder, or {{path: folder, null_class: row}} for a folder of diffusers, got {value}"
        )
    return Place(path, row)


def find_guide(place: Place, key: str) -> Guide:
    """Reads the facts of the checkpoint at a place."""
    try:
        file = checkpoints.find(place.path)
        foreign = open_folder(file, place.null_class)
        facts = archives.read_metadata(file) if foreign is None else foreign.metadata
        if "config" not in facts:
            raise checkpoints.CheckpointError(f"{file} holds no configuration, so it is no checkpoint")
        check_facts(facts)
        return Guide(key, file, hash_weights(file), facts["shape"], facts["class_names"])
    except (checkpoints.CheckpointError, OSError) as error:
        raise checkpoints.CheckpointError(f"{key}: {error}") from error


def check_guides(guides: Sequence[Guide], shape: Sequence[int], class_names: Sequence[str]) -> None:
    """Checks that guides were trained on examples of the shape and classes of the guided model.

    Arguments:
        shape: of one example of the guided model.
        class_names: of the guided model.

    Raises:
        ValueError: another shape, or other classes; names both.
    """
    for guide in guides:
        if list(guide.shape) != list(shape):
            raise ValueError(
                f"{guide.key} was trained on examples of shape {list(guide.shape)}, but this model has {list(shape)}"
            )
        if class_names and guide.class_names and list(guide.class_names) != list(class_names):
            raise ValueError(
                f"{guide.key} has {len(guide.class_names)} classes ({list_names(guide.class_names)}), but this model has "
                f"{len(class_names)} ({list_names(class_names)}){suggest_null_class(guide, len(class_names))}"
            )


def suggest_null_class(guide: Guide, count: int) -> str:
    """What to write where one of the classes of a guide may mean no class; "" where it cannot."""
    if not is_weights(guide.file) or len(guide.class_names) != count + 1:
        return ""
    return f"; if one of its rows means no class, write '{guide.key}={{path:<folder>,null_class:<row>}}'"


def is_energy(model: Any, node: Any) -> bool:
    """Whether a model is an energy that no guidance changes: its labels are its guidance.

    Arguments:
        node: of the guidance.

    Raises:
        ValueError: an energy with guidance other than by a potential.
    """
    if not isinstance(model, Energy):
        return False
    target = node.get("_target_") if isinstance(node, dict) else None
    guidance = None if target is None else resolve(target, "guidance")
    if tilts_energy(guidance):
        return False
    if guidance is not Unguided:
        raise ValueError(
            f"guidance needs a denoiser, and a {type(model).__name__} is an energy, which uses its labels without it: use "
            "guidance=none, or guidance=potential"
        )
    return True


def list_names(names: Sequence[str], most: int = 6) -> str:
    """The first names, for a message."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
