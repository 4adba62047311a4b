"""What a user of an exported model must know: its convention and noise levels, as JSON and as a README with a sampler."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..backbones.conditions import Attributes, Numbers, RowCondition, TokenIds
from ..checkpoints.store import Loaded
from ..models.preconditioned import Preconditioned
from ..models.protocols import Denoiser
from ..version import __version__
from .errors import ExportError
from .paths import shorten_paths
from .programs import condition_inputs, input_names, output_names

__all__ = ["describe", "write_readme"]

LEVELS = 1000  # steps of the table of a continuous schedule

INPUTS = {
    "x_t": "float32 [batch, *shape], x_t = alpha x_0 + sigma eps",
    "log_snr": "float32 [batch], log(alpha^2 / sigma^2) of each row",
}
OUTPUTS = {
    "x_0": "float32 [batch, *shape], estimate of the clean data",
    "eps": "float32 [batch, *shape], estimate of the noise",
    "v": "float32 [batch, *shape], place of the step's log variance between its bounds, arXiv 2102.09672, eq. 15",
}


def describe(loaded: Loaded, weights: str) -> dict[str, Any]:
    """The facts of a model, for model.json; those of noise levels only where it has some."""
    model, facts, shape = loaded.model, loaded.facts, list(loaded.facts["shape"])
    record: dict[str, Any] = {
        "format": 1,
        "name": loaded.config.get("name"),
        "shape": shape,
        "data_range": [-1.0, 1.0] if len(shape) == 3 and shape[0] in (1, 3) else None,
        "num_classes": len(facts["class_names"]),
        "class_names": list(facts["class_names"]),
    }
    if isinstance(model, Denoiser):
        record |= {"null_label": -1 if model.conditional and model.has_null else None}
    if isinstance(model, Preconditioned):
        record |= {
            **describe_inputs(model),
            "outputs": {name: OUTPUTS[name] for name in output_names(model)},
            "levels": tabulate_levels(model),
        }
    origin = {
        "program": f"diffguide {__version__}",
        "model": type(model).__name__,
        "weights": weights,
        "images": facts["images"],
        "origin": shorten_paths(facts.get("origin")),
    }
    return record | {"trained_by": origin}


@torch.no_grad()
def tabulate_levels(model: Preconditioned) -> dict[str, list[float]]:
    """t, log_snr, alpha and sigma from noise to data: of the trained levels, or of `LEVELS` equal steps of t."""
    times = model.levels
    if times is None:
        knots = getattr(model.schedule, "knots", None)
        steps = LEVELS if knots is None else len(knots) - 1
        times = torch.arange(steps, -1, -1, dtype=torch.float64) / steps
    log_snr = torch.stack([model.schedule.log_snr(t) for t in times])
    alpha, sigma = model.schedule.normalisation(log_snr)
    columns = {"t": times, "log_snr": log_snr, "alpha": alpha, "sigma": sigma}
    return {name: column.tolist() for name, column in columns.items()}


def describe_inputs(model: Preconditioned) -> dict[str, Any]:
    """What a program takes; `condition` has the tensors of a text, of attributes, ..., where the model has such a condition."""
    try:
        conditions = condition_inputs(model)[1]
    except ExportError:  # of a format without a program
        return {}
    shapes = {name: ", ".join(["batch", *map(str, given.shape)]) for name, given in conditions.items()}
    inputs = {name: f"{given.dtype} [{shapes[name]}], {given.meaning}" for name, given in conditions.items()}
    record = {"inputs": INPUTS | inputs}
    if model.conditioning is None:
        return record
    facts = {
        name: {"dtype": given.dtype, "shape": given.shape, "null": given.null_value}
        for name, given in conditions.items()
    }
    return record | {"condition": facts, "null_trained": model.has_null}


ABOUT = """# {name}

{files}
Written by diffguide {version}. `{record}` has the facts below, and the class names.

"""
FILES = {
    "torch_export": "`model.pt2` is a trained denoiser as a program of torch.export: torch alone runs it.\n",
    "onnx": "`model.onnx` is a trained denoiser for onnxruntime and other engines of ONNX.\n",
    "safetensors": "`model.safetensors` has the tensors of a trained network by the names of its layers.\n",
}
CONVENTION = """## Convention

