"""The formats of exported models. Each writes a folder that a user reads without this package."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import safetensors.torch
import torch

from ..checkpoints.store import Loaded
from ..files.run_folders import strict_json, write_atomically
from ..runtime.ranges import check_whole
from .description import describe, write_readme
from .errors import ExportError
from .paths import shorten_paths
from .programs import check_network, fold_for_onnx, input_names, output_names, trace

__all__ = ["Format", "Onnx", "SafeTensors", "TorchExport"]

MAX_SINGLE_FILE = 2**30  # bytes of weights in an ONNX file; protobuf allows 2 GiB


class Format:
    """Base of the formats: format.write(loaded, folder).

    Attributes:
        option: name in the configuration, for messages.
        merges_adapter: whether `write` takes the network with the adapter of a run added to its weights.

    Arguments:
        weights: `ema` (averaged) or `objective` (as trained).

    Raises:
        ValueError: other weights.
    """

    option: ClassVar[str]
    merges_adapter: ClassVar[bool] = True

    def __init__(self, weights: str = "ema"):
        if weights not in ("ema", "objective"):
            raise ValueError(f"weights must be ema (averaged) or objective (as trained), got {weights}")
        self.weights = weights

    def write(self, loaded: Loaded, folder: Path) -> None:
        """Writes the files of a model into an empty folder.

        Raises:
            ExportError: a model that the format does not take; a missing package.
        """
        raise NotImplementedError


class TorchExport(Format):
    """model.pt2: a program of torch.export, which torch alone runs, with any number of rows.

    Arguments:
        weights: as in `Format`.
    """

    option = "torch_export"

    def write(self, loaded: Loaded, folder: Path) -> None:
        model = check_network(loaded.model, self.option)
        program = trace(model, loaded.facts["shape"])
        torch.export.save(program, folder / "model.pt2")
        write_model_json(folder, describe(loaded, self.weights))
        write_readme(folder, self.option, model, loaded.config)


class Onnx(Format):
    """model.onnx: a program for onnxruntime and other engines, with any number of rows.

    Noise levels are computed in float64, one number per row; all else is float32.

    Arguments:
        weights: as in `Format`.
        opset: version of ONNX's operations, at least 18.

    Raises:
        ValueError: a version below 18.
    """

    option = "onnx"

    def __init__(self, weights: str = "ema", opset: int = 20):
        super().__init__(weights)
        self.opset = check_whole("opset", opset, 18)

    def write(self, loaded: Loaded, folder: Path) -> None:
        model = check_network(loaded.model, self.option)
        try:
            import onnx  # noqa: F401
            import onnxscript  # noqa: F401
        except ImportError:
            raise ExportError("to=onnx needs onnx and onnxscript: pip install 'diffguide[onnx]'") from None
        program = fold_for_onnx(trace(model, loaded.facts["shape"]))
        try:
            converted = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=self.opset,
                verbose=False,
                input_names=input_names(model),
                output_names=output_names(model),
            )
        except Exception as error:  # operations without a counterpart
            reason = " ".join(str(error.__cause__ or error).split())[:300]
            raise ExportError(f"ONNX has no counterpart of an operation of this network: {reason}") from error
        assert converted is not None
        for node in converted.model.graph.all_nodes():
            node.metadata_props.clear()  # they have paths of this machine
            node.doc_string = None
        size = sum(value.numel() * value.element_size() for value in model.state_dict().values())
        converted.save(folder / "model.onnx", external_data=size > MAX_SINGLE_FILE)
        write_model_json(folder, describe(loaded, self.weights))
        write_readme(folder, self.option, model, loaded.config)


class SafeTensors(Format):
    """model.safetensors: the network's tensors by the names of its layers; config.json: what builds it, and the convention.

    Arguments:
        weights: as in `Format`.
    """

    option = "safetensors"

    def write(self, loaded: Loaded, folder: Path) -> None:
        network = getattr(loaded.model, "backbone", loaded.model)
        tensors = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
        write_atomically(
            folder / "model.safetensors", lambda path: safetensors.torch.save_file(tensors, path, {"format": "pt"})
        )
        parts = ("dataset", "backbone", "schedule", "objective")
        config = {part: loaded.config[part] for part in parts if part in loaded.config}
        record = describe(loaded, self.weights) | {"configuration": shorten_paths(config)}
        write_model_json(folder, record, "config.json")
        write_readme(folder, self.option, loaded.model, loaded.config)


def write_model_json(folder: Path, record: Mapping[str, Any], name: str = "model.json") -> None:
    """Writes the description of a model; every list of numbers in one line."""
    lines = [f"  {json.dumps(key)}: {strict_json(value)}" for key, value in record.items()]
    (folder / name).write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
