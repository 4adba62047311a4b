"""Log-potentials: what they are, where they come from, their values and gradients."""

import functools
import sys
import traceback
from collections.abc import Callable

import torch
from torch import Tensor

from ...backbones.conditions import Condition
from ...models.protocols import SamplingError

__all__ = ["LogPotential", "Potential", "evaluated", "gradient", "made", "name_of"]


class Potential:
    """f(x, y) -> [B]: how well each row of x fits, in nats, up to a constant. Any callable of that form will do.

    Attributes:
        of_class: whether f reads y, so that a row without class (y = -1) is not guided.
    """

    of_class: bool = False

    def __call__(self, x: Tensor, y: Condition | None) -> Tensor:
        raise NotImplementedError

    def start(self, noise, times: Tensor) -> "Potential":
        """A fresh potential for one run, with the randomness that it needs; where it needs none, itself."""
        return self


LogPotential = Potential | Callable[[Tensor, Condition | None], Tensor]


def made(potential: LogPotential) -> LogPotential:
    """A potential from a configuration: Hydra's `_partial_` of a function is called as it is, that of a class is built.

    So `guidance.potential._target_=mine.f` takes a function f(x, y) and a class of such callables alike.
    """
    if isinstance(potential, functools.partial) and isinstance(potential.func, type):
        try:
            potential = potential()
        except TypeError as error:
            raise ValueError(f"potential: {error}; say +guidance.potential.<argument>=<value>") from error
    if not callable(potential):
        hint = f"; say guidance.potential._target_={potential}" if isinstance(potential, str) else ""
        raise ValueError(f"potential must be callable as f(x, y) -> [B], got {potential!r}{hint}")
    return potential


def name_of(potential: LogPotential) -> str:
    """What a message calls a potential."""
    potential = potential.func if isinstance(potential, functools.partial) else potential
    return getattr(potential, "__name__", type(potential).__name__)


def module_of(potential: LogPotential) -> str:
    """Where a potential was written."""
    potential = potential.func if isinstance(potential, functools.partial) else potential
    return getattr(potential, "__module__", None) or type(potential).__module__


def told(error: Exception, module: str) -> str:
    """An exception in one line, with the last line of a module that it came through."""
    file = getattr(sys.modules.get(module), "__file__", None)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    where = f" (line {lines[-1]} of {file})" if lines else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}{where}"


def evaluated(potential: LogPotential, x: Tensor, y: Condition | None) -> Tensor:
    """f(x, y), [B].

    Raises:
        SamplingError: a value that is not [B], not finite, or not a function of x; what a user's own potential raised.
    """
    name = name_of(potential)
    try:
        value = potential(x, y)
    except (SamplingError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever a user's module may raise
        module = module_of(potential)
        if module.startswith("diffguide."):
            raise
        raise SamplingError(
            f"guidance.potential: {name} raised {told(error, module)}, for x {list(x.shape)}"
        ) from error
    if not isinstance(value, Tensor) or value.shape != (len(x),):
        found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise SamplingError(
            f"guidance.potential: {name} must give one number per row, [{len(x)}] for x {list(x.shape)}, got {found}"
        )
    if not bool(value.isfinite().all()):
        where = int((~value.isfinite()).nonzero()[0])
        raise SamplingError(
            f"guidance.potential: {name} gave {float(value[where].detach())} in row {where} for x {list(x.shape)} "
            f"between {float(x.detach().min()):.3g} and {float(x.detach().max()):.3g}; it must be finite everywhere"
        )
    if x.requires_grad and not value.requires_grad:
        raise SamplingError(
            f"guidance.potential: {name} has no gradient: its value does not depend on x {list(x.shape)}"
        )
    return value


def gradient(potential: LogPotential, value: Tensor, x: Tensor, graph: bool) -> Tensor:
    """The gradient of a potential's value [B] with respect to x.

    Arguments:
        graph: whether it will be differentiated itself.

    Raises:
        SamplingError: a gradient that is not finite.
    """
    result = torch.autograd.grad(value.sum(), x, create_graph=graph)[0]
    if not bool(result.isfinite().all()):
        raise SamplingError(
            f"guidance.potential: the gradient of {name_of(potential)} is not finite for x {list(x.shape)} between "
            f"{float(x.detach().min()):.3g} and {float(x.detach().max()):.3g}"
        )
    return result
