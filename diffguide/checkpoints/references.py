"""Trained models that stand in a configuration as the folder of their run: guidance.classifier=outputs/train/... .

Where a constructor asks for a model (a `Denoiser`, a `Classifier`: what has `loadable`) and the configuration has a text, the
text is a run folder or a checkpoint file. It is loaded as any checkpoint: only diffguide's own classes and what is trusted.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..files import safetensors as archives
from ..files.run_folders import hash_file
from ..guidance import Unguided
from ..models.protocols import Energy
from ..nodes.annotations import is_stored_model, parameter_hints
from . import store as checkpoints
from .allowlist import resolve

__all__ = ["Guide", "check_guides", "check_steered", "with_guides"]


class Guide(NamedTuple):
    """A model in a configuration: its key, its file, and what the file says about the data that it was trained on."""

    key: str
    file: Path
    sha256: str
    shape: Sequence[int]
    class_names: Sequence[str]

    def identity(self) -> dict[str, str]:
        """For the manifest."""
        return {"checkpoint": str(self.file), "checkpoint_sha256": self.sha256}


def with_guides(node: Any, key: str, device, trust: Sequence[str]) -> tuple[Any, list[Guide]]:
    """A copy of a node in which whatever names a run where a model is wanted is a node that loads it, and these runs.

    Arguments:
        node: of a resolved configuration.
        key: its name.
        device: where the models go.
        trust: dotted names of classes outside diffguide that the checkpoints may build.

    Raises:
        CheckpointError: no checkpoint there, or one that says what no run of ours says; names the key.
    """
    if isinstance(node, list):
        parts = [with_guides(part, f"{key}.{index}", device, trust) for index, part in enumerate(node)]
        return [part for part, _ in parts], [guide for _, found in parts for guide in found]
    if not isinstance(node, dict):
        return node, []
    hints, result, guides = hints_of(node), {}, []
    for name, value in node.items():
        if isinstance(value, str) and value != "???" and is_stored_model(hints.get(name)):
            guide = find_guide(value, f"{key}.{name}")
            result[name] = {
                "_target_": "diffguide.load",
                "path": str(guide.file),
                "device": str(device),
                "trust": trust,
            }
            guides.append(guide)
        else:
            result[name], found = with_guides(value, f"{key}.{name}", device, trust)
            guides += found
    return result, guides


def hints_of(node: dict) -> dict[str, Any]:
    """The annotations of what a node calls; none where that cannot be seen, which building it reports."""
    try:
        return parameter_hints(resolve(node["_target_"], "")) or {}
    except Exception:  # whatever importing a user's module may raise
        return {}


def find_guide(path: str, key: str) -> Guide:
    """The run that a text names."""
    try:
        file = checkpoints.find(path)
        facts = archives.read_metadata(file)
        if "config" not in facts:
            raise checkpoints.CheckpointError(f"{file} holds no configuration, so it is no checkpoint")
        checkpoints.check_facts(facts)
        return Guide(key, file, hash_file(file), facts["shape"], facts["class_names"])
    except (checkpoints.CheckpointError, OSError) as error:
        raise checkpoints.CheckpointError(f"{key}: {error}") from error


def check_guides(guides: Sequence[Guide], shape: Sequence[int], class_names: Sequence[str]) -> None:
    """Holds the data that guides were trained on against those of the model that they are to steer.

    Arguments:
        shape: of one of its examples.
        class_names: its classes, none where it has no classes.

    Raises:
        ValueError: another shape, or other classes; names both sides.
    """
    for guide in guides:
        if list(guide.shape) != list(shape):
            raise ValueError(
                f"{guide.key} was trained on examples of shape {list(guide.shape)}, and this model makes {list(shape)}"
            )
        if class_names and guide.class_names and list(guide.class_names) != list(class_names):
            raise ValueError(
                f"{guide.key} knows {len(guide.class_names)} classes ({list_names(guide.class_names)}), and this model "
                f"{len(class_names)} ({list_names(class_names)})"
            )


def check_steered(model: Any, node: Any) -> bool:
    """Whether a model is an energy, which no guidance wraps: its classes are its guidance.

    Arguments:
        node: of the guidance.

    Raises:
        ValueError: an energy with guidance.
    """
    target = node.get("_target_") if isinstance(node, dict) else None
    if isinstance(model, Energy) and (target is None or resolve(target, "guidance") is not Unguided):
        raise ValueError(
            f"guidance steers a denoiser, and a {type(model).__name__} is an energy, which follows its labels by itself: take "
            "guidance=none"
        )
    return isinstance(model, Energy)


def list_names(names: Sequence[str], most: int = 6) -> str:
    """The first names."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
