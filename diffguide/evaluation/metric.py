"""What a metric is: a question to a trained model, answered on a split of its data by figures with their errors.

    metric.check(context)              # one sentence where the model or the data cannot answer
    measured = metric.measure(context)  # figures, what they rest on, a curve, plots of it

A metric is built from configs/metric/<name>.yaml and knows nothing of commands, files and devices: those are its context's.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy
import torch
from torch import Tensor

from ..datasets import Dataset
from ..datasets.base import fetch_examples
from ..figures.plot_spec import Plot
from ..models.evaluation_counters import EnergyCounter, EvaluationCounter, as_protocol, count_evaluations
from ..models.level_classifier import LevelClassifier
from ..models.protocols import Classifier, Denoiser, Energy, LogDensity
from ..randomness import Noise, fold
from .parts import MetricError, Parts

__all__ = ["Figure", "MetricResult", "Metric", "MetricError", "EvalContext", "mean"]

SPLITS = ("train", "validation", "test")
SUBSET_PURPOSE, EXAMPLE_PURPOSE = 1, 2  # purposes of the seed
PROTOCOLS = {
    Denoiser: "a denoiser",
    LogDensity: "a log-density",
    Classifier: "a classifier",
    LevelClassifier: "a classifier of noise levels (objective=cdm)",
}


class Figure(NamedTuple):
    """A number of a table.

    Arguments:
        value: the estimate.
        standard_error: of the estimate, in its unit; None = not known.
        n: examples or samples that it rests on.
        unit: nats, bits/dim, share, ...
        meaningful: whether it says anything, see the notes of `MetricResult` where not.
    """

    value: float
    standard_error: float | None
    n: int
    unit: str
    meaningful: bool = True


class MetricResult(NamedTuple):
    """What a metric found: plain numbers, texts, lists and mappings.

    Arguments:
        figures: by name, for a row of a table; names carry what they depend on (fd_local, likelihood_elbo).
        facts: what else must be known to repeat and to read them: seeds, features, reference split, decoder, ...
        curve: rows of one table, {column: value}, None = not known: per noise level, per budget, ...
        plots: of the curve.
        details: more numbers for metrics.json alone, a confusion matrix or the like.
        arrays: what is known of single examples, <name>.npz each: {name: {array: its values}}, no objects.
        notes: sentences that a reader of the figures needs, told on stderr too.
    """

    figures: dict[str, Figure]
    facts: dict[str, Any]
    curve: Sequence[dict[str, float | None]] = ()
    plots: Sequence[Plot] = ()
    details: Mapping[str, Any] = {}
    arrays: Mapping[str, Mapping[str, numpy.ndarray]] = {}
    notes: Sequence[str] = ()


class EvalContext:
    """A model and the examples that it is measured on.

    Arguments:
        model: on `device`, in evaluation mode.
        data: its data set.
        split: train, validation or test.
        n: examples, drawn from the seed without replacement; None = the whole split.
        seed: of that draw, and of all that a metric draws.
        batch_size: examples at a time; changes no figure.
        device: where the model lives.
        parts: what is kept against a kill; None = nothing.
        progress: progress(done, total, unit), to be called where the work may be stopped: that is where a signal stops it, so
            after a part is kept and, where a part takes long, within it.
        checkpoint: the model's file, None = there is none.
        config: of the run that trained it, with the node `dataset` of the data here; {} = not known.

    Attributes:
        rows: of the split, ascending, [N].
        class_names, shape: of the data.

    Raises:
        ValueError: an unknown split, more examples than it has, data of another number of classes than the
            model's.
    """

    def __init__(
        self, model: Any, data: Dataset, split: str = "validation", n: int | None = None, seed: int = 0,
        batch_size: int = 256, device: torch.device | str = "cpu", parts: Parts | None = None,
        progress: Callable[[int, int, str], None] | None = None, checkpoint: Path | None = None,
        config: Mapping[str, Any] | None = None,
    ):  # fmt: skip
        if split not in SPLITS:
            raise ValueError(f"split must be train, validation or test, got {split!r}")
        available = len(getattr(data, split).y)
        if not available:
            held = [f"split={name}" for name in SPLITS if len(getattr(data, name).y)]
            raise ValueError(f"the {split} split of these data is empty (dataset.{split}=0): take {' or '.join(held)}")
        if n is not None and not 1 <= n <= available:
            raise ValueError(f"n must be 1 to {available}, the examples of the {split} split, or null for all, got {n}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        classes = getattr(model, "num_classes", 0)
        if classes and data.class_names and classes != len(data.class_names):
            raise ValueError(f"the model has {classes} classes, and the data have {len(data.class_names)}")
        self.counter = count_evaluations(model) if isinstance(model, Denoiser | Energy) else None
        self.model, self.data, self.split, self.seed = self.counter or model, data, split, seed
        self.batch_size, self.device = batch_size, torch.device(device)
        self.begin(parts or Parts(None), progress or (lambda done, total, unit: None))
        self.checkpoint, self.config = checkpoint, dict(config or {})
        order = torch.randperm(available, generator=torch.Generator().manual_seed(fold(seed, SUBSET_PURPOSE)))
        self.rows = order[: available if n is None else n].sort().values
        self.class_names, self.shape = data.class_names, data.shape

    def begin(self, parts: Parts, progress: Callable[[int, int, str], None]) -> None:
        """Where a measurement keeps its parts and says how far it is."""
        self.parts, self.progress, parts.counter = parts, progress, self.counter

    @property
    def n(self) -> int:
        return len(self.rows)

    @property
    def firsts(self) -> range:
        """The position among `rows` at which each batch begins."""
        return range(0, self.n, self.batch_size)

    @property
    def labels(self) -> Tensor:
        """The class of every example, [N] on the CPU; -1 = none."""
        return getattr(self.data, self.split).y[self.rows]

    def batch(self, first: int) -> tuple[Tensor, Tensor]:
        """Examples as a network sees them, float32 in [-1, 1] [b, ...], and classes [b], on the device."""
        x, y = fetch_examples(getattr(self.data, self.split), self.rows[first : first + self.batch_size])
        return self.data.preprocess(x).to(self.device), y.to(self.device)

    def noise(self, first: int, dtype: torch.dtype = torch.float32) -> Noise:
        """The noise of a batch: example i's is a function of the seed and its place in the split, whatever n and batch."""
        rows = self.rows[first : first + self.batch_size].tolist()
        seeds = [fold(self.seed, EXAMPLE_PURPOSE, row) for row in rows]
        return Noise(seeds, self.shape, getattr(self.model, "schedule", None), self.device, dtype)

    def as_protocol(self, protocol: type) -> Any:
        """The model, where it has a protocol (Denoiser, LogDensity, Classifier), or None."""
        if isinstance(self.model, Denoiser | Energy):
            return as_protocol(self.model, protocol)
        return self.model if isinstance(self.model, protocol) else None

    @property
    def model_name(self) -> str:
        """What the model is called in a message."""
        if isinstance(self.counter, EnergyCounter):
            return type(self.counter.energy).__name__
        return type(self.model if self.counter is None else self.counter.denoiser).__name__

    @property
    def evaluations(self) -> int | None:
        """Evaluations of the denoiser so far, one per row, with those of parts that were kept; of an energy its sampler's.

        None for other models, and for an energy that no sampler asked.
        """
        if self.counter is None:
            return None
        count = self.counter.evaluations + self.parts.restored
        return count if count or isinstance(self.counter, EvaluationCounter) else None