Noised data are `x_t = alpha x_0 + sigma eps`. The noise level of a row is its log-SNR, `log(alpha^2 / sigma^2)`; `levels` in
`{record}` lists log-SNR, alpha and sigma from noise to data. Data have the shape {shape}{range}.
{programs}
{labels}
"""
PROGRAM = "\nThe program maps {inputs} to {outputs}, for any number of rows. It has no guidance in it.\n"
LABELS = {
    "none": "The model has no classes.",
    "classes": "Labels are class indices from 0 to {last}. It was not trained without a label: there is no guidance by labels.",
    "null": """Labels are class indices from 0 to {last}; -1 is no class. Guidance is `weak + scale (strong - weak)` of the
outputs with label and with -1: scale 1 is off, and scale 1 + w is Ho and Salimans' w.""",
}
CONDITIONS = """The condition is {tensors}: `condition` in `{record}` has the type and the shape of
a row, and the number that fills a tensor in rows without condition ({null}). In words:

{meanings}
{guidance}"""
NULL_GUIDANCE = {
    True: """
Guidance is `weak + scale (strong - weak)` of the outputs with and without condition: scale 1 is off.""",
    False: """
It was not trained without condition: there is no guidance by the condition.""",
}
SAMPLE = """## Sample

DDIM (arXiv 2010.02502) in this folder:

```python
{code}```
"""
TORCH = """import json

import torch

model = torch.export.load("model.pt2").module()
facts = json.load(open("model.json"))
levels = {name: torch.tensor([float(v) for v in column]) for name, column in facts["levels"].items()}
"""
NUMPY = """import json

import numpy as np
import onnxruntime

model = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
facts = json.load(open("model.json"))
levels = {name: np.array([float(v) for v in column], np.float32) for name, column in facts["levels"].items()}
"""
TORCH_START = """steps, count{scale} = 50, 4{scale_value}
{label}rows = torch.linspace(0, len(levels["t"]) - 1, steps + 1).round().long()  # from noise to data
x = levels["sigma"][rows[0]] * torch.randn(count, *facts["shape"], generator=torch.Generator().manual_seed(0))
for here, there in zip(rows[:-1], rows[1:]):
    log_snr = levels["log_snr"][here].repeat({rows} * count)
    with torch.no_grad():
        x_0, eps = model({inputs})[:2]
"""
NUMPY_START = """steps, count{scale} = 50, 4{scale_value}
{label}rows = np.linspace(0, len(levels["t"]) - 1, steps + 1).round().astype(int)  # from noise to data
x = levels["sigma"][rows[0]] * np.random.default_rng(0).standard_normal((count, *facts["shape"]), np.float32)
for here, there in zip(rows[:-1], rows[1:]):
    log_snr = levels["log_snr"][here].repeat({rows} * count)
    inputs = {inputs}
    x_0, eps = model.run(["x_0", "eps"], {named})
"""
GUIDE = {
    "torch": "    x_0, eps = (weak + scale * (strong - weak) for strong, weak in (x_0.chunk(2), eps.chunk(2)))\n",
    "numpy": "    x_0, eps = (weak + scale * (strong - weak) for strong, weak in (np.split(x_0, 2), np.split(eps, 2)))\n",
}
EMPTY = {
    "torch": """parts = facts["condition"]
null = {n: torch.full((count, *p["shape"]), float(p["null"]), dtype=getattr(torch, p["dtype"])) for n, p in parts.items()}
condition = {name: tensor.clone() for name, tensor in null.items()}
""",
    "np": """parts = facts["condition"]
null = {n: np.full((count, *p["shape"]), float(p["null"]), p["dtype"]) for n, p in parts.items()}
condition = {name: tensor.copy() for name, tensor in null.items()}
""",
}
FILLS: dict[type[RowCondition] | None, str] = {
    None: """condition["{name}"][:] = 0  # the first class
""",
    TokenIds: """for place, byte in enumerate("two blue squares".encode()[: parts["{name}"]["shape"][0] - 1]):
    condition["{name}"][:, place], condition["{name}"][:, place + 1] = byte + 1, 257
""",
    Attributes: """condition["{name}"][:, 0] = 1  # has the first
""",
    Numbers: """condition["{name}"][:] = 0.0
""",
}  # of the others nothing short is right: their rows stay without condition
END = """    x = levels["alpha"][there] * x_0 + levels["sigma"][there] * eps
print("samples", tuple(x.shape), "from", float(x.min()), "to", float(x.max()))
"""
READ = """## Read

```python
import json

from safetensors.torch import load_file

config = json.load(open("config.json"))  # `configuration` has the classes and arguments that built the network
for name, tensor in load_file("model.safetensors").items():
    print(name, tuple(tensor.shape))
```
"""


