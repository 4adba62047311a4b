"""Exported programs: written into folders, run, and compared with the model."""

import re
from pathlib import Path

import numpy as np
import torch

import diffguide
from diffguide.checkpoints.store import Loaded
from diffguide.export.formats import Onnx, TorchExport

PRIVATE = (str(Path(diffguide.__file__).parents[1]), str(Path(torch.__file__).parents[1]))  # in stack traces


def expected(model, x, log_snr, y=None) -> list[torch.Tensor]:
    """By the denoiser itself, at the time of the log-SNR."""
    prediction = model(x, model.schedule.t_of(log_snr.double()), y)
    return [*prediction, *([prediction.v] if model.learned_variance else [])]


def compare(found, wanted, message: str) -> None:
    """The outputs of a program with those of the model, to 1e-5 of the largest."""
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * float(b.abs().max()), err_msg=message)


def written(folder: Path, model: Loaded, form) -> Path:
    folder.mkdir(parents=True)
    form.write(model, folder)
    for file in folder.iterdir():
        assert not [place for place in PRIVATE if place.encode() in file.read_bytes()], file
    return folder


def run_torch(folder: Path):
    return torch.export.load(folder / "model.pt2").module()


def run_onnx(folder: Path):
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    names = [part.name for part in session.get_inputs()]
    return lambda *given: session.run(None, {name: part.numpy() for name, part in zip(names, given, strict=True)})


FORMATS = {"torch_export": (TorchExport, run_torch), "onnx": (Onnx, run_onnx)}


def example(folder: Path) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    return code