class Metric:
    """Base of every metric.

    Attributes:
        name: its option, metric=<name>.
        needs: protocols that the model must have.
        conditional: whether the model must have classes.
        labels: whether every example must have a class.
    """

    name: ClassVar[str]
    needs: ClassVar[Sequence[type]] = ()
    conditional: ClassVar[bool] = False
    labels: ClassVar[bool] = False

    def resolve(self, context: EvalContext) -> "Metric":
        """The metric itself, or the one that it stands for with such a model."""
        return self

    def check(self, context: EvalContext) -> None:
        """Whether the question can be answered; a metric with more conditions adds them after super().check(context).

        Raises:
            ValueError: it cannot, in one sentence.
        """
        for protocol in self.needs:
            wanted = PROTOCOLS[protocol] + (" with classes" if self.conditional else "")
            if context.as_protocol(protocol) is None:
                raise ValueError(f"metric={self.name} needs {wanted}; this checkpoint holds a {context.model_name}")
            if protocol is Denoiser and context.model.levels is not None and len(context.model.levels) < 2:
                raise ValueError(
                    f"metric={self.name} needs noise levels, and this {context.model_name} knows the data's own alone "
                    "(objective=nce): take metric=log_density, or metric=classification where there are classes"
                )
        if self.conditional and not context.model.num_classes:
            raise ValueError(f"metric={self.name} needs a model with classes; this {context.model_name} has none")
        if self.labels and not (context.class_names and bool((context.labels >= 0).all())):
            raise ValueError(f"metric={self.name} needs labels, and the {context.split} split has examples without one")

    def measure(self, context: EvalContext) -> MetricResult:
        """The answer.

        Raises:
            MetricError: a measurement that was begun and cannot end; in one sentence.
            Stopped: from context.progress, at a signal; what context.parts keeps is not computed again by `resume`.
        """
        raise NotImplementedError


def mean(values: Tensor, unit: str) -> Figure:
    """The mean of independent values [N], with the standard error std / sqrt(N)."""
    values = values.double()
    error = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else None
    return Figure(float(values.mean()), error, len(values), unit)
