"""A conversion of published weights into a run folder."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..checkpoints.assembly import assemble, check_on_meta
from ..checkpoints.converted import save_converted
from ..checkpoints.validation import check_facts
from ..files.run_folders import create_dir, hash_file, write_atomically
from ..objectives import Objective
from ..runtime.errors import convert_input_errors
from .architecture import Architecture, Network
from .reading import read_metadata, read_tensors
from .weights import ConversionError, PublishedWeights

__all__ = ["ConversionJob"]

MARKS = {  # a tensor that no other families have: these families, and their options
    "out.2.c_proj.weight": (("ADM's classifier",), "architecture=adm_classifier"),
    "output_blocks.0.0.in_layers.0.weight": (("ADM",), "architecture=adm"),
    "x_embedder.proj.weight": (("DiT", "SiT"), "architecture=dit, architecture=sit"),
}


@dataclass(frozen=True)
class ConversionJob:
    """A conversion, ready to run; nothing is written before `run`.

    Arguments:
        architecture: family of the weights.
        source: their file.
        target: run folder to write.
        name: of the run.
        class_names: one per class; None = the numbers of the classes.
    """

    architecture: Architecture
    source: Path
    target: Path
    name: str
    class_names: Sequence[str] | None = None

    def run(self) -> Path:
        """Writes the run folder, at once or not at all; returns it.

        Raises:
            InputError: weights that are no such network, a damaged file, a folder that exists or cannot be written.
        """
        with convert_input_errors("source"):
            network, origin = self.read()
        if part := origin.get("part"):
            print(f"the weights are the part {part} of {self.source}", file=sys.stderr)
        for note in network.notes:
            print(note, file=sys.stderr)
        config = self.configure(network)
        with convert_input_errors("class_names"):
            facts = {"class_names": self.name_classes(network.classes), "shape": network.shape}
        with convert_input_errors("architecture"):
            objective = self.assemble(network, config, facts)

        def fill(folder: Path) -> None:
            (folder / "checkpoints").mkdir()
            save_converted(folder / "checkpoints", objective, config, facts, origin)
            text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
            write_atomically(folder / "config.yaml", lambda path: path.write_text(text, encoding="utf-8"))

        with convert_input_errors("target"):
            create_dir(self.target, fill)
        print(self.describe(network, bool(config["backbone"].get("learned_variance"))), file=sys.stderr)
        return self.target

    def read(self) -> tuple[Network, dict[str, Any]]:
        """The network in the file, and where it comes from.

        Raises:
            ConversionError: a file that cannot be read, or weights of another network.
        """
        tensors, part = read_tensors(self.source)
        weights = PublishedWeights(tensors, self.architecture.family, read_metadata(self.source))
        try:
            network = self.architecture.convert(weights)
            weights.finish()
        except ConversionError as error:
            families, options = next((MARKS[name] for name in MARKS if name in tensors), ((), ""))
            other = families and self.architecture.family not in families
            hint = f"; its tensors have the names of {' or '.join(families)} ({options})" if other else ""
            raise ConversionError(f"{self.source}: {error}{hint}") from error
        origin = {"family": self.architecture.family, "file": self.source.name, "sha256": hash_file(self.source)}
        return network, origin | ({"part": part} if part else {})

    def describe(self, network: Network, learned_variance: bool) -> str:
        """What was found in the file, so that the user sees whether it is the network that was meant."""
        parameters = sum(value.numel() for value in network.tensors.values())
        classes = f"{network.classes} classes" if network.classes else "no classes"
        return (
            f"{self.architecture.family}: {parameters / 1e6:.4g} M parameters, examples {network.shape}, {classes}"
            f"{', learned variance' if learned_variance else ''}"
        )

    def configure(self, network: Network) -> dict[str, Any]:
        """The configuration of the run."""
        nodes = (network.dataset, network.backbone, network.schedule, network.objective)
        return {"name": self.name, **dict(zip(("dataset", "backbone", "schedule", "objective"), nodes))}

    def name_classes(self, count: int) -> list[str]:
        """The class names. Raises ValueError for another number of names than classes."""
        names = map(str, range(count)) if self.class_names is None else self.class_names
        found = list(names)
        if len(found) != count:
            raise ValueError(f"there are {len(found)} names, and the network has {count} classes")
        return found

    def assemble(self, network: Network, config: dict[str, Any], facts: dict[str, Any]) -> Objective:
        """The objective with the weights of the network, checked as a checkpoint is when it is loaded."""
        metadata = {"config": config, "images": 0, **facts}
        check_facts(metadata)
        state = {f"model.backbone.{name}": value for name, value in network.tensors.items()}
        check_on_meta(state, metadata, ())
        objective = assemble(config, (), "meta")
        objective.load_state_dict(state, assign=True)  # without a copy
        return objective
