"""A trained network as a program of torch: (x_t, log_snr, label) -> (x_0, eps), for every number of rows.

    x_t      float32 [B, ...]
    log_snr  float32 [B], log(alpha^2 / sigma^2) of each row
    label    int64 [B], class index, -1 = no condition; only of a network with classes

A network with another condition has the tensors of this condition in place of the label, see `condition_inputs`. A network with
a learned variance has a third output, v (`VariancePrediction`).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..backbones.conditions import Condition
from ..models.preconditioned import Preconditioned
from ..models.protocols import VariancePrediction
from .condition_inputs import CLASS, ConditionInput, assemble_condition, list_inputs
from .errors import ExportError

__all__ = ["PredictionProgram", "check_network", "fold_for_onnx", "input_names", "output_names", "trace"]

EXAMPLE_ROWS = 3  # any but 0 and 1, which torch.export takes as constants


class PredictionProgram(nn.Module):
    """The network of a denoiser as a function of the log-SNR.

    Arguments:
        model: in evaluation mode.
    """

    def __init__(self, model: Preconditioned):
        super().__init__()
        self.model = model

    def forward(self, x_t: Tensor, log_snr: Tensor, label: Tensor | None = None) -> tuple[Tensor, ...]:
        return self.predict(x_t, log_snr, label)

    def predict(self, x_t: Tensor, log_snr: Tensor, y: Condition | None) -> tuple[Tensor, ...]:
        prediction = self.model.predict_at(x_t, log_snr.double(), y)
        return (*prediction, prediction.v) if isinstance(prediction, VariancePrediction) else tuple(prediction)


class ConditionProgram(PredictionProgram):
    """The same of a model with a conditioning.

    Arguments:
        null: a row without condition.
    """

    def __init__(self, model: Preconditioned, null: Condition):
        super().__init__(model)
        self.null = null

    def forward(self, x_t: Tensor, log_snr: Tensor, *condition: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        return self.predict(x_t, log_snr, assemble_condition(self.null, condition))


def check_network(model: Any, to: str) -> Preconditioned:
    """The model, if it is a network that predicts x_0 and eps, not of an Embedding.

    Arguments:
        to: format, for the message.

    Raises:
        ExportError: any other model.
    """
    other = "to=safetensors writes the weights of any model"
    if not isinstance(model, Preconditioned):
        raise ExportError(
            f"to={to} takes networks that predict x_0 and eps (objective=eps, v, x0, score, flow, edm, vdm), and this "
            f"checkpoint holds a {type(model).__name__}: {other}"
        )
    if model.backbone.condition_features:
        raise ExportError(
            f"to={to} takes networks with conditions that can be written, and this one takes an Embedding of length "
            f"{model.backbone.condition_features}: {other}"
        )
    return model


def condition_inputs(model: Preconditioned) -> tuple[Condition | None, dict[str, ConditionInput]]:
    """(A row without condition, the inputs for a condition by name); None and no inputs for a network without condition.

    Raises:
        ExportError: see `list_inputs`.
    """
    if model.conditioning is not None:
        return list_inputs(model.conditioning)
    null = torch.tensor([-1])
    return (null, {"label": ConditionInput(null, CLASS, None)}) if model.conditional else (None, {})


def input_names(model: Preconditioned) -> list[str]:
    """The names of a program's inputs, in their order."""
    return ["x_t", "log_snr", *condition_inputs(model)[1]]


def output_names(model: Preconditioned) -> list[str]:
    """The names of a program's outputs, in their order."""
    return ["x_0", "eps", *(["v"] if model.learned_variance else [])]


def trace(model: Preconditioned, shape: Sequence[int]) -> torch.export.ExportedProgram:
    """The program of a network, on the CPU in float32, for 1 row and more.

    Arguments:
        shape: of one example.

    Raises:
        ExportError: a network whose computation torch.export cannot write down for every number of rows.
    """
    null, inputs = condition_inputs(model)
    conditions = [given.null.repeat(EXAMPLE_ROWS, *[1] * len(given.shape)) for given in inputs.values()]
    example = torch.zeros(EXAMPLE_ROWS, *shape), torch.linspace(-1, 1, EXAMPLE_ROWS), *conditions
    program = PredictionProgram(model)
    if model.conditioning is not None and null is not None:
        program = ConditionProgram(model, null)
    rows = torch.export.Dim("batch", min=1)
    free: tuple[Any, ...] = ({0: rows},) * len(inputs)
    free = ({0: rows},) * 2 + ((free,) if isinstance(program, ConditionProgram) else free)  # *condition is one argument
    try:
        with torch.no_grad(), without_batch_limits(model.backbone):
            traced = torch.export.export(program, example, dynamic_shapes=free, strict=False)
    except Exception as error:  # torch.export raises errors of many kinds
        reason = " ".join(str(error).split())[:300]
        raise ExportError(f"torch.export cannot trace {type(model.backbone).__name__}: {reason}") from error
    for node in traced.graph.nodes:
        node.meta.pop("stack_trace", None)  # it has paths of this machine
    return traced


@contextmanager
def without_batch_limits(network: nn.Module) -> Iterator[None]:
    """Upsampling layers of diffusers without their branches on 64 images and on 2^31 values.

    The branches copy a tensor for old kernels of torch. A traced program would keep the side that it saw, and be limited to
    63 images. Layers with a normalisation or a transposed convolution stay as they are.
    """
    changed = [
        part
        for part in network.modules()
        if type(part).__name__ == "Upsample2D"
        and type(part).__module__.startswith("diffusers.")
        and part.norm is None
        and not part.use_conv_transpose
        and part.interpolate
    ]
    for part in changed:
        part.forward = lambda h, output_size=None, *_, part=part, **__: upsample(part, h, output_size)
    try:
        yield
    finally:
        for part in changed:
            del part.forward


def upsample(layer: Any, h: Tensor, size: Sequence[int] | None) -> Tensor:
    """Nearest neighbours, to twice the size or a given one, then the convolution of the layer."""
    h = functional.interpolate(h, size=size, scale_factor=2.0 if size is None else None, mode="nearest")
    if not layer.use_conv:
        return h
    return layer.conv(h) if layer.name == "conv" else layer.Conv2d_0(h)


def fold_for_onnx(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The program without the operations that ONNX lacks: numbers stored as the bits of integers, searchsorted."""
    for node in list(program.graph.nodes):
        if node.target is torch.ops.aten.view.dtype:
            source, dtype = node.args
            name = program.graph_signature.inputs_to_buffers[source.name]
            held = program.constants if name in program.constants else program.state_dict
            held[name] = held[name].view(dtype)
            source.meta["val"] = node.meta["val"]
            node.replace_all_uses_with(source)
            program.graph.erase_node(node)
    program.graph_module.recompile()
    return program.run_decompositions({torch.ops.aten.searchsorted.Tensor: count_below})


def count_below(edges: Tensor, values: Tensor, **_: Any) -> Tensor:
    """searchsorted of values [N] in increasing edges [M], left: the number of edges below each value."""
    return (edges < values[:, None]).sum(1)
