"""Log-potentials: their interface, their values and their gradients."""

import functools
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from ...backbones.conditions import Condition
from ...models.protocols import DenoiserWrapper, SamplingError
from ...randomness import Noise

__all__ = [
    "SMOOTHING_DRAW",
    "LogPotential",
    "Potential",
    "build_potential",
    "compute_gradient",
    "evaluate",
    "find_text_potentials",
    "get_name",
    "reads_class",
]

SMOOTHING_DRAW = 2**36  # the first draw of smoothing, beyond those of samplers and their visits


class Potential:
    """f(x, y) -> [B]: a log-potential of each row of x, in nats, up to a constant. Any such callable is one.

    Attributes:
        of_class: whether f reads y; then a row without class (y = -1) is not guided.
        needs_texts: whether it has no text of its own, and needs one for each sample before a run.
    """

    of_class: bool = False
    needs_texts: bool = False

    def __call__(self, x: Tensor, y: Condition | None) -> Tensor:
        raise NotImplementedError

    def start(self, noise: Noise | None, times: Tensor) -> Self:
        """A copy for one run with its random draws; itself if it draws nothing."""
        return self

    def give_texts(self, seeds: Sequence[int], texts: Sequence[str]) -> None:
        """Takes the text of each sample, which its seed identifies; "" = not guided."""
        raise NotImplementedError


LogPotential = Potential | Callable[[Tensor, Condition | None], Tensor]


def build_potential(potential: LogPotential) -> LogPotential:
    """The potential of a configuration: a `_partial_` of a class is built, a `_partial_` of a function is the potential.

    So `guidance.potential._target_=mine.f` may name a function f(x, y) or a class of such callables.
    """
    if isinstance(potential, functools.partial) and isinstance(potential.func, type):
        try:
            potential = potential()
        except TypeError as error:
            raise ValueError(f"potential: {error}; set +guidance.potential.<argument>=<value>") from error
    if not callable(potential):
        hint = f"; set guidance.potential._target_={potential}" if isinstance(potential, str) else ""
        raise ValueError(f"potential must be callable as f(x, y) -> [B], got {potential!r}{hint}")
    return potential


def reads_class(potential: LogPotential) -> bool:
    """Whether a potential reads y."""
    return bool(getattr(potential, "of_class", False))


def find_text_potentials(model: Any) -> list[Potential]:
    """The potentials in the guidance of a model that need a text for each sample."""
    found: list[Potential] = []
    while isinstance(model, DenoiserWrapper):
        potential = getattr(model, "potential", None)
        if isinstance(potential, Potential) and potential.needs_texts:
            found.append(potential)
        model = model.denoiser
    return found


def get_name(potential: LogPotential) -> str:
    """The name of a potential in messages."""
    potential = potential.func if isinstance(potential, functools.partial) else potential
    return getattr(potential, "__name__", type(potential).__name__)


def get_module(potential: LogPotential) -> str:
    """The module that defines a potential."""
    potential = potential.func if isinstance(potential, functools.partial) else potential
    return getattr(potential, "__module__", None) or type(potential).__module__


def describe_user_error(error: Exception, module: str) -> str:
    """An exception in one line, with its last line number in a module."""
    file = getattr(sys.modules.get(module), "__file__", None)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    where = f" (line {lines[-1]} of {file})" if lines else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}{where}"


def evaluate(potential: LogPotential, x: Tensor, y: Condition | None) -> Tensor:
    """f(x, y), [B].

    Raises:
        SamplingError: a value that is not [B], not finite, or not a function of x; an exception of a user's potential.
    """
    name = get_name(potential)
    try:
        value = potential(x, y)
    except (SamplingError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a user's module may raise anything
        module = get_module(potential)
        if module.startswith("diffguide."):
            raise
        raise SamplingError(
            f"guidance.potential: {name} raised {describe_user_error(error, module)}, for x {list(x.shape)}"
        ) from error
    if not isinstance(value, Tensor) or value.shape != (len(x),):
        found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise SamplingError(
            f"guidance.potential: {name} must return one number per row, [{len(x)}] for x {list(x.shape)}, got {found}"
        )
    if not bool(value.isfinite().all()):
        where = int((~value.isfinite()).nonzero()[0])
        raise SamplingError(
            f"guidance.potential: {name} is not finite: {float(value[where].detach())} in row {where} of x {list(x.shape)} "
            f"between {float(x.detach().min()):.3g} and {float(x.detach().max()):.3g}"
        )
    if x.requires_grad and not value.requires_grad:
        raise SamplingError(
            f"guidance.potential: {name} has no gradient, its value does not depend on x {list(x.shape)}"
        )
    return value


def compute_gradient(potential: LogPotential, value: Tensor, x: Tensor, graph: bool) -> Tensor:
    """The gradient of a potential's value [B] with respect to x.

    Arguments:
        graph: whether it will be differentiated itself.

    Raises:
        SamplingError: a gradient that is not finite.
    """
    result = torch.autograd.grad(value.sum(), x, create_graph=graph)[0]
    if not bool(result.isfinite().all()):
        raise SamplingError(
            f"guidance.potential: the gradient of {get_name(potential)} is not finite for x {list(x.shape)} between "
            f"{float(x.detach().min()):.3g} and {float(x.detach().max()):.3g}"
        )
    return result
