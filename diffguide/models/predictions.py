"""What a denoiser returns."""

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

from torch import Tensor, dtype

__all__ = ["Prediction", "StackedPrediction", "VariancePrediction", "WeightedPrediction", "keep_variance", "take_rows"]


class Prediction(NamedTuple):
    """Estimates of the clean data E[x_0 | x_t] and of the noise E[eps | x_t], each in the shape of x_t."""

    x_0: Tensor
    eps: Tensor

    @property
    def dtype(self) -> dtype:
        return self.x_0.dtype


class WeightedPrediction(NamedTuple):
    """A guided prediction and what Feynman-Kac weights need of it, for guidance whose law is known at every noise level.

    With exponents w_i on laws whose noise predictions are eps_i, and log-potentials r,

    Attributes:
        guided: what the sampler steps by.
        plain: the same without the potentials: sum_i w_i eps_i.
        spread: sum_i w_i |eps_i|^2 - |sum_i w_i eps_i|^2 per sample, [B] float64; weights change by -spread / 2 per log-SNR.
        value: r(x_t), [B] float64; None = no potential.
    """

    guided: Prediction
    plain: Prediction
    spread: Tensor
    value: Tensor | None = None

    def detach(self) -> "WeightedPrediction":
        """The same without gradients."""
        guided, plain = (
            keep_variance(Prediction(side.x_0.detach(), side.eps.detach()), side) for side in (self.guided, self.plain)
        )
        return WeightedPrediction(
            guided, plain, self.spread.detach(), None if self.value is None else self.value.detach()
        )


class StackedPrediction(Prediction):
    """A prediction held as one tensor [2, B, ...], x_0 before eps: what treats both alike computes once.

    A tuple of its two fields for everybody else.
    """

    stack: Tensor

    def __new__(cls, stack: Tensor, eps: Tensor | None = None):
        if eps is not None:  # from its fields, as functions of named tuples make one
            return Prediction(stack, eps)
        new = tuple.__new__(cls, (None, None))  # the fields are taken from the stack when they are read
        new.stack = stack
        return new

    x_0 = cached_property(lambda self: self.stack[0])
    eps = cached_property(lambda self: self.stack[1])

    @property
    def dtype(self) -> dtype:
        return self.stack.dtype

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.x_0, self.eps))

    def __getitem__(self, index):
        return (self.x_0, self.eps)[index]

    def __reduce__(self):
        return StackedPrediction, (self.stack,)

    def __repr__(self) -> str:
        return repr(Prediction(*self))

    @classmethod
    def _make(cls, iterable):  # type: ignore[override]
        return Prediction(*iterable)


class VariancePrediction(Prediction):
    """A prediction of a network with a learned variance, which `sampler=ddpm sampler.variance=learned` reads.

    A tuple of its two fields for everybody else.

    Attributes:
        v: second half of the network's output, in the shape of x_t, nominally in [-1, 1]: the place of the step's log variance
            between its two bounds. Nichol & Dhariwal 2021, arXiv 2102.09672, eq. 15. It has no gradient.
    """

    v: Tensor

    def __new__(cls, x_0: Tensor, eps: Tensor, v: Tensor):
        new = tuple.__new__(cls, (x_0, eps))
        new.v = v.detach()
        return new

    def __reduce__(self):
        return VariancePrediction, (*self, self.v)

    @classmethod
    def _make(cls, iterable):  # type: ignore[override]
        return Prediction(*iterable)


def keep_variance(prediction: Prediction, source: Prediction) -> Prediction:
    """The prediction, with the learned variance of `source` if that has one."""
    return VariancePrediction(*prediction, source.v) if isinstance(source, VariancePrediction) else prediction


def take_rows(prediction: Prediction, rows: slice | Tensor) -> Prediction:
    """Some rows of a prediction."""
    taken = Prediction(prediction.x_0[rows], prediction.eps[rows])
    return VariancePrediction(*taken, prediction.v[rows]) if isinstance(prediction, VariancePrediction) else taken
