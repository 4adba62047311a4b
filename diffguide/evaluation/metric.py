"""Metrics of a trained model on a split of its data: figures with standard errors.

metric.check(context)             # ValueError if the model or the data do not support the metric
result = metric.measure(context)  # figures, facts, a curve, plots of it
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy
import torch
from torch import Tensor

from ..backbones.conditions import Condition
from ..conditions.examples import Examples
from ..datasets import Dataset
from ..models.evaluation_counters import as_protocol, count_evaluations
from ..models.jumps import JumpModel
from ..models.level_classifier import LevelClassifier
from ..models.protocols import Classifier, Denoiser, Energy, LogDensity, Tally
from ..randomness import Noise, fold
from ..runtime.ranges import check_whole
from ..schedules import Schedule
from .parts import MetricError, Parts
from .results import MetricResult

__all__ = ["Metric", "MetricError", "EvalContext", "Report"]

T = TypeVar("T")
Report = Callable[[float], None]  # called with the fraction of the work that is done
SPLITS = ("train", "validation", "test")
SUBSET_PURPOSE, EXAMPLE_PURPOSE = 1, 2  # purposes of the seed
PROTOCOLS = {
    Denoiser: "a denoiser",
    LogDensity: "a log-density",
    Classifier: "a classifier",
    LevelClassifier: "a classifier of noise levels (objective=cdm)",
    JumpModel: "a network of two times (objective=flow_map)",
}


class EvalContext:
    """A model and the examples to measure it on.

    Arguments:
        model: on `device`, in evaluation mode.
        data: its data set.
        split: train, validation or test.
        n: number of examples, drawn without replacement; None = the whole split.
        seed: of that draw, and of all random numbers of a metric.
        batch_size: examples per batch; does not change the figures.
        device: of the model.
        parts: saves finished parts of the work, None = they are not saved.
        progress: progress(done, total, unit). It raises `Stopped` after a signal, so a metric calls it after a part is
            saved, and several times within a long part.
        checkpoint: file of the model, None = none.
        config: of the run that trained the model, with the `dataset` node of these data; {} = unknown.

    Attributes:
        rows: indices of the examples in the split, ascending, [N].
        class_names, shape: of the data.

    Raises:
        ValueError: an unknown split, more examples than it has, or a model and data with different numbers of classes.
    """

    def __init__(
        self,
        model: Any,
        data: Dataset,
        split: str = "validation",
        n: int | None = None,
        seed: int = 0,
        batch_size: int = 256,
        device: torch.device | str = "cpu",
        parts: Parts | None = None,
        progress: Callable[[int, int, str], None] | None = None,
        checkpoint: Path | None = None,
        config: Mapping[str, Any] | None = None,
    ):
        if split not in SPLITS:
            raise ValueError(f"split must be train, validation or test, got {split!r}")
        available = len(getattr(data, split).y)
        if not available:
            others = [f"split={name}" for name in SPLITS if len(getattr(data, name).y)]
            raise ValueError(f"the {split} split of these data is empty (dataset.{split}=0): use {' or '.join(others)}")
        if n is not None and not 1 <= n <= available:
            raise ValueError(f"n must be 1 to {available}, the examples of the {split} split, or null for all, got {n}")
        self.batch_size = check_whole("batch_size", batch_size, 1)
        classes = getattr(model, "num_classes", 0)
        if classes and data.class_names and classes != len(data.class_names):
            raise ValueError(f"the model has {classes} classes, and the data have {len(data.class_names)}")
        self.uncounted: Any = model
        self.tally: Tally | None = None
        if isinstance(model, Denoiser | Energy):
            model, self.tally = count_evaluations(model)
        self.model, self.data, self.split, self.seed = model, data, split, seed
        self.device = torch.device(device)
        self.begin(parts or Parts(None), progress or (lambda done, total, unit: None))
        self.checkpoint, self.config = checkpoint, dict(config or {})
        order = torch.randperm(available, generator=torch.Generator().manual_seed(fold(seed, SUBSET_PURPOSE)))
        self.rows = order[: available if n is None else n].sort().values
        self.class_names, self.shape = data.class_names, data.shape

    @cached_property
    def examples(self) -> Examples:
        """The examples with their conditions, made when a metric asks for them; ValueError where the data lack them."""
        return Examples(self.data, getattr(self.data, self.split), self.uncounted)

    def begin(self, parts: Parts, progress: Callable[[int, int, str], None]) -> None:
        """Sets where a measurement saves its parts and reports its progress."""
        self.parts, self.progress, parts.tally = parts, progress, self.tally

    @property
    def n(self) -> int:
        return len(self.rows)

    @property
    def firsts(self) -> range:
        """The position in `rows` of the first example of each batch."""
        return range(0, self.n, self.batch_size)

    @property
    def labels(self) -> Tensor:
        """The class of each example, [N] on the CPU; -1 = no class."""
        return getattr(self.data, self.split).y[self.rows]

    def batch(self, first: int) -> tuple[Tensor, Condition]:
        """Preprocessed examples [b, ...], float32 in [-1, 1], and their conditions [b], on the device."""
        return self.examples.fetch(self.rows[first : first + self.batch_size], self.device)

    def compute_batches(self, batch: Callable[[int], dict[str, numpy.ndarray]]) -> dict[str, list[numpy.ndarray]]:
        """Computes the arrays of every batch, batch(first) -> {name: array}; each batch is saved as a part.

        Returns:
            {name: arrays of all batches}.
        """
        arrays: dict[str, list[numpy.ndarray]] = {}
        for first in self.firsts:
            for name, array in self.parts.load_or_compute(f"{first:010d}", lambda: batch(first)).items():
                arrays.setdefault(name, []).append(array)
            self.progress(min(first + self.batch_size, self.n), self.n, "examples")
        return arrays

    def noise(self, first: int, dtype: torch.dtype = torch.float32) -> Noise:
        """The noise of a batch. The noise of an example depends only on the seed and on its row in the split."""
        rows = self.rows[first : first + self.batch_size].tolist()
        seeds = [fold(self.seed, EXAMPLE_PURPOSE, row) for row in rows]
        return Noise(seeds, self.shape, getattr(self.model, "schedule", None), self.device, dtype)

    def as_protocol(self, protocol: type[T]) -> T | None:
        """The model if it implements a protocol (Denoiser, LogDensity, Classifier), else None."""
        if isinstance(self.model, Denoiser | Energy):
            return as_protocol(self.model, protocol)
        return self.model if isinstance(self.model, protocol) else None

    def require(self, protocol: type[T]) -> T:
        """The model, which implements the protocol: `Metric.check` has checked it."""
        model = self.as_protocol(protocol)
        assert model is not None, f"a {self.model_name} is no {protocol.__name__}"
        return model

    @property
    def denoiser(self) -> Denoiser:
        """The model as a denoiser whose evaluations are counted."""
        return self.require(Denoiser)

    @property
    def schedule(self) -> Schedule:
        """The noise schedule; only for models with one."""
        schedule = self.model.schedule
        assert isinstance(schedule, Schedule)
        return schedule

    @property
    def levels(self) -> Tensor | None:
        """The times of a model with discrete noise levels, None = continuous time."""
        return getattr(self.model, "levels", None)

    @property
    def num_classes(self) -> int:
        return getattr(self.model, "num_classes", 0)

    @property
    def has_null(self) -> bool:
        """Whether the model was also trained without labels."""
        return getattr(self.model, "has_null", False)

    @property
    def model_name(self) -> str:
        """The class of the model, for messages."""
        return type(self.uncounted).__name__

    @property
    def evaluations(self) -> int | None:
        """Number of evaluations so far, one per row, including those of saved parts: of a denoiser, or by the sampler of an
        energy. None for other models, and for an energy before it is sampled."""
        if self.tally is None:
            return None
        count = self.tally.evaluations + self.parts.restored.evaluations
        return count if count or isinstance(self.model, Denoiser) else None

    @property
    def backward_passes(self) -> int:
        """Number of backward passes through a denoiser besides its evaluations, one per row, including saved parts."""
        return self.parts.restored.backward_passes + (0 if self.tally is None else self.tally.backward_passes)


class Metric:
    """Base of every metric.

    Attributes:
        name: of the option, metric=<name>.
        needs: protocols that the model must implement.
        conditional: whether the model must have classes.
        labels: whether each example must have a class.
        conditions: whether the data must have what the model is conditioned on, such as captions.
        differentiates: whether a figure is that of the derivative of the network, which half precision makes wrong.
    """

    differentiates: bool = False
    name: ClassVar[str]
    needs: ClassVar[Sequence[type]] = ()
    conditional: ClassVar[bool] = False
    labels: ClassVar[bool] = False
    conditions: ClassVar[bool] = True

    def resolve(self, context: EvalContext) -> "Metric":
        """The metric that is measured: itself, or the one that `Auto` chooses for this model."""
        return self

    def check(self, context: EvalContext) -> None:
        """Checks that model and data support the metric; subclasses call super().check(context) first.

        Raises:
            ValueError: they do not.
        """
        for protocol in self.needs:
            wanted = PROTOCOLS[protocol] + (" with classes" if self.conditional else "")
            if context.as_protocol(protocol) is None:
                raise ValueError(f"metric={self.name} needs {wanted}; this checkpoint holds a {context.model_name}")
            if protocol is Denoiser and context.levels is not None and len(context.levels) < 2:
                raise ValueError(
                    f"metric={self.name} needs several noise levels; this {context.model_name} has one (objective=nce): use "
                    "metric=log_density, or metric=classification if it has classes"
                )
        if self.conditional and not context.num_classes:
            raise ValueError(f"metric={self.name} needs a model with classes; this {context.model_name} has none")
        if self.labels and not (context.class_names and bool((context.labels >= 0).all())):
            raise ValueError(f"metric={self.name} needs labels; the {context.split} split has examples without a label")
        if self.conditions:
            assert context.examples  # made here, where a ValueError says what is missing

    def measure(self, context: EvalContext) -> MetricResult:
        """Measures the model.

        Raises:
            MetricError: the measurement failed.
            Stopped: from context.progress, after a signal; finished parts are saved in context.parts.
        """
        raise NotImplementedError