def write_readme(folder: Path, option: str, model: Any, config: Mapping[str, Any]) -> None:
    """Writes README.md of an export: files, convention, and an example that runs."""
    record = "config.json" if option == "safetensors" else "model.json"
    text = ABOUT.format(name=config.get("name") or "model", files=FILES[option], version=__version__, record=record)
    if isinstance(model, Preconditioned):
        text += convention(option, model, record) + "\n"
    text += READ if option == "safetensors" else SAMPLE.format(code=example(option, model))
    (folder / "README.md").write_text(text, encoding="utf-8")


def convention(option: str, model: Preconditioned, record: str) -> str:
    """The section on inputs, levels and labels."""
    programs = ""
    if option != "safetensors":
        names = ("(" + ", ".join(f"`{name}`" for name in part(model)) + ")" for part in (input_names, output_names))
        programs = PROGRAM.format(**dict(zip(("inputs", "outputs"), names)))
    shape = list(model.shape or ())
    return CONVENTION.format(
        record=record,
        programs=programs,
        shape=shape,
        range=", nominally in [-1, 1]" if len(shape) == 3 and shape[0] in (1, 3) else "",
        labels=explain_labels(model, record),
    )


def explain_labels(model: Preconditioned, record: str) -> str:
    """The part on classes, or on another condition."""
    if model.conditioning is None:
        kind = ("null" if model.has_null else "classes") if model.conditional else "none"
        return LABELS[kind].format(last=model.num_classes - 1)
    try:
        given = condition_inputs(model)[1]
    except ExportError:  # of a format without a program
        return f"The condition is that of a {type(model.conditioning).__name__}."
    return CONDITIONS.format(
        tensors=", ".join(f"`{name}`" for name in given),
        record=record,
        null=", ".join(f"{name} {part.null_value:g}" for name, part in given.items()),
        meanings="\n".join(f"- `{name}`: {part.meaning}" for name, part in given.items()),
        guidance=NULL_GUIDANCE[model.has_null],
    )


def example(option: str, model: Preconditioned) -> str:
    """A sampler in torch alone, or in NumPy and onnxruntime."""
    torch_alone, guided = option == "torch_export", model.conditional and model.has_null
    library = "torch" if torch_alone else "np"
    pair = "torch.cat([{0}, {1}])" if torch_alone else "np.concatenate([{0}, {1}])"
    values = [pair.format("x", "x") if guided else "x", "log_snr"]
    if model.conditioning is not None:
        values.append(
            f"*({pair.format('condition[name]', 'null[name]') if guided else 'condition[name]'} for name in parts)"
        )
    elif model.conditional:
        null = f"{library}.full_like(label, -1)"
        values.append(pair.format("label", null) if guided else "label")
    start = (TORCH_START if torch_alone else NUMPY_START).format(
        scale=", scale" if guided else "",
        scale_value=", 2.0" if guided else "",
        label=example_condition(model, library),
        rows=2 if guided else 1,
        inputs=", ".join(values),
        named="dict(zip(" + str(input_names(model)).replace("'", '"') + ", inputs))",
    )
    guide = GUIDE["torch" if torch_alone else "numpy"] if guided else ""
    return (TORCH if torch_alone else NUMPY) + start + guide + END


def example_condition(model: Preconditioned, library: str) -> str:
    """The lines that set the condition of the example, by `torch` or `np`."""
    if not model.conditional:
        return ""
    if model.conditioning is None:
        return f'label = {library}.arange(count) % facts["num_classes"]\n'
    given = condition_inputs(model)[1]
    fills = [FILLS[part.kind].format(name=name) for name, part in given.items() if part.kind in FILLS]
    return EMPTY[library] + "".join(fills)
